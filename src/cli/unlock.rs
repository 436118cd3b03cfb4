//! Where a command takes its passphrase or key from.
//!
//! A secret never comes from argv or the environment: both can be read by others on the machine.

use std::fs::File;
use std::io::{BufRead, IsTerminal, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;
use zeroize::Zeroizing;

use super::error::{CliError, CliResult, ExitCode};
use crate::crypto::{Credential, RecoveryKey, SecretBytes};
use crate::private;

/// The largest passphrase that is read.
const PASSPHRASE_BYTES_MAX: u64 = 64 << 10;
/// The largest keyfile that is read (FORMAT section 3).
const KEYFILE_BYTES_MAX: u64 = 1 << 20;
/// The smallest keyfile.
const KEYFILE_BYTES_MIN: usize = 32;

/// The options that say how to unlock a vault; without any, the passphrase is asked for.
#[derive(Args, Clone, Debug, Default)]
#[group(multiple = false)]
pub(crate) struct UnlockArgs {
    /// Read the passphrase from standard input (as EncFS does)
    #[arg(short = 'S', long = "stdin-pass", alias = "stdinpass", help_heading = "Unlocking")]
    pub(crate) stdin_pass: bool,
    /// Read the passphrase from FILE; nobody but its owner may be able to read it
    #[arg(long, value_name = "FILE", help_heading = "Unlocking")]
    pub(crate) passfile: Option<PathBuf>,
    /// Unlock with a keyfile (32 random bytes or more)
    #[arg(long, value_name = "FILE", help_heading = "Unlocking")]
    pub(crate) keyfile: Option<PathBuf>,
    /// Run CMD with sh and take the passphrase from its output
    #[arg(long, value_name = "CMD", help_heading = "Unlocking")]
    pub(crate) extpass: Option<String>,
    /// Read the passphrase from the open file descriptor N
    #[arg(long, value_name = "N", help_heading = "Unlocking")]
    pub(crate) pass_fd: Option<u32>,
    /// Unlock with the recovery key: asked for, or read from standard input when that is no terminal
    #[arg(long, help_heading = "Unlocking")]
    pub(crate) recovery_key: bool,
    /// Read the passphrase from NAME in systemd's credentials directory
    #[arg(long, value_name = "NAME", help_heading = "Unlocking")]
    pub(crate) credential: Option<String>,
}

impl UnlockArgs {
    /// Whether nothing was said, so that the passphrase is asked for.
    pub(crate) fn is_prompt(&self) -> bool {
        !self.stdin_pass
            && self.passfile.is_none()
            && self.keyfile.is_none()
            && self.extpass.is_none()
            && self.pass_fd.is_none()
            && !self.recovery_key
            && self.credential.is_none()
    }

    /// Obtains the credential. `confirm` asks twice on a terminal, for a new passphrase; `what` names it in prompts.
    pub(crate) fn credential(&self, what: &str, confirm: bool) -> CliResult<Credential> {
        if self.recovery_key {
            return Ok(Credential::Recovery(read_recovery_key()?));
        }
        if let Some(path) = &self.keyfile {
            return Ok(Credential::Keyfile(read_keyfile(path)?));
        }
        let bytes = if self.stdin_pass {
            read_limited(std::io::stdin().lock(), "standard input")?
        } else if let Some(path) = &self.passfile {
            read_private(path, PASSPHRASE_BYTES_MAX)?
        } else if let Some(command) = &self.extpass {
            run_extpass(command)?
        } else if let Some(fd) = self.pass_fd {
            let name = format!("file descriptor {fd}");
            let file = File::open(format!("/proc/self/fd/{fd}"))
                .map_err(|e| CliError::new(ExitCode::Usage, format!("{name} can't be read: {e}")))?;
            read_limited(file, &name)?
        } else if let Some(name) = &self.credential {
            read_systemd_credential(name)?
        } else {
            return prompt(what, confirm).map(Credential::Passphrase);
        };
        let bytes = strip_newline(bytes);
        if bytes.is_empty() {
            return Err(CliError::usage("the passphrase is empty"));
        }
        Ok(Credential::Passphrase(SecretBytes::new(bytes.to_vec())))
    }
}

/// Takes one trailing newline away, as EncFS and gocryptfs do.
fn strip_newline(mut bytes: Zeroizing<Vec<u8>>) -> Zeroizing<Vec<u8>> {
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    bytes
}

fn read_limited(source: impl Read, name: &str) -> CliResult<Zeroizing<Vec<u8>>> {
    // Reserved at once, so that no half-filled buffer is left behind in freed memory.
    let mut bytes =
        Zeroizing::new(Vec::with_capacity(usize::try_from(PASSPHRASE_BYTES_MAX + 1).unwrap_or(65_537)));
    source
        .take(PASSPHRASE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| CliError::new(ExitCode::Io, format!("reading the passphrase from {name}: {e}")))?;
    if bytes.len() as u64 > PASSPHRASE_BYTES_MAX {
        return Err(CliError::usage(format!("the passphrase from {name} is longer than 64 KiB")));
    }
    Ok(bytes)
}

/// Reads a file that holds a secret, and refuses it when somebody else can read it.
fn read_private(path: &Path, max: u64) -> CliResult<Zeroizing<Vec<u8>>> {
    let shown = path.display();
    let io = |e: std::io::Error| CliError::new(ExitCode::Io, format!("reading {shown}: {e}"));
    let file = File::open(path).map_err(io)?;
    // Asked of the open descriptor, so that the file that is judged is the file that is read.
    let meta = file.metadata().map_err(io)?;
    if meta.is_file() && private::is_open_to_others(path, meta.mode()) {
        let text =
            format!("{shown} can be read by others (mode {:04o}): it is refused", meta.mode() & 0o7777);
        let hint = match private::is_systemds(path) {
            true => "systemd makes it 0400, or 0440 with an ACL: something else changed it".to_string(),
            false => format!("chmod 600 {shown}"),
        };
        return Err(CliError::new(ExitCode::UnsafeFile, text).hint(hint));
    }
    if meta.is_file() && meta.len() > max {
        return Err(CliError::usage(format!(
            "{shown} is larger than {max} bytes: that is no passphrase or key"
        )));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(max + 1).unwrap_or(usize::MAX >> 1)));
    file.take(max + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > max {
        return Err(CliError::usage(format!(
            "{shown} is larger than {max} bytes: that is no passphrase or key"
        )));
    }
    Ok(bytes)
}

/// Reads and checks a keyfile.
pub(crate) fn read_keyfile(path: &Path) -> CliResult<SecretBytes> {
    let bytes = read_private(path, KEYFILE_BYTES_MAX)?;
    if bytes.len() < KEYFILE_BYTES_MIN {
        let shown = path.display();
        return Err(CliError::usage(format!("{shown} has {} bytes; a keyfile has at least 32", bytes.len()))
            .hint(format!("make one with: (umask 077; head -c 32 /dev/urandom > {shown})")));
    }
    Ok(SecretBytes::new(bytes.to_vec()))
}

fn run_extpass(command: &str) -> CliResult<Zeroizing<Vec<u8>>> {
    let failed = |what: String| CliError::new(ExitCode::Failure, format!("--extpass: {what}"));
    let mut child = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::inherit())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| failed(format!("can't run sh: {e}")))?;
    let output = child.stdout.take().ok_or_else(|| failed("no output".into()))?;
    let bytes = read_limited(output, "the program")?;
    let status = child.wait().map_err(|e| failed(e.to_string()))?;
    if !status.success() {
        return Err(failed(format!("the program failed ({status})")));
    }
    Ok(bytes)
}

