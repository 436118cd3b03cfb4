//! One SFTP session: an `ssh` process with the sftp subsystem at its far end.
//!
//! The system's OpenSSH does everything that has to do with trust: host keys (never accepted unseen), user keys, agent,
//! ssh_config, jump hosts. It asks nothing (`BatchMode`).

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::{Duration, Instant};

use super::super::location::Settings;
use super::super::{ErrorKind, RemoteError, Result, Source, Times, read_piece};
use super::channel::Channel;
use super::wire::*;

/// Requests under way at a time: 2 MiB of data, which is what an SSH channel holds.
const WINDOW: usize = 64;
/// The longest wait for a connection, in seconds.
const CONNECT_SECONDS: u64 = 15;
/// A listing may take so long for each name, beside the time for an answer. OpenSSH sends a hundred names at a time.
const NAME_TIME: Duration = Duration::from_millis(50);
/// The longest name in a listing that is kept: longer ones no filesystem has, and none is of a vault.
const NAME_LEN_MAX: usize = 255;

/// Where to log in.
#[derive(Clone, Debug)]
pub(super) struct Login {
    pub(super) user: Option<String>,
    pub(super) host: String,
    pub(super) port: Option<u16>,
    pub(super) settings: Settings,
    /// How patient the session is.
    pub(super) times: Times,
}

impl Login {
    fn command(&self) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.arg("-oBatchMode=yes").arg("-oStrictHostKeyChecking=yes").arg("-oUpdateHostKeys=no");
        let connect = self.times.answer.as_secs().clamp(1, CONNECT_SECONDS);
        ssh.arg(format!("-oConnectTimeout={connect}"));
        ssh.arg("-oServerAliveInterval=15").arg("-oServerAliveCountMax=3");
        ssh.arg("-oForwardAgent=no").arg("-oForwardX11=no").arg("-oClearAllForwardings=yes");
        ssh.arg("-oPermitLocalCommand=no").arg("-oRequestTTY=no").arg("-oCompression=no");
        if let Some(path) = &self.settings.ssh_config {
            ssh.arg("-F").arg(path);
        }
        if let Some(path) = &self.settings.known_hosts {
            ssh.arg(format!("-oUserKnownHostsFile={}", quote(path))).arg("-oGlobalKnownHostsFile=none");
        }
        if let Some(path) = &self.settings.identity_file {
            ssh.arg("-i").arg(path).arg("-oIdentitiesOnly=yes");
        }
        if let Some(port) = self.port {
            ssh.arg("-p").arg(port.to_string());
        }
        if let Some(user) = &self.user {
            ssh.arg("-l").arg(user);
        }
        ssh.arg("-s").arg("--").arg(&self.host).arg("sftp");
        ssh
    }
}

/// A path in an option of ssh, which splits at blanks and replaces what follows a percent sign.
fn quote(path: &std::path::Path) -> String {
    format!("\"{}\"", path.display().to_string().replace('%', "%%"))
}

/// A connected session.
#[derive(Debug)]
pub(super) struct Session {
    channel: Channel,
    extensions: BTreeSet<String>,
    next_id: u32,
}

/// An answer: its type and what follows the id.
struct Reply {
    kind: u8,
    body: Vec<u8>,
}

/// A file or directory that is open at the far side.
pub(super) type Handle = Vec<u8>;

impl Session {
    /// Connects and logs in.
    pub(super) fn connect(login: &Login) -> Result<Self> {
        let mut session = Self::over(Channel::start(login.command(), login.times)?);
        session.handshake()?;
        // What ssh said of keys that did not help tells nothing of what comes later.
        session.channel.forget_said();
        Ok(session)
    }

    fn over(channel: Channel) -> Self {
        Self { channel, extensions: BTreeSet::new(), next_id: 0 }
    }

