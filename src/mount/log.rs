//! Where a daemon's log goes: a file, syslog, or the journal. A mounted vault has no terminal.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use super::error::{ErrorKind, MountError, Result};
use super::status::path_text;

/// What `--log` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogTarget {
    /// Appended to this file, which is made with mode 0600.
    File(#[serde(with = "path_text")] PathBuf),
    /// The datagram socket /dev/log, facility daemon.
    Syslog,
    /// systemd's journal, with fields.
    Journal,
    /// Standard error.
    Stderr,
}

impl LogTarget {
    /// Reads the argument of `--log`.
    pub fn parse(text: &str) -> Self {
        match text {
            "syslog" => Self::Syslog,
            "journal" => Self::Journal,
            "stderr" | "-" => Self::Stderr,
            file => Self::File(PathBuf::from(file)),
        }
    }

    /// Makes a file's path absolute, for a process that changes its working directory.
    ///
    /// # Errors
    /// When the working directory is gone.
    pub fn absolute(self) -> io::Result<Self> {
        Ok(match self {
            Self::File(path) => Self::File(std::path::absolute(path)?),
            other => other,
        })
    }
}

/// Starts logging for this process. `filter` is in the syntax of `RUST_LOG`, such as `info` or `strongroom=debug`.
///
/// # Errors
/// `Usage` for a bad filter; `Io` when the target can't be opened, or logging was started before.
pub fn init(target: &LogTarget, filter: &str) -> Result<()> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|e| MountError::new(ErrorKind::Usage, format!("log filter {filter:?}: {e}")))?;
    let format = tracing_subscriber::fmt::layer().with_ansi(false);
    let layer: Box<dyn Layer<Registry> + Send + Sync> = match target {
        LogTarget::File(path) => {
            let file =
                open_log(path).map_err(|e| MountError::io(format!("log file {}", path.display()), e))?;
            format.with_writer(Mutex::new(file)).boxed()
        }
        LogTarget::Stderr => format.with_writer(io::stderr).boxed(),
        LogTarget::Syslog => {
            let syslog =
                Syslog::connect(Path::new("/dev/log")).map_err(|e| MountError::io("syslog (/dev/log)", e))?;
            format.without_time().with_level(false).with_writer(syslog).boxed()
        }
        LogTarget::Journal => tracing_journald::layer()
            .map_err(|e| MountError::io("the journal's socket", e))?
            .with_syslog_identifier("strongroom".into())
            .boxed(),
    };
    tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .try_init()
        .map_err(|e| MountError::io("logging", e))
}

fn open_log(path: &Path) -> io::Result<File> {
    File::options().append(true).create(true).mode(0o600).open(path)
}

/// Sends each event as one datagram in the form of RFC 3164.
#[derive(Debug)]
struct Syslog {
    socket: UnixDatagram,
    path: PathBuf,
}

/// Facility "daemon".
const FACILITY: u8 = 3;
/// What syslog daemons accept in one datagram.
const DATAGRAM_BYTES_MAX: usize = 8 << 10;

impl Syslog {
    fn connect(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        // A stuck syslog daemon must not stop a backup.
        socket.set_nonblocking(true)?;
        socket.connect(path)?;
        Ok(Self { socket, path: path.to_path_buf() })
    }

    fn severity(level: Level) -> u8 {
        match level {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        }
    }
}

impl<'a> MakeWriter<'a> for Syslog {
    type Writer = SyslogLine<'a>;

    fn make_writer(&'a self) -> SyslogLine<'a> {
        SyslogLine { log: self, severity: Self::severity(Level::INFO), text: Vec::new() }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> SyslogLine<'a> {
        SyslogLine { log: self, severity: Self::severity(*meta.level()), text: Vec::new() }
    }
}

/// One event on its way; sent when dropped.
#[derive(Debug)]
struct SyslogLine<'a> {
    log: &'a Syslog,
    severity: u8,
    text: Vec<u8>,
}

impl Write for SyslogLine<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SyslogLine<'_> {
    fn datagram(&self) -> Vec<u8> {
        // The time is left out: /dev/log's reader stamps it, and RFC 3164 stamps have no zone.
        let mut line =
            format!("<{}>strongroom[{}]: ", FACILITY * 8 + self.severity, std::process::id()).into_bytes();
        line.extend(self.text.trim_ascii_end().iter().map(|b| if *b < b' ' { b' ' } else { *b }));
        line.truncate(DATAGRAM_BYTES_MAX);
        line
    }
}

impl Drop for SyslogLine<'_> {
    fn drop(&mut self) {
        let line = self.datagram();
        if self.log.socket.send(&line).is_err() {
            // The syslog daemon may have been restarted. There is no place to report a log that can't be written.
            drop(self.log.socket.connect(&self.log.path).and_then(|()| self.log.socket.send(&line)));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read() {
        assert_eq!(LogTarget::parse("syslog"), LogTarget::Syslog);
        assert_eq!(LogTarget::parse("journal"), LogTarget::Journal);
        let file = LogTarget::parse("sub/x.log").absolute().unwrap();
        assert!(matches!(file, LogTarget::File(path) if path.is_absolute()));
    }

    #[test]
    fn a_log_file_is_private_and_appended_to() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        for text in ["one\n", "two\n"] {
            open_log(&path).unwrap().write_all(text.as_bytes()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn syslog_datagrams_have_priority_and_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let receiver = UnixDatagram::bind(&path).unwrap();
        let syslog = Syslog::connect(&path).unwrap();
        let layer = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .without_time()
            .with_level(false)
            .with_writer(syslog);
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || tracing::error!("disk\nfull"));
        let mut buf = [0; 1024];
        let n = receiver.recv(&mut buf).unwrap();
        let text = std::str::from_utf8(&buf[..n]).unwrap();
        assert!(text.starts_with(&format!("<27>strongroom[{}]: ", std::process::id())), "{text}");
        assert!(text.ends_with("full") && !text.contains('\n'), "{text}");
    }
}
