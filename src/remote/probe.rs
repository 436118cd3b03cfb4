//! What an endpoint really honours: tried out, not believed.

use serde::Serialize;

use super::lock::readable;
use super::{
    Answer, Bytes, Checksum, ErrorKind, Key, LockMode, Locked, Names, Put, Remote, RemoteError, Result,
    Retention, list,
};
use crate::env::Time;
use crate::format::header::HEADER_LEN_MAX;

/// The object that is written. It stays where the credentials can't delete, which is as it should be.
const PROBE: &str = "strongroom-test";
/// An object that no endpoint should accept: its checksum is wrong.
const DAMAGED: &str = "strongroom-test-damaged";
const TEXT: &[u8] = b"Strongroom wrote this to see what this place can do. It may be removed.\n";
const OTHER: &[u8] = b"If you read this, this place overwrites what it was told to create.\n";

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it should be.
    Yes,
    /// Not so.
    No,
    /// It could not be found out.
    Unknown,
    /// There is no such thing with this kind of remote.
    NotApplicable,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was checked.
    pub name: &'static str,
    /// What came of it.
    pub verdict: Verdict,
    /// Shipping is not safe without it.
    pub required: bool,
    /// What was seen.
    pub detail: String,
}

/// All checks of one remote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Probe {
    /// The remote.
    pub url: String,
    /// In the order in which they were made.
    pub checks: Vec<Check>,
}

impl Probe {
    /// Whether nothing that is required is missing.
    #[must_use]
    pub fn is_good(&self) -> bool {
        !self.checks.iter().any(|check| check.required && check.verdict == Verdict::No)
    }
}

fn check(name: &'static str, required: bool, verdict: Verdict, detail: impl Into<String>) -> Check {
    Check { name, verdict, required, detail: detail.into() }
}

fn answered(name: &'static str, required: bool, answer: Answer) -> Check {
    let (verdict, detail) = match answer {
        Answer::Yes(text) => (Verdict::Yes, text),
        Answer::No(text) => (Verdict::No, text),
        Answer::Unknown(text) => (Verdict::Unknown, text),
        Answer::NotApplicable(text) => (Verdict::NotApplicable, text),
    };
    check(name, required, verdict, detail)
}

/// Tries a remote out: writes one small object, reads it, tries to overwrite it and to have damage accepted.
///
/// # Errors
/// When the remote can't be used at all: not reached, not allowed to write or read.
pub fn probe(remote: &dyn Remote) -> Result<Probe> {
    let known = "a name of letters and dashes";
    let (key, damaged) = (Key::new(PROBE).expect(known), Key::new(DAMAGED).expect(known));
    let mut checks = Vec::new();
    let locked = remote.lock();
    if locked.is_some()
        && let Err(e) = remote.require_lock()
    {
        return match e.kind {
            // Nothing was put, and nothing will be.
            ErrorKind::NoObjectLock => Ok(Probe {
                url: remote.url(),
                checks: vec![check("object-lock", true, Verdict::No, e.message)],
            }),
            _ => Err(e),
        };
    }
    let put = match remote.put_if_absent(&key, &Bytes::source(TEXT), &Checksum::of(TEXT)) {
        Err(e) if e.kind == ErrorKind::NoObjectLock => {
            let checks = vec![check("object-lock", true, Verdict::No, e.message)];
            return Ok(Probe { url: remote.url(), checks });
        }
        other => other?,
    };
    checks.push(check(
        "write",
        true,
        Verdict::Yes,
        match put {
            Put::Created => "a new object was stored",
            Put::Same => "the test object was there already",
        },
    ));
    checks.push(read_back(remote, &key)?);
    checks.push(match remote.put_if_absent(&key, &Bytes::source(OTHER), &Checksum::of(OTHER)) {
        Err(e) if e.kind == ErrorKind::Conflict => check(
            "create-only",
            true,
            Verdict::Yes,
            match locked {
                // Nothing was asked: the name is known to be taken.
                Some(_) => "a name that is taken is not put again; what others put over it is not read",
                None => "a name that is taken is refused",
            },
        ),
        Err(e) => return Err(e),
        Ok(_) => {
            check("create-only", true, Verdict::No, "it overwrites an object that it was told to create")
        }
    });
    checks.push(damage(remote, &damaged)?);
    // What follows is not to blame that on anything else.
    let overwrites = checks.iter().any(|check| check.name == "create-only" && check.verdict == Verdict::No);
    let there = if overwrites { OTHER } else { TEXT };
    let mut listed = false;
    list(remote, PROBE, &mut |item| {
        listed |= item.name == PROBE && item.len == there.len() as u64;
        Ok(())
    })?;
    checks.push(match listed {
        true => check("list", true, Verdict::Yes, "a new object is listed at once"),
        false => check("list", true, Verdict::No, "an object that was stored is not listed"),
    });
    let features = remote.features()?;
    checks.push(check("verification", false, Verdict::Yes, features.verification));
    let create_only = match overwrites {
        true => Answer::No("what was to be created only is passed over".into()),
        false => features.create_only,
    };
    checks.push(answered("conditional-create", false, create_only));
    checks.push(answered("versioning", locked.is_some(), features.versioning));
    checks.push(answered("object-lock", locked.is_some(), features.object_lock));
    if let Some(locked) = locked {
        lock_checks(remote, &key, &locked, put == Put::Created, &mut checks)?;
        return Ok(Probe { url: remote.url(), checks });
    }
    checks.push(match remote.delete(&key) {
        Ok(()) => {
            check("no-delete", false, Verdict::No, "these credentials can delete; ship needs no such right")
        }
        Err(e) if e.kind == ErrorKind::Denied => {
            check("no-delete", false, Verdict::Yes, "these credentials can't delete, as it should be")
        }
        Err(e) => check("no-delete", false, Verdict::Unknown, e.message),
    });
    Ok(Probe { url: remote.url(), checks })
}

