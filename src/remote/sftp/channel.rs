//! The `ssh` process of a session, and the bytes to it and from it. Every wait ends, by one of two deadlines:
//!
//! - *silence*: nothing at all comes, or is taken, for [`Times::answer`];
//! - *the end*: what was asked for has to be there, whole, after that time and what its bytes take at [`Times::slowest`]. So a
//!   server that sends a byte now and then is given up, too.
//!
//! What ssh prints is read beside it: there is no thread for it, and whoever else holds its standard error (a ProxyCommand) is
//! not waited for.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};

use super::super::{ErrorKind, RemoteError, Result, Times};

/// The end of what ssh says is kept, up to this length.
const SAID_MAX: usize = 8 << 10;
/// Slower than this, in bytes a second, no disk makes a file durable that was written before.
const SLOWEST_SYNC: u64 = 1 << 20;
/// ssh ends this soon after its connection, or it is ended.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// ssh ends this soon when it is asked to. Then it takes its ProxyCommand with it, and its control socket.
const GRACE: Duration = Duration::from_millis(500);
/// So many times what is read at a time is more than a pipe holds.
const PIPE_READS: u32 = 32;
/// How often a process is looked at that is to end.
const STEP: Duration = Duration::from_millis(5);

/// A process, what it reads and writes, and how long it may take.
#[derive(Debug)]
pub(super) struct Channel {
    socket: UnixStream,
    child: Child,
    /// Until it ends.
    stderr: Option<ChildStderr>,
    said: Vec<u8>,
    times: Times,
    /// The longest time with nothing at all.
    silence: Duration,
    /// When what is waited for was begun, and how long it may take.
    begun: Instant,
    given: Duration,
    /// Why it can't be used any more.
    failure: Option<RemoteError>,
}