    fn handshake(&mut self) -> Result<()> {
        self.channel.begin(0);
        self.channel.send(&Writer::new(INIT).u32(3).finish())?;
        let packet = self.receive()?;
        if packet.first() != Some(&VERSION) {
            return Err(self.break_with("the far side does not speak SFTP; does its login print something?"));
        }
        let mut reader = Reader::new(&packet[1..]);
        if reader.u32()? < 3 {
            return Err(self.break_with("the SFTP server is older than version 3"));
        }
        while !reader.is_empty() {
            let name = String::from_utf8_lossy(reader.string()?).into_owned();
            reader.string()?;
            self.extensions.insert(name);
        }
        Ok(())
    }

    /// Whether it can't be used any more.
    pub(super) fn is_broken(&self) -> bool {
        self.channel.is_broken()
    }

    /// Whether the server has an extension.
    pub(super) fn knows(&self, extension: &str) -> bool {
        self.extensions.contains(extension)
    }

    fn break_with(&mut self, what: &str) -> RemoteError {
        self.channel.give_up(RemoteError::new(ErrorKind::Corrupt, what))
    }

    fn receive(&mut self) -> Result<Vec<u8>> {
        let mut head = [0; 4];
        self.channel.receive(&mut head)?;
        let len = u32::from_be_bytes(head) as usize;
        if len == 0 || len > PACKET_MAX {
            return Err(self.break_with("the SFTP server sends packets of a size that none has"));
        }
        let mut packet = vec![0; len];
        self.channel.receive(&mut packet)?;
        Ok(packet)
    }

    /// Sends a request whose id is filled in by `make`.
    fn request(&mut self, make: impl FnOnce(u32) -> Writer) -> Result<u32> {
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        self.channel.send(&make(id).finish())?;
        Ok(id)
    }

    fn reply(&mut self) -> Result<(u32, Reply)> {
        let mut packet = self.receive()?;
        if packet.len() < 5 {
            return Err(self.break_with("the SFTP server sends packets that make no sense"));
        }
        let id = Reader::new(&packet[1..5]).u32()?;
        let kind = packet[0];
        packet.drain(..5);
        Ok((id, Reply { kind, body: packet }))
    }

    /// Sends a request and waits for its answer.
    fn call(&mut self, make: impl FnOnce(u32) -> Writer) -> Result<Reply> {
        self.channel.begin(0);
        self.exchange(make)
    }

    fn exchange(&mut self, make: impl FnOnce(u32) -> Writer) -> Result<Reply> {
        let id = self.request(make)?;
        let (answered, reply) = self.reply()?;
        if answered != id {
            return Err(self.break_with("the SFTP server answers what was not asked"));
        }
        Ok(reply)
    }

    /// The answer must be of this type; a status is an error.
    fn expect(&mut self, kind: u8, what: &str, reply: Reply) -> Result<Vec<u8>> {
        if reply.kind == kind {
            return Ok(reply.body);
        }
        match self.status(&reply)? {
            OK => Err(self.break_with("the SFTP server answers with a status where it has to say more")),
            code => Err(status_error(what, code)),
        }
    }

    fn status(&mut self, reply: &Reply) -> Result<u32> {
        if reply.kind != STATUS {
            return Err(self.break_with("the SFTP server answers what was not asked"));
        }
        Reader::new(&reply.body).u32()
    }

    fn done(&mut self, what: &str, reply: &Reply) -> Result<()> {
        match self.status(reply)? {
            OK => Ok(()),
            code => Err(status_error(what, code)),
        }
    }

    pub(super) fn open(&mut self, path: &str, flags: u32) -> Result<Handle> {
        let reply =
            self.call(|id| Writer::new(OPEN).u32(id).string(path.as_bytes()).u32(flags).mode(0o600))?;
        let body = self.expect(HANDLE, path, reply)?;
        Ok(Reader::new(&body).string()?.to_vec())
    }

    pub(super) fn close(&mut self, handle: &Handle) -> Result<()> {
        let reply = self.call(|id| Writer::new(CLOSE).u32(id).string(handle))?;
        self.done("closing", &reply)
    }

    pub(super) fn fstat(&mut self, handle: &Handle) -> Result<Attrs> {
        let reply = self.call(|id| Writer::new(FSTAT).u32(id).string(handle))?;
        let body = self.expect(ATTRS, "describing a file", reply)?;
        Reader::new(&body).attrs()
    }