/// What was put must be locked, as it was asked for, and stay so whatever we try. `is_new`: it was put just now.
fn lock_checks(
    remote: &dyn Remote,
    key: &Key,
    locked: &Locked,
    is_new: bool,
    checks: &mut Vec<Check>,
) -> Result<()> {
    let wanted = locked.lock.mode;
    let is_good = |kept: &Retention| {
        kept.until >= locked.lock.enough(locked.now)
            && (kept.mode == wanted || kept.mode == LockMode::Compliance)
    };
    let asked = match remote.retention(key, None) {
        // A test object of earlier days may be locked for a shorter time, less strictly, or not at all.
        Ok(kept) if !kept.is_some_and(|kept| is_good(&kept)) => {
            let mut retention = locked.lock.retention(locked.now);
            if let Some(kept) = kept {
                retention.mode = stricter(kept.mode, wanted);
                retention.until = retention.until.max(kept.until);
            }
            remote.retain(key, None, &retention).and_then(|()| remote.retention(key, None))
        }
        other => other,
    };
    let not_so = |text: String| check("retention", true, Verdict::No, text);
    let kept = match asked {
        Ok(Some(kept)) if is_good(&kept) => kept,
        Ok(Some(kept)) => {
            let text =
                format!("an object that is put to be locked ({}) is not: {}", wanted.name(), shown(&kept));
            checks.push(not_so(text));
            return Ok(());
        }
        Ok(None) => {
            checks.push(not_so("an object that is put to be locked is not".into()));
            return Ok(());
        }
        Err(e) if e.kind == ErrorKind::Denied => {
            let text = "these credentials may not lock objects, or not ask for how long they are (s3:PutObjectRetention, \
                        s3:GetObjectRetention)";
            checks.push(not_so(text.into()));
            return Ok(());
        }
        Err(e) => return Err(e),
    };
    checks.push(kept_as_wanted(&kept, wanted, is_new));
    checks.push(shortening(remote, key, &kept)?);
    checks.push(match remote.delete(key) {
        Ok(()) => check("no-delete", true, Verdict::No, "an object that was locked was deleted"),
        Err(e) if e.kind == ErrorKind::Denied && is_about_locks(&e) => {
            check("no-delete", true, Verdict::Yes, "refused, because it is locked")
        }
        Err(e) if e.kind == ErrorKind::Denied => {
            let text = format!("refused: these credentials can't delete ({})", e.message);
            check("no-delete", true, Verdict::Yes, text)
        }
        Err(e) => untold("no-delete", &e),
    });
    for prefix in ["packs/", "snapshots/"] {
        list(remote, prefix, &mut |_| Ok(()))?;
    }
    for name in ["vault.json", "vault.json.bak"] {
        let header = Key::new(name).expect("a name of letters and a dot");
        remote.versions(&header, HEADER_LEN_MAX as u64)?;
    }
    let findings = remote.findings();
    checks.push(found("delete-markers", &findings.hidden, "under delete markers (and read all the same)"));
    checks.push(found("overwritten", &findings.overwritten, "written over (the first versions are read)"));
    Ok(())
}

fn stricter(one: LockMode, other: LockMode) -> LockMode {
    if one == LockMode::Compliance { one } else { other }
}

