//! The options after `-o`, as mount(8), fstab and systemd pass them.
//!
//! Three groups: what the kernel is told, what concerns the vault itself (so that one fstab line can say everything),
//! and what other programs read and we accept without a meaning. Anything else is refused, so that a misspelt `ro`
//! never becomes a writable mount.

use std::path::PathBuf;
use std::time::Duration;

use rustix::mount::MountFlags;
use serde::{Deserialize, Serialize};

use super::error::{ErrorKind, MountError, Result};

/// What the options said, resolved. The last one of several that contradict each other holds, as in mount(8).
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MountOptions {
    /// No writes through this mount.
    pub read_only: bool,
    /// Device files work. Off unless asked for: what a backup contains should not act on the host.
    pub dev: bool,
    /// Set-user-id bits work. Off unless asked for.
    pub suid: bool,
    /// Programs can't be started from it.
    pub noexec: bool,
    /// How access times are kept by the kernel.
    pub atime: Atime,
    /// Directory changes are committed before they return.
    pub dirsync: bool,
    /// All writes are committed before they return.
    pub sync: bool,
    /// Symbolic links are not followed.
    pub nosymfollow: bool,
    /// Change the flags of a mount that is there already ([`super::remount`]).
    pub remount: bool,
    /// Users other than the one that mounts may enter. `None`: the default, which is yes for root.
    pub allow_other: Option<bool>,
    /// What findmnt shows as the source, instead of the vault's path.
    pub fsname: Option<String>,
    /// What concerns the vault.
    pub vault: VaultOptions,
}

/// Access time policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Atime {
    /// The kernel's own default.
    #[default]
    Relatime,
    /// Never.
    Noatime,
    /// Always.
    Strictatime,
}

/// Options for the vault, for fstab lines; each is also a flag of `strongroom mount`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VaultOptions {
    /// File with the passphrase.
    pub passfile: Option<PathBuf>,
    /// Keyfile.
    pub keyfile: Option<PathBuf>,
    /// Name in systemd's credentials directory.
    pub credential: Option<String>,
    /// Mount this snapshot, read-only.
    pub snapshot: Option<String>,
    /// Unmount when unused for so long.
    pub idle: Option<Duration>,
    /// Make a snapshot this often.
    pub snapshot_every: Option<Duration>,
    /// Bound of data in memory that is not yet sealed, in MiB.
    pub dirty_mib: Option<u32>,
    /// Size of the read cache, in MiB.
    pub cache_mib: Option<u32>,
    /// Where to log: a file, `syslog` or `journal`.
    pub log: Option<String>,
    /// Mount over a directory that has entries.
    pub nonempty: bool,
    /// Accept a vault that is older than what this host has seen.
    pub accept_rollback: bool,
}

/// Everything that is known, for the message that refuses something else.
const KNOWN: &str = "ro, rw, allow_other, noallow_other, dev, nodev, suid, nosuid, exec, noexec, atime, noatime, \
relatime, norelatime, strictatime, sync, async, dirsync, nosymfollow, defaults, remount, fsname=NAME; for the vault: passfile=FILE, \
keyfile=FILE, credential=NAME, snapshot=WHICH, idle=DURATION, snapshot_every=DURATION, dirty_mib=N, cache_mib=N, \
log=FILE|syslog|journal, nonempty, accept_rollback; without effect here: auto, noauto, nofail, user, nouser, users, owner, \
group, _netdev, comment=, x-*, X-*, default_permissions, subtype=strongroom";

impl MountOptions {
    /// Parses option strings, each a list separated by commas, in the order given.
    ///
    /// # Errors
    /// `Usage`, naming the option, what is wrong with it and what is known.
    pub fn parse<S: AsRef<str>>(lists: &[S]) -> Result<Self> {
        let words = || lists.iter().flat_map(|list| list.as_ref().split(',')).map(str::trim);
        let mut options = Self { remount: words().any(|word| word == "remount"), ..Self::default() };
        for option in words() {
            if !option.is_empty() {
                options.set(option)?;
            }
        }
        if options.vault.snapshot.is_some() {
            options.read_only = true;
        }
        Ok(options)
    }