    pub(super) fn stat(&mut self, path: &str, follow: bool) -> Result<Attrs> {
        let kind = if follow { STAT } else { LSTAT };
        let reply = self.call(|id| Writer::new(kind).u32(id).string(path.as_bytes()))?;
        let body = self.expect(ATTRS, path, reply)?;
        Reader::new(&body).attrs()
    }

    pub(super) fn mkdir(&mut self, path: &str) -> Result<()> {
        let reply = self.call(|id| Writer::new(MKDIR).u32(id).string(path.as_bytes()).mode(0o700))?;
        self.done(path, &reply)
    }

    pub(super) fn remove(&mut self, path: &str) -> Result<()> {
        let reply = self.call(|id| Writer::new(REMOVE).u32(id).string(path.as_bytes()))?;
        self.done(path, &reply)
    }

    /// Gives a file a name that nothing has. Version 3 says that it fails where something has it.
    pub(super) fn rename(&mut self, from: &str, to: &str) -> Result<()> {
        let reply =
            self.call(|id| Writer::new(RENAME).u32(id).string(from.as_bytes()).string(to.as_bytes()))?;
        self.done(to, &reply)
    }

    /// Gives a file a name in place of whatever has it.
    pub(super) fn rename_over(&mut self, from: &str, to: &str) -> Result<()> {
        let reply = self.call(|id| {
            let packet = Writer::new(EXTENDED).u32(id).string(b"posix-rename@openssh.com");
            packet.string(from.as_bytes()).string(to.as_bytes())
        })?;
        self.done(to, &reply)
    }

    /// Makes a file of `len` bytes durable.
    pub(super) fn fsync(&mut self, handle: &Handle, len: u64) -> Result<()> {
        self.channel.begin_sync(len);
        let reply =
            self.exchange(|id| Writer::new(EXTENDED).u32(id).string(b"fsync@openssh.com").string(handle))?;
        self.done("making a file durable", &reply)
    }

    /// Returns the free bytes of the filesystem that holds `path`.
    pub(super) fn free(&mut self, path: &str) -> Result<u64> {
        let name = b"statvfs@openssh.com";
        let reply = self.call(|id| Writer::new(EXTENDED).u32(id).string(name).string(path.as_bytes()))?;
        let body = self.expect(EXTENDED_REPLY, path, reply)?;
        let mut reader = Reader::new(&body);
        let (_block, fragment, _blocks, _free) = (reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?);
        Ok(fragment.saturating_mul(reader.u64()?))
    }