fn read_systemd_credential(name: &str) -> CliResult<Zeroizing<Vec<u8>>> {
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Err(CliError::usage(format!("{name:?} is no credential name")));
    }
    let dir = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
        CliError::usage("--credential works only in a systemd service: $CREDENTIALS_DIRECTORY is not set")
            .hint(format!("give the unit LoadCredential={name}:/path or LoadCredentialEncrypted="))
    })?;
    read_private(&Path::new(&dir).join(name), PASSPHRASE_BYTES_MAX)
}

fn prompt(what: &str, confirm: bool) -> CliResult<SecretBytes> {
    if !std::io::stdin().is_terminal() {
        return Err(CliError::usage("no passphrase: standard input is no terminal").hint(
            "give -S to read it from standard input, or --passfile, --keyfile, --extpass, --credential",
        ));
    }
    let ask = |text: String| {
        rpassword::prompt_password(text)
            .map(Zeroizing::new)
            .map_err(|e| CliError::new(ExitCode::Io, format!("reading the passphrase: {e}")))
    };
    let first = ask(format!("{what}: "))?;
    if first.is_empty() {
        return Err(CliError::usage("the passphrase is empty"));
    }
    if confirm {
        let second = ask(format!("{what}, again: "))?;
        if *first != *second {
            return Err(CliError::usage("the two passphrases differ"));
        }
    }
    Ok(SecretBytes::new(first.as_bytes().to_vec()))
}