    fn set(&mut self, option: &str) -> Result<()> {
        if option.starts_with("x-") || option.starts_with("X-") {
            return Ok(());
        }
        match option.split_once('=') {
            Some((name, value)) => self.set_value(option, name, value),
            None => self.set_flag(option),
        }
    }

    fn set_flag(&mut self, option: &str) -> Result<()> {
        match option {
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "allow_other" => self.allow_other = Some(true),
            "noallow_other" => self.allow_other = Some(false),
            "dev" => self.dev = true,
            "nodev" => self.dev = false,
            "suid" => self.suid = true,
            "nosuid" => self.suid = false,
            "exec" => self.noexec = false,
            "noexec" => self.noexec = true,
            "noatime" => self.atime = Atime::Noatime,
            "atime" | "relatime" => self.atime = Atime::Relatime,
            "strictatime" | "norelatime" => self.atime = Atime::Strictatime,
            "sync" => self.sync = true,
            "async" => self.sync = false,
            "dirsync" => self.dirsync = true,
            "nosymfollow" => self.nosymfollow = true,
            "nonempty" => self.vault.nonempty = true,
            "accept_rollback" => self.vault.accept_rollback = true,
            // `user` and its kin imply these in mount(8); a later option may take them back.
            "user" | "users" | "owner" | "group" => {
                (self.noexec, self.suid, self.dev) = (true, false, false);
            }
            // Seen already: other options mean more or less with it, wherever it stands.
            "remount" => {}
            "defaults" | "auto" | "noauto" | "nofail" | "nouser" | "_netdev" | "default_permissions" => {}
            _ => return Err(unknown(option)),
        }
        Ok(())
    }

    fn set_value(&mut self, option: &str, name: &str, value: &str) -> Result<()> {
        if value.is_empty() && name != "comment" {
            return Err(malformed(option, "it has no value"));
        }
        let vault = &mut self.vault;
        match name {
            "fsname" => self.fsname = Some(check_fsname(value)?.to_string()),
            "passfile" => vault.passfile = Some(PathBuf::from(value)),
            "keyfile" => vault.keyfile = Some(PathBuf::from(value)),
            "credential" => vault.credential = Some(value.to_string()),
            "snapshot" => vault.snapshot = Some(value.to_string()),
            "idle" => vault.idle = Some(duration(option, value)?),
            "snapshot_every" => vault.snapshot_every = Some(duration(option, value)?),
            "dirty_mib" => vault.dirty_mib = Some(mib(option, value)?),
            "cache_mib" => vault.cache_mib = Some(mib(option, value)?),
            "log" => vault.log = Some(value.to_string()),
            "subtype" if value == "strongroom" => {}
            "comment" => {}
            // mount(8) repeats what the mount tables show.
            "user_id" | "group_id" | "max_read" | "blksize" | "rootmode" if self.remount => {}
            _ => return Err(unknown(option)),
        }
        Ok(())
    }

    /// The flags of mount(2).
    pub fn flags(&self) -> MountFlags {
        let mut flags = MountFlags::empty();
        let mut put = |on: bool, flag: MountFlags| {
            if on {
                flags |= flag;
            }
        };
        put(self.read_only, MountFlags::RDONLY);
        put(!self.dev, MountFlags::NODEV);
        put(!self.suid, MountFlags::NOSUID);
        put(self.noexec, MountFlags::NOEXEC);
        put(self.atime == Atime::Noatime, MountFlags::NOATIME);
        put(self.atime == Atime::Relatime, MountFlags::RELATIME);
        put(self.atime == Atime::Strictatime, MountFlags::STRICTATIME);
        put(self.sync, MountFlags::SYNCHRONOUS);
        put(self.dirsync, MountFlags::DIRSYNC);
        put(self.nosymfollow, NOSYMFOLLOW);
        flags
    }