impl Channel {
    /// Starts a process.
    ///
    /// # Errors
    /// `Misconfigured`: there is no such program. `Local`.
    pub(super) fn start(mut command: Command, times: Times) -> Result<Self> {
        let local = |e: io::Error| RemoteError::new(ErrorKind::Local, format!("starting ssh: {e}"));
        let (socket, theirs) = UnixStream::pair().map_err(local)?;
        command
            .stdin(OwnedFd::from(theirs.try_clone().map_err(local)?))
            .stdout(OwnedFd::from(theirs))
            .stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => RemoteError::new(
                ErrorKind::Misconfigured,
                "the program ssh is missing (Debian: openssh-client): SFTP remotes go through it",
            ),
            _ => local(e),
        })?;
        // Its ends of the socket are the child's alone now: when it dies we see an end of file.
        drop(command);
        let stderr = child.stderr.take();
        let channel = Self::over(socket, child, stderr, times);
        channel.socket.set_nonblocking(true).map_err(local)?;
        if let Some(pipe) = &channel.stderr {
            rustix::io::ioctl_fionbio(pipe, true).map_err(|e| local(e.into()))?;
        }
        Ok(channel)
    }

    fn over(socket: UnixStream, child: Child, stderr: Option<ChildStderr>, times: Times) -> Self {
        let (silence, begun, given) = (times.answer, Instant::now(), times.answer);
        Self { socket, child, stderr, said: Vec::new(), times, silence, begun, given, failure: None }
    }

    /// Whether it was given up.
    pub(super) fn is_broken(&self) -> bool {
        self.failure.is_some()
    }

    /// From now on something is waited for in which `bytes` go one way or the other.
    pub(super) fn begin(&mut self, bytes: u64) {
        self.silence = self.times.answer;
        self.given = self.silence.saturating_add(Duration::from_secs(bytes / self.times.slowest.max(1)));
        self.begun = Instant::now();
    }

    /// From now on a file of `len` bytes is made durable there: a time in which nothing is heard.
    pub(super) fn begin_sync(&mut self, len: u64) {
        self.silence = self.times.answer.saturating_add(Duration::from_secs(len / SLOWEST_SYNC));
        self.given = self.silence;
        self.begun = Instant::now();
    }

    /// How long a single answer may take.
    pub(super) fn patience(&self) -> Duration {
        self.times.answer
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// The connection was given up, now or before.
    pub(super) fn send(&mut self, mut packet: &[u8]) -> Result<()> {
        self.check()?;
        while !packet.is_empty() {
            match self.socket.write(packet) {
                Ok(n) => packet = &packet[n..],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.wait(PollFlags::OUT)?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(self.ended()),
            }
        }
        Ok(())
    }

    /// Fills a buffer with what comes.
    ///
    /// # Errors
    /// The connection was given up, now or before.
    pub(super) fn receive(&mut self, buf: &mut [u8]) -> Result<()> {
        self.check()?;
        let mut got = 0;
        while got < buf.len() {
            match self.socket.read(&mut buf[got..]) {
                Ok(0) => return Err(self.ended()),
                Ok(n) => got += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.wait(PollFlags::IN)?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(self.ended()),
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        self.failure.clone().map_or(Ok(()), Err)
    }

    /// Ends the process and keeps why, for whoever asks again.
    pub(super) fn give_up(&mut self, error: RemoteError) -> RemoteError {
        self.stop();
        self.failure.get_or_insert(error).clone()
    }

    /// What did not come in time.
    pub(super) fn too_slow(&mut self, time: Duration) -> RemoteError {
        let text = format!(
            "the SFTP server is too slow: not everything that was asked for came within {:.1} s",
            time.as_secs_f64()
        );
        self.give_up(RemoteError::new(ErrorKind::Timeout, text))
    }

    /// Waits until the socket can be read from, or written to, and hears what ssh says meanwhile.
    fn wait(&mut self, ready: PollFlags) -> Result<()> {
        let begun = Instant::now();
        loop {
            let quiet = self.silence.saturating_sub(begun.elapsed());
            if quiet.is_zero() {
                let time = self.silence.as_secs_f64();
                let text = format!("the SFTP server was silent for {time:.1} s");
                return Err(self.give_up(RemoteError::new(ErrorKind::Timeout, text)));
            }
            let left = self.given.saturating_sub(self.begun.elapsed());
            if left.is_zero() {
                return Err(self.too_slow(self.given));
            }
            match self.poll(ready, quiet.min(left)) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(e) => {
                    let text = format!("waiting for ssh: {e}");
                    return Err(self.give_up(RemoteError::new(ErrorKind::Local, text)));
                }
            }
        }
    }

    /// Waits so long at most for the socket, or for something that ssh says, which is taken. Returns whether the socket is
    /// ready.
    fn poll(&mut self, ready: PollFlags, time: Duration) -> io::Result<bool> {
        let time = Timespec::try_from(time).map_err(io::Error::other)?;
        let mut fds = vec![PollFd::new(&self.socket, ready)];
        fds.extend(self.stderr.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        match poll(&mut fds, Some(&time)) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(false),
            Err(e) => return Err(e.into()),
        }
        let has = |fd: Option<&PollFd<'_>>| fd.is_some_and(|fd| !fd.revents().is_empty());
        let (socket, stderr) = (has(fds.first()), has(fds.get(1)));
        if stderr {
            self.listen();
        }
        Ok(socket)
    }

    /// Takes something of what ssh says. Returns whether there was anything.
    fn listen(&mut self) -> bool {
        let Some(pipe) = &mut self.stderr else { return false };
        let mut text = [0; 4096];
        match pipe.read(&mut text) {
            Ok(n) if n > 0 => {
                self.said.extend_from_slice(&text[..n]);
                let more = self.said.len().saturating_sub(SAID_MAX);
                self.said.drain(..more);
                true
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => false,
            // Its end; what could not be read is missing in a message, nothing else.
            _ => {
                self.stderr = None;
                false
            }
        }
    }

    /// Takes what ssh has said until now, and forgets it.
    pub(super) fn forget_said(&mut self) {
        for _ in 0..PIPE_READS {
            if !self.listen() {
                break;
            }
        }
        self.said.clear();
    }

    /// The connection broke: says why, by what ssh prints.
    fn ended(&mut self) -> RemoteError {
        let begun = Instant::now();
        while begun.elapsed() < LAST_WORDS && self.is_running() {
            if !self.listen() {
                std::thread::sleep(STEP);
            }
        }
        // What it said last: as much as a pipe holds. Somebody else may go on to print into it.
        for _ in 0..PIPE_READS {
            if !self.listen() {
                break;
            }
        }
        let said = String::from_utf8_lossy(&self.said).into_owned();
        self.give_up(explain(&said))
    }

    /// Whether the process is still there. One whose state is unknown is.
    fn is_running(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// Waits so long for the end of the process. Returns whether it came.
    fn is_gone_within(&mut self, time: Duration) -> bool {
        let begun = Instant::now();
        while self.is_running() {
            if begun.elapsed() > time {
                return false;
            }
            std::thread::sleep(STEP);
        }
        true
    }

    /// Ends the process, and reaps it.
    fn stop(&mut self) {
        if !self.is_running() {
            return;
        }
        // It may go at any moment.
        if let Err(error) = kill_process(Pid::from_child(&self.child), Signal::TERM) {
            tracing::debug!(%error, "ssh was not asked to end");
        }
        if self.is_gone_within(GRACE) {
            return;
        }
        drop(self.child.kill());
        if !self.is_gone_within(LAST_WORDS) {
            // It hangs in the kernel, on a file of a server that is gone: nobody can wait for that.
            tracing::warn!(pid = self.child.id(), "ssh does not end");
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Classes what ssh says before it gives up.
fn explain(said: &str) -> RemoteError {
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    let kind = if has(&[
        "Host key verification failed",
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "host key is known",
    ]) {
        ErrorKind::Untrusted
    } else if has(&["Permission denied", "Too many authentication failures", "no such identity", "Load key"])
    {
        ErrorKind::NoCredentials
    } else if has(&["Connection timed out", "Operation timed out", "not responding"]) {
        ErrorKind::Timeout
    } else if has(&["Could not resolve", "Connection refused", "No route to host", "Network is unreachable"])
    {
        ErrorKind::Unreachable
    } else if has(&["subsystem request failed"]) {
        ErrorKind::Unsupported
    } else if has(&[
        "Bad configuration",
        "Bad owner or permissions",
        "Can't open user config file",
        "Unknown option",
    ]) {
        ErrorKind::Misconfigured
    } else {
        ErrorKind::Unavailable
    };
    let lines = said.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('@'));
    let last: Vec<&str> = lines.collect();
    let text: String = match last.len() {
        0 => "the SSH connection ended".into(),
        n => last[n.saturating_sub(2)..].join("; "),
    };
    let text: String = text.chars().filter(|c| !c.is_control()).take(300).collect();
    RemoteError::new(kind, format!("ssh: {text}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use super::*;

    /// A channel to whoever has the other end, with a process that has ended.
    pub(in super::super) fn channel_with(times: Times) -> (Channel, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Channel::over(ours, Command::new("true").spawn().unwrap(), None, times), theirs)
    }

    fn quick() -> Times {
        Times { answer: Duration::from_millis(100), slowest: 1 << 30 }
    }

    fn timed_out(error: &RemoteError, channel: &Channel) -> String {
        assert_eq!(error.kind, ErrorKind::Timeout, "{error}");
        assert!(channel.is_broken());
        error.message.clone()
    }

    #[test]
    fn silence_has_an_end() {
        let (mut channel, _theirs) = channel_with(quick());
        channel.begin(1 << 40);
        let error = channel.receive(&mut [0; 10]).unwrap_err();
        assert!(timed_out(&error, &channel).contains("silent for 0.1 s"), "{error}");
        // Whoever asks again is told the same.
        assert_eq!(channel.send(b"more").unwrap_err(), error);
        assert_eq!(channel.receive(&mut [0; 1]).unwrap_err(), error);
    }

    #[test]
    fn what_nobody_takes_is_not_sent_for_ever() {
        let (mut channel, _theirs) = channel_with(quick());
        channel.begin(1 << 40);
        let error = channel.send(&vec![0; 16 << 20]).unwrap_err();
        timed_out(&error, &channel);
    }

    /// No time without a byte is long.
    #[test]
    fn bytes_that_trickle_are_given_up() {
        let (mut channel, mut theirs) =
            channel_with(Times { answer: Duration::from_millis(500), slowest: 1 << 20 });
        let server = std::thread::spawn(move || {
            let mut sent = 0_u64;
            while theirs.write_all(b"x").is_ok() {
                sent += 1;
                std::thread::sleep(STEP);
            }
            sent
        });
        channel.begin(100_000);
        let error = channel.receive(&mut vec![0; 100_000]).unwrap_err();
        timed_out(&error, &channel);
        drop(channel);
        assert!(server.join().unwrap() < 100_000);
    }

    /// The more there is to be made durable, the longer nothing is heard.
    #[test]
    fn making_durable_may_take_its_time() {
        let (mut channel, mut theirs) = channel_with(quick());
        channel.begin_sync(1 << 30);
        let server = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            theirs.write_all(b"done").unwrap();
            theirs
        });
        let mut answer = [0; 4];
        channel.receive(&mut answer).unwrap();
        assert_eq!(&answer, b"done");
        let _theirs = server.join().unwrap();
        channel.begin(0);
        timed_out(&channel.receive(&mut answer).unwrap_err(), &channel);
    }

    fn shell(script: &str, times: Times) -> Channel {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Channel::start(command, times).unwrap()
    }

    /// What ssh says is kept from its end, however much it is and whenever it comes.
    #[test]
    fn a_process_that_ends_is_asked_why() {
        let script =
            "head -c 3000000 /dev/zero >&2; echo 'u@h: Permission denied (publickey).' >&2; exit 255";
        let mut channel = shell(script, Times::default());
        let error = channel.receive(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NoCredentials, "{error}");
        assert!(channel.said.len() <= SAID_MAX);
    }

    /// Neither one that takes no notice of being asked to, nor one whose standard error is open elsewhere.
    #[test]
    fn a_process_that_is_given_up_is_gone() {
        let mut channel = shell("trap '' TERM; while :; do sleep 1; done", quick());
        let pid = Pid::from_child(&channel.child);
        let error = channel.receive(&mut [0; 1]).unwrap_err();
        timed_out(&error, &channel);
        assert!(rustix::process::test_kill_process(pid).is_err(), "it was ended, and reaped");
    }

    #[test]
    fn what_ssh_says_has_a_kind() {
        for (said, kind) in [
            (
                "No ED25519 host key is known for h and you have requested strict checking.\nHost key verification failed.\n",
                ErrorKind::Untrusted,
            ),
            ("u@h: Permission denied (publickey).\n", ErrorKind::NoCredentials),
            ("ssh: connect to host h port 22: Connection refused\n", ErrorKind::Unreachable),
            ("ssh: Could not resolve hostname h: Name or service not known\n", ErrorKind::Unreachable),
            ("ssh: connect to host h port 22: Connection timed out\n", ErrorKind::Timeout),
            ("Timeout, server 10.0.0.1 not responding.\r\n", ErrorKind::Timeout),
            ("subsystem request failed on channel 0\n", ErrorKind::Unsupported),
            ("", ErrorKind::Unavailable),
        ] {
            assert_eq!(explain(said).kind, kind, "{said}");
        }
    }
}