fn read_recovery_key() -> CliResult<RecoveryKey> {
    let text = if std::io::stdin().is_terminal() {
        Zeroizing::new(
            rpassword::prompt_password("Recovery key: ")
                .map_err(|e| CliError::new(ExitCode::Io, format!("reading the recovery key: {e}")))?,
        )
    } else {
        let mut line = Zeroizing::new(String::with_capacity(256));
        std::io::stdin()
            .lock()
            .take(4096)
            .read_line(&mut line)
            .map_err(|e| CliError::new(ExitCode::Io, format!("reading the recovery key: {e}")))?;
        line
    };
    RecoveryKey::parse(&text).map_err(|e| {
        CliError::new(ExitCode::WrongKey, format!("that is no recovery key: {e}")).hint(
            "it begins with SR1- and has eight groups of seven characters; case and dashes don't matter",
        )
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn secret_file(dir: &Path, bytes: &[u8], mode: u32) -> PathBuf {
        let path = dir.join("secret");
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn passphrase(args: &UnlockArgs) -> CliResult<Vec<u8>> {
        match args.credential("Passphrase", false)? {
            Credential::Passphrase(bytes) => Ok(bytes.expose().to_vec()),
            _ => panic!("not a passphrase"),
        }
    }

    #[test]
    fn a_passfile_loses_one_newline_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        for (text, expected) in [
            (&b"secret\n"[..], &b"secret"[..]),
            (b"secret\r\n", b"secret\r"),
            (b"a b\n\n", b"a b\n"),
            (b"x", b"x"),
        ] {
            let args =
                UnlockArgs { passfile: Some(secret_file(dir.path(), text, 0o600)), ..Default::default() };
            assert_eq!(passphrase(&args).unwrap(), expected);
        }
    }

    #[test]
    fn a_passfile_that_others_can_read_is_refused_with_the_command_to_run() {
        let dir = tempfile::tempdir().unwrap();
        for mode in [0o640, 0o604, 0o644, 0o660, 0o601] {
            let args = UnlockArgs {
                passfile: Some(secret_file(dir.path(), b"secret\n", mode)),
                ..Default::default()
            };
            let error = passphrase(&args).unwrap_err();
            assert_eq!(error.code, ExitCode::UnsafeFile);
            assert!(error.hint.unwrap().starts_with("chmod 600 "));
        }
    }

    #[test]
    fn empty_and_oversized_secrets_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let empty =
            UnlockArgs { passfile: Some(secret_file(dir.path(), b"\n", 0o600)), ..Default::default() };
        assert_eq!(passphrase(&empty).unwrap_err().code, ExitCode::Usage);
        let big = UnlockArgs {
            passfile: Some(secret_file(dir.path(), &vec![b'x'; 70_000], 0o600)),
            ..Default::default()
        };
        assert_eq!(passphrase(&big).unwrap_err().code, ExitCode::Usage);
        assert_eq!(
            read_keyfile(&secret_file(dir.path(), &[1; 31], 0o600)).map(drop).unwrap_err().code,
            ExitCode::Usage
        );
        assert!(read_keyfile(&secret_file(dir.path(), &[1; 32], 0o600)).is_ok());
    }

    #[test]
    fn extpass_takes_the_output_and_refuses_a_failure() {
        let args = |cmd: &str| UnlockArgs { extpass: Some(cmd.into()), ..Default::default() };
        assert_eq!(passphrase(&args("echo from-program")).unwrap(), b"from-program");
        assert!(passphrase(&args("echo x; exit 3")).unwrap_err().message.contains("failed"));
    }

    #[test]
    fn credential_names_can_not_leave_the_directory() {
        for name in ["../x", "a/b", "", ".hidden"] {
            let args = UnlockArgs { credential: Some(name.into()), ..Default::default() };
            assert_eq!(passphrase(&args).unwrap_err().code, ExitCode::Usage);
        }
    }
}