    /// The options for `fusermount3 -o`, which refuses some that root may use.
    pub fn fusermount_list(&self, fsname: &str, allow_other: bool) -> String {
        let mut list = vec![
            format!("fsname={}", escape_commas(fsname)),
            "subtype=strongroom".to_string(),
            "default_permissions".to_string(),
            format!("max_read={}", super::session::MAX_READ),
            if self.read_only { "ro" } else { "rw" }.to_string(),
            if self.dev { "dev" } else { "nodev" }.to_string(),
            if self.suid { "suid" } else { "nosuid" }.to_string(),
        ];
        let mut put = |on: bool, name: &str| {
            if on {
                list.push(name.to_string());
            }
        };
        put(self.noexec, "noexec");
        put(self.atime == Atime::Noatime, "noatime");
        put(self.sync, "sync");
        put(self.dirsync, "dirsync");
        put(allow_other, "allow_other");
        list.join(",")
    }
}

/// `MS_NOSYMFOLLOW` (Linux 5.10), which rustix has no name for.
const NOSYMFOLLOW: MountFlags = MountFlags::from_bits_retain(256);

/// fusermount3 takes `\,` for a comma inside a value.
fn escape_commas(value: &str) -> String {
    value.replace('\\', "\\\\").replace(',', "\\,")
}

/// Refuses names that would break the lists in which the kernel and mount(8) show them.
///
/// # Errors
/// `Usage` for a comma or a control character.
pub fn check_fsname(value: &str) -> Result<&str> {
    if value.contains(',') || value.chars().any(char::is_control) {
        let text = format!("fsname={value:?}: a comma or control character can't stand in it");
        return Err(MountError::new(ErrorKind::Usage, text));
    }
    Ok(value)
}

fn unknown(option: &str) -> MountError {
    MountError::new(ErrorKind::Usage, format!("unknown mount option `{option}`"))
        .hint(format!("known are: {KNOWN}"))
}

fn malformed(option: &str, why: &str) -> MountError {
    MountError::new(ErrorKind::Usage, format!("mount option `{option}`: {why}"))
}

fn mib(option: &str, value: &str) -> Result<u32> {
    match value.parse::<u32>() {
        Ok(n) if (1..=1 << 20).contains(&n) => Ok(n),
        _ => Err(malformed(option, "it takes a number of MiB from 1 to 1048576")),
    }
}

fn duration(option: &str, value: &str) -> Result<Duration> {
    parse_duration(value).ok_or_else(|| malformed(option, "it takes a duration such as 90s, 30m, 4h or 1d"))
}

