//! What an endpoint really honours: tried out, not believed.

use serde::Serialize;

use super::{Answer, Bytes, Checksum, ErrorKind, Key, Put, Remote, Result, list};

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
    let put = remote.put_if_absent(&key, &Bytes::source(TEXT), &Checksum::of(TEXT))?;
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
        Err(e) if e.kind == ErrorKind::Conflict => {
            check("create-only", true, Verdict::Yes, "a name that is taken is refused")
        }
        Err(e) => return Err(e),
        Ok(_) => {
            check("create-only", true, Verdict::No, "it overwrites an object that it was told to create")
        }
    });
    checks.push(damage(remote, &damaged)?);
    let mut listed = false;
    list(remote, PROBE, &mut |item| {
        listed |= item.name == PROBE && item.len == TEXT.len() as u64;
        Ok(())
    })?;
    checks.push(match listed {
        true => check("list", true, Verdict::Yes, "a new object is listed at once"),
        false => check("list", true, Verdict::No, "an object that was stored is not listed"),
    });
    let features = remote.features()?;
    checks.push(check("verification", false, Verdict::Yes, features.verification));
    checks.push(answered("conditional-create", false, features.create_only));
    checks.push(answered("versioning", false, features.versioning));
    checks.push(answered("object-lock", false, features.object_lock));
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
        Ok(_) => {
            if let Err(error) = remote.delete(key) {
                tracing::debug!(%error, "the damaged test object stays");
            }
            Ok(check(
                name,
                false,
                Verdict::No,
                "bytes that don't fit their SHA-256 are accepted; MD5 or reading back has to do",
            ))
        }
        Err(e) if matches!(e.kind, ErrorKind::Corrupt | ErrorKind::Damaged) => {
            Ok(check(name, false, Verdict::Yes, "bytes that don't fit their SHA-256 are refused"))
        }
        Err(e) => Err(e),
    }
}