fn shown(kept: &Retention) -> String {
    format!("the test object is locked ({}) until {}", kept.mode.name(), readable(kept.until))
}

/// An object that is locked for long enough may be locked more strictly than was asked for.
fn kept_as_wanted(kept: &Retention, wanted: LockMode, is_new: bool) -> Check {
    let text = shown(kept);
    match (kept.mode == wanted, is_new) {
        (true, _) => check("retention", true, Verdict::Yes, text),
        (false, true) => {
            let text = format!("{text}, and {} was asked for: nobody could lift such locks", wanted.name());
            check("retention", true, Verdict::No, text)
        }
        (false, false) => {
            let text = format!(
                "{text}: it is of earlier days, what a new one gets ({}?) is not known",
                wanted.name()
            );
            check("retention", true, Verdict::Unknown, text)
        }
    }
}

/// Tries to shorten a lock. That this is refused proves something only if setting locks is not refused altogether: so it is
/// lengthened first.
fn shortening(remote: &dyn Remote, key: &Key, kept: &Retention) -> Result<Check> {
    let name = "no-shortening";
    let longer = Retention { until: Time { secs: kept.until.secs.saturating_add(1), nanos: 0 }, ..*kept };
    if let Err(e) = remote.retain(key, None, &longer) {
        return Ok(untold(name, &e));
    }
    let shorter = Retention { until: Time { secs: kept.until.secs.saturating_sub(3600), nanos: 0 }, ..*kept };
    let tried = remote.retain(key, None, &shorter);
    if tried.is_ok() {
        return Ok(check(name, true, Verdict::No, "a lock was shortened"));
    }
    // Endpoints have many words for it. What counts is that it is locked as before.
    let now = remote.retention(key, None)?;
    Ok(match (now.is_some_and(|now| now.until >= kept.until && now.mode == kept.mode), tried) {
        (true, Err(e)) if !e.kind.is_retryable() => {
            check(name, true, Verdict::Yes, "refused, although these credentials may set locks")
        }
        (true, Err(e)) => untold(name, &e),
        _ => check(name, true, Verdict::No, "it was refused, and the lock was shortened"),
    })
}

/// Something failed for another reason than the one that counts.
fn untold(name: &'static str, error: &RemoteError) -> Check {
    check(name, true, Verdict::Unknown, format!("it could not be tried out: {}", error.message))
}

/// Whether a refusal is one of the lock, not one of the rights of who asked.
fn is_about_locks(error: &RemoteError) -> bool {
    let text = error.message.to_ascii_lowercase();
    ["object lock", "objectlock", "worm", "retention period", "legal hold"]
        .iter()
        .any(|words| text.contains(words))
}

/// Whether somebody was there.
fn found(name: &'static str, names: &Names, what: &str) -> Check {
    match names.count() {
        0 => check(name, true, Verdict::Yes, "none"),
        n => check(name, true, Verdict::No, format!("{n} objects are {what}: {}", names.some())),
    }
}

fn read_back(remote: &dyn Remote, key: &Key) -> Result<Check> {
    let whole = remote.get(key, 0..TEXT.len() as u64)?;
    let part = remote.get(key, 11..16)?;
    Ok(match whole == TEXT && part == TEXT[11..16] {
        true => check("read", true, Verdict::Yes, "whole objects and ranges come back as they were written"),
        false => check("read", true, Verdict::No, "other bytes come back than were written"),
    })
}

/// An object whose bytes are not what its checksum says must not be accepted.
fn damage(remote: &dyn Remote, key: &Key) -> Result<Check> {
    let name = "checksums";
    match remote.put_if_absent(key, &Bytes::source(TEXT), &Checksum::of(OTHER)) {
        Ok(_) => {}
        Err(refused) if matches!(refused.kind, ErrorKind::Corrupt | ErrorKind::Damaged) => {
            match remote.head(key) {
                Ok(_) => {}
                Err(e) if e.kind == ErrorKind::NotFound => {
                    return Ok(match refused.kind {
                        ErrorKind::Damaged => {
                            check(name, false, Verdict::Yes, "bytes that don't fit their SHA-256 are refused")
                        }
                        // It was found out here: of the far side that says nothing.
                        _ => check(name, false, Verdict::NotApplicable, "this program compares them itself"),
                    });
                }
                Err(e) => return Err(e),
            }
        }
        Err(e) => return Err(e),
    }
    if let Err(error) = remote.delete(key) {
        tracing::debug!(%error, "the damaged test object stays");
    }
    let text = "bytes that don't fit their SHA-256 are stored; MD5 or reading back has to do";
    Ok(check(name, false, Verdict::No, text))
}