/// Reads a duration: a number and `s`, `m`, `h` or `d` (seconds without a unit), or several of those in a row, as in
/// `1h30m`. `None` for anything else, for zero, and for more than ten years.
pub fn parse_duration(text: &str) -> Option<Duration> {
    const SECONDS_MAX: u64 = 3_660 * 86_400;
    let mut total: u64 = 0;
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let number: u64 = rest.get(..digits)?.parse().ok()?;
        let tail = rest.get(digits..)?;
        let unit = tail.find(|c: char| c.is_ascii_digit() || c == ' ').unwrap_or(tail.len());
        let scale = match tail.get(..unit)? {
            "" if tail.is_empty() => 1,
            "s" | "sec" => 1,
            "m" | "min" => 60,
            "h" => 3_600,
            "d" => 86_400,
            _ => return None,
        };
        total = total.checked_add(number.checked_mul(scale)?)?;
        rest = tail.get(unit..)?.trim_start();
    }
    (1..=SECONDS_MAX).contains(&total).then(|| Duration::from_secs(total))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<MountOptions> {
        MountOptions::parse(&[text])
    }

    #[test]
    fn defaults_are_safe() {
        let options = parse("").unwrap();
        assert_eq!(options, MountOptions::default());
        assert_eq!(options.flags(), MountFlags::NODEV | MountFlags::NOSUID | MountFlags::RELATIME);
    }

    #[test]
    fn the_last_of_contradicting_options_holds() {
        assert!(!parse("ro,rw").unwrap().read_only);
        assert!(parse("rw,ro").unwrap().read_only);
        let both = MountOptions::parse(&["dev,suid,noexec", "nodev"]).unwrap();
        assert!(!both.dev && both.suid && both.noexec);
        assert!(!parse("user,exec").unwrap().noexec);
        assert!(parse("exec,user").unwrap().noexec);
    }

    #[test]
    fn what_other_programs_read_is_ignored() {
        let text = "defaults,auto,noauto,nofail,_netdev,x-systemd.requires=net.target,X-mount.mkdir,x-a=b=c,comment=,nouser";
        assert_eq!(parse(text).unwrap(), MountOptions::default());
        assert_eq!(parse(" ,, default_permissions , subtype=strongroom,").unwrap(), MountOptions::default());
    }

    #[test]
    fn vault_options_are_read() {
        let options = parse(
            "passfile=/root/enc.txt,keyfile=/k,credential=c,snapshot=latest,idle=1h30m,snapshot_every=2d,dirty_mib=64,\
             cache_mib=8,log=journal,nonempty,fsname=backup",
        )
        .unwrap();
        let vault = &options.vault;
        assert_eq!(vault.passfile.as_deref(), Some(std::path::Path::new("/root/enc.txt")));
        assert_eq!(vault.keyfile.as_deref(), Some(std::path::Path::new("/k")));
        assert_eq!(vault.credential.as_deref(), Some("c"));
        assert_eq!(vault.idle, Some(Duration::from_secs(5_400)));
        assert_eq!(vault.snapshot_every, Some(Duration::from_secs(172_800)));
        assert_eq!((vault.dirty_mib, vault.cache_mib), (Some(64), Some(8)));
        assert_eq!(vault.log.as_deref(), Some("journal"));
        assert!(vault.nonempty);
        assert!(options.read_only, "a snapshot is always read-only");
        assert_eq!(options.fsname.as_deref(), Some("backup"));
    }

    #[test]
    fn unknown_options_are_refused_with_what_is_known() {
        for text in [
            "r0",
            "RO",
            "read-only",
            "passphrase=x",
            "subtype=other",
            "big_writes",
            "uid=0",
            "max_read=1",
            "x",
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Usage, "{text}");
            assert!(error.message.contains(text), "{}", error.message);
            assert!(error.hint.unwrap().contains("allow_other"));
        }
    }

    #[test]
    fn malformed_values_are_refused() {
        for text in [
            "fsname=",
            "idle=",
            "idle=0",
            "idle=soon",
            "idle=-1",
            "idle=1w",
            "dirty_mib=0",
            "dirty_mib=1g",
            "cache_mib=99999999999",
        ] {
            assert_eq!(parse(text).unwrap_err().kind, ErrorKind::Usage, "{text}");
        }
        assert!(check_fsname("a,b").is_err());
        assert!(check_fsname("a\nb").is_err());
        assert!(check_fsname("/srv/my vault").is_ok());
    }

    #[test]
    fn durations() {
        for (text, secs) in [
            ("90", 90),
            ("90s", 90),
            ("5m", 300),
            ("1h", 3_600),
            ("1d", 86_400),
            ("1h 30m", 5_400),
            ("2min", 120),
        ] {
            assert_eq!(parse_duration(text), Some(Duration::from_secs(secs)), "{text}");
        }
        for text in ["", " ", "0", "0s", "m", "1x", "1.5h", "99999999999999999999", "4000d", "-5", "1 2"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn lists_for_fusermount_escape_what_would_split_them() {
        let list = parse("ro,noexec").unwrap().fusermount_list("/srv/a,b\\c", false);
        assert!(list.starts_with("fsname=/srv/a\\,b\\\\c,subtype=strongroom,default_permissions,"), "{list}");
        assert!(list.ends_with("ro,nodev,nosuid,noexec"), "{list}");
    }
}