    /// Writes a whole source, with many requests under way; `seen` gets its bytes in order.
    pub(super) fn write_all(
        &mut self,
        handle: &Handle,
        source: &dyn Source,
        seen: &mut dyn FnMut(&[u8]),
    ) -> Result<()> {
        self.channel.begin(source.len());
        let mut waiting = BTreeSet::new();
        let mut buf = vec![0; CHUNK];
        let mut off = 0;
        let mut failed = None;
        while off < source.len() || !waiting.is_empty() {
            if off < source.len() && waiting.len() < WINDOW && failed.is_none() {
                match read_piece(source, &mut buf, off) {
                    Ok(n) => {
                        seen(&buf[..n]);
                        let at = off;
                        off += n as u64;
                        let id = self.request(|id| {
                            Writer::new(WRITE).u32(id).string(handle).u64(at).string(&buf[..n])
                        })?;
                        waiting.insert(id);
                    }
                    Err(e) => failed = Some(RemoteError::source(&e)),
                }
                continue;
            }
            if waiting.is_empty() {
                break;
            }
            let (id, reply) = self.reply()?;
            if !waiting.remove(&id) {
                return Err(self.break_with("the SFTP server answers what was not asked"));
            }
            // The answers that are still under way are taken in before the failure is told.
            if let Err(e) = self.done("writing", &reply) {
                if self.is_broken() {
                    return Err(e);
                }
                failed = failed.or(Some(e));
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Reads `len` bytes at `start`, in order, with many requests under way.
    pub(super) fn read_exact(&mut self, handle: &Handle, start: u64, len: usize) -> Result<Vec<u8>> {
        self.channel.begin(len as u64);
        let mut bytes = vec![0; len];
        let mut waiting: BTreeMap<u32, (usize, usize)> = BTreeMap::new();
        // What is still to be asked for: first what came short, then the rest.
        let mut again: Vec<(usize, usize)> = Vec::new();
        let mut next = 0;
        let mut failed = None;
        loop {
            let wanted = (failed.is_none() && waiting.len() < WINDOW).then(|| {
                again.pop().or_else(|| {
                    let n = CHUNK.min(len - next);
                    next += n;
                    (n > 0).then_some((next - n, n))
                })
            });
            if let Some((at, n)) = wanted.flatten() {
                let off = start + at as u64;
                let ask = u32::try_from(n).unwrap_or(u32::MAX);
                let id = self.request(|id| Writer::new(READ).u32(id).string(handle).u64(off).u32(ask))?;
                waiting.insert(id, (at, n));
                continue;
            }
            if waiting.is_empty() {
                break;
            }
            let (id, reply) = self.reply()?;
            let Some((at, n)) = waiting.remove(&id) else {
                return Err(self.break_with("the SFTP server answers what was not asked"));
            };
            if reply.kind == DATA {
                let data = Reader::new(&reply.body).string()?;
                if data.is_empty() || data.len() > n {
                    return Err(self.break_with("the SFTP server sends other lengths than were asked for"));
                }
                bytes[at..at + data.len()].copy_from_slice(data);
                if data.len() < n {
                    again.push((at + data.len(), n - data.len()));
                }
            } else {
                let error = match self.status(&reply)? {
                    EOF => RemoteError::new(ErrorKind::Corrupt, "it is shorter than it should be"),
                    OK => return Err(self.break_with("the SFTP server answers a read with nothing")),
                    code => status_error("reading", code),
                };
                failed = failed.or(Some(error));
            }
        }
        failed.map_or(Ok(bytes), Err)
    }

    /// Lists a directory: names that are text, with their attributes; at most `max`.
    pub(super) fn list(&mut self, path: &str, max: usize) -> Result<Vec<(String, Attrs)>> {
        let reply = self.call(|id| Writer::new(OPENDIR).u32(id).string(path.as_bytes()))?;
        let body = self.expect(HANDLE, path, reply)?;
        let handle = Reader::new(&body).string()?.to_vec();
        // Names that are left out count as well, or a server could go on with them for ever.
        let (mut items, mut seen) = (Vec::new(), 0);
        let begun = Instant::now();
        loop {
            // Each answer has a deadline; a name at a time, they could still go on for years.
            let given = self.channel.patience() + NAME_TIME * u32::try_from(seen).unwrap_or(u32::MAX);
            if begun.elapsed() > given {
                return Err(self.channel.too_slow(given));
            }
            let reply = self.call(|id| Writer::new(READDIR).u32(id).string(&handle))?;
            if reply.kind == STATUS {
                match self.status(&reply)? {
                    EOF => break,
                    code => return Err(status_error(path, code)),
                }
            }
            let body = self.expect(NAME, path, reply)?;
            let mut reader = Reader::new(&body);
            let count = reader.u32()?;
            if count == 0 {
                return Err(self.break_with("the SFTP server lists without end"));
            }
            for _ in 0..count {
                let name = std::str::from_utf8(reader.string()?).map(String::from);
                reader.string()?;
                let attrs = reader.attrs()?;
                seen += 1;
                if seen > max {
                    return Err(self.break_with("the SFTP server lists more than any vault has"));
                }
                // No name of ours is longer than one may be on the server's disk.
                let is_name = |name: &String| name != "." && name != ".." && name.len() <= NAME_LEN_MAX;
                items.extend(name.ok().filter(is_name).map(|name| (name, attrs)));
            }
        }
        self.close(&handle)?;
        Ok(items)
    }
}

fn status_error(what: &str, code: u32) -> RemoteError {
    let (kind, text) = match code {
        NO_SUCH_FILE => (ErrorKind::NotFound, "no such file"),
        PERMISSION_DENIED => (ErrorKind::Denied, "permission denied"),
        FAILURE => (ErrorKind::Unavailable, "the server says only that it failed"),
        OP_UNSUPPORTED => (ErrorKind::Unsupported, "the server can't do this"),
        EOF => (ErrorKind::Corrupt, "it ends early"),
        _ => (ErrorKind::Unavailable, "the server failed"),
    };
    RemoteError::new(kind, format!("{what}: {text}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Read, Write};
    use std::thread::JoinHandle;

    use super::super::channel::tests::channel_with;
    use super::*;

    /// A session with a server that answers each request as `answer` says, until the session is gone. Returns as well
    /// what counts the requests.
    fn session_with(times: Times, answer: fn(u8, u32) -> Writer) -> (Session, JoinHandle<usize>) {
        let (channel, theirs) = channel_with(times);
        let server = std::thread::spawn(move || {
            let mut count = 0;
            let mut head = [0; 9];
            while (&theirs).read_exact(&mut head).is_ok() {
                let len = u32::from_be_bytes(head[..4].try_into().unwrap()) as usize;
                (&theirs).read_exact(&mut vec![0; len - 5]).unwrap();
                let id = u32::from_be_bytes(head[5..].try_into().unwrap());
                count += 1;
                if (&theirs).write_all(&answer(head[4], id).finish()).is_err() {
                    break;
                }
            }
            count
        });
        (Session::over(channel), server)
    }

    #[test]
    fn names_that_are_left_out_do_not_make_a_listing_endless() {
        let (mut session, server) = session_with(Times::default(), |kind, id| match kind {
            OPENDIR => Writer::new(HANDLE).u32(id).string(b"h"),
            READDIR => (0..10).fold(Writer::new(NAME).u32(id).u32(10), |packet, n| {
                let name: &[u8] = if n % 2 == 0 { b"." } else { b"\xff\xfe" };
                packet.string(name).string(b"").u32(0)
            }),
            _ => Writer::new(STATUS).u32(id).u32(OP_UNSUPPORTED),
        });
        let error = session.list("packs", 1000).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
        assert!(session.is_broken());
        drop(session);
        assert_eq!(server.join().unwrap(), 102, "one OPENDIR, and 101 READDIR of ten names");
    }

    /// Each answer is in time, and brings a single name.
    #[test]
    fn names_that_trickle_are_given_up() {
        let times = Times { answer: Duration::from_millis(400), ..Times::default() };
        let (mut session, server) = session_with(times, |kind, id| match kind {
            OPENDIR => Writer::new(HANDLE).u32(id).string(b"h"),
            _ => {
                std::thread::sleep(2 * NAME_TIME);
                Writer::new(NAME).u32(id).u32(1).string(b".").string(b"").u32(0)
            }
        });
        let error = session.list("packs", 1 << 20).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Timeout, "{error}");
        drop(session);
        assert!(server.join().unwrap() < 1000);
    }

    #[test]
    fn ssh_asks_nothing_and_trusts_nobody_unseen() {
        let login = Login {
            user: Some("backup".into()),
            host: "host".into(),
            port: Some(2222),
            settings: Settings { known_hosts: Some("/a b/k%h".into()), ..Settings::default() },
            times: Times { answer: Duration::from_millis(4900), ..Times::default() },
        };
        let command = login.command();
        let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
        for arg in [
            "-oBatchMode=yes",
            "-oStrictHostKeyChecking=yes",
            "-oForwardAgent=no",
            "-oConnectTimeout=4",
            "-oUserKnownHostsFile=\"/a b/k%%h\"",
        ] {
            assert!(args.iter().any(|a| a == arg), "{arg} is missing in {args:?}");
        }
        assert_eq!(args[args.len() - 4..], ["-s", "--", "host", "sftp"]);
    }
}
