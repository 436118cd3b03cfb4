//! The headers that a remote has: two copies, and where it keeps versions what lies under them.
//!
//! Anybody who may write there can put a header of a higher generation on top, with the vault's id and public keys, which are
//! no secret. Without a key it can't be told from a true one. With a key it can: the root secret stands in a slot of some
//! header, and its MAC tells which headers were written by who has it. The newest of those counts, and no other. A key that
//! opens only an older one was removed or changed since, and is refused.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io;

use crate::crypto::{Budget, Claim, Credential, CryptoError, Newest, VaultKeys, check_header, unlock_newest};
use crate::format::{Header, ParsedHeader};
use crate::remote::{self, ErrorKind, Key, Remote, RemoteError, Version, Versions};
use crate::snapshot::open::Unlocked;
use crate::store::error::StoreError;
use crate::store::header::{COPIES, HEADER_BYTES_MAX, LoadedHeader, load_by};

use super::error::Result;

/// A header that stands there.
#[derive(Clone, Debug)]
struct Candidate {
    parsed: ParsedHeader,
    bytes: Vec<u8>,
    /// How many versions of its copy are older, as far as is known.
    age: usize,
}

/// The header of the vault at a remote. Without a key it can't be known to be true.
#[derive(Debug)]
pub struct RemoteHeader {
    /// What it says.
    pub loaded: LoadedHeader,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// All that could be meant, this one as well; newest first.
    candidates: Vec<Candidate>,
    /// Why none of them can be chosen without a key.
    doubt: Option<String>,
    /// The warning says no more than that its copies differ.
    only_differs: bool,
    /// So many versions of both copies were not looked into.
    left_out: u64,
}

/// A header that a key has proved.
pub struct Proved {
    /// The vault, unlocked by it.
    pub unlocked: Unlocked,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What to say of headers that nobody with the key wrote, if there are any that would hide this one; or of headers that may
    /// hide a newer one, since there are more than are looked into.
    pub alarm: Option<String>,
}

/// What was read of one copy: its versions, the one first that counts.
pub(super) type CopyRead = remote::Result<Versions>;

/// Reads a copy of the header, with all its versions.
pub(super) fn read_copy(remote: &dyn Remote, path: &str) -> CopyRead {
    let key =
        Key::new(path).ok_or_else(|| RemoteError::new(ErrorKind::Local, "a header's name is no object's"))?;
    let mut versions = remote.all_versions(&key, HEADER_BYTES_MAX)?;
    if versions.list.is_empty() {
        // Missing, or too long to be a header: this says which.
        let bytes = remote::read(remote, &key, HEADER_BYTES_MAX)?;
        versions.list.push(Version { id: String::new(), bytes, latest: true, age: 0 });
    }
    Ok(versions)
}

/// Reads both copies side by side.
pub(super) fn read_copies(remote: &dyn Remote) -> [CopyRead; 2] {
    std::thread::scope(|scope| {
        let second = scope.spawn(|| read_copy(remote, COPIES[1]));
        let first = read_copy(remote, COPIES[0]);
        let second = second.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        [first, second]
    })
}

/// Reads the header of the vault at a remote.
///
/// # Errors
/// `NotAVault` when there is none; what is wrong with both copies; what the remote says.
pub fn remote_header(remote: &dyn Remote) -> Result<RemoteHeader> {
    RemoteHeader::choose(read_copies(remote))
}

impl RemoteHeader {
    /// Chooses the header that counts for who has no key. A copy that can't be read, for a reason that may be its own
    /// (archived, under another's key), counts as missing, if the other one will do.
    pub(super) fn choose(copies: [CopyRead; 2]) -> Result<Self> {
        let mut read = Vec::new();
        let mut unreadable: Option<(&str, RemoteError)> = None;
        let mut left_out = 0;
        for (path, copy) in COPIES.into_iter().zip(copies) {
            let copy = match copy {
                Ok(versions) => {
                    left_out += versions.left_out;
                    Ok(versions.list)
                }
                Err(e) if e.kind == ErrorKind::NotFound => Err(io::ErrorKind::NotFound),
                Err(e) if e.kind == ErrorKind::Corrupt => Err(io::ErrorKind::InvalidData),
                Err(e) if e.kind.may_be_one_objects() => {
                    unreadable.get_or_insert((path, e));
                    Err(io::ErrorKind::NotFound)
                }
                Err(e) => return Err(e.into()),
            };
            read.push((path, copy));
        }
        let first = |copy: &std::result::Result<Vec<Version>, io::ErrorKind>| {
            copy.as_ref().ok().and_then(|versions| versions.first()).map(|version| version.bytes.clone())
        };
        let only_differs =
            read.iter().all(|(_, copy)| first(copy).is_some_and(|bytes| Header::parse(&bytes).is_ok()));
        let loaded = load_by(&mut |path| match read.iter().find(|(name, _)| *name == path) {
            Some((_, copy @ Ok(_))) => first(copy).ok_or(io::ErrorKind::NotFound.into()),
            Some((_, Err(kind))) => Err((*kind).into()),
            None => Err(io::ErrorKind::NotFound.into()),
        });
        let mut candidates: Vec<Candidate> = Vec::new();
        // There may be thousands, most of them forged.
        let mut known: HashMap<blake3::Hash, usize> = HashMap::new();
        for Version { bytes, age, .. } in read.into_iter().filter_map(|(_, versions)| versions.ok()).flatten()
        {
            let id = blake3::hash(&bytes);
            if let Some(known) = known.get(&id).and_then(|at| candidates.get_mut(*at)) {
                known.age = known.age.min(age);
            } else if let Ok(parsed) = Header::parse(&bytes) {
                known.insert(id, candidates.len());
                candidates.push(Candidate { parsed, bytes, age });
            }
        }
        // Stable: of one generation the one first that counts for more there.
        candidates.sort_by_key(|one| Reverse(one.parsed.header.generation));
        let (mut loaded, doubt) = match (loaded, candidates.first()) {
            (Ok(loaded), _) => (loaded, None),
            (Err(StoreError::HeaderDamaged(doubt)), Some(one)) => {
                (LoadedHeader { parsed: one.parsed.clone(), warning: None }, Some(doubt))
            }
            (Err(error @ StoreError::Newer { .. }), _) => return Err(error.into()),
            // What stands in the other one is not known.
            (Err(error), _) => return Err(unreadable.map_or_else(|| error.into(), |(_, e)| e.into())),
        };
        if let Some((path, e)) = unreadable {
            loaded.warning =
                Some(format!("{path} can't be read there, the other copy is used: {}", e.message));
        }
        // The one that was chosen is one of them.
        let bytes = candidates.iter().find(|one| one.parsed == loaded.parsed);
        let bytes = bytes.map(|one| one.bytes.clone()).ok_or(StoreError::NotAVault)?;
        Ok(Self { loaded, bytes, candidates, doubt, only_differs, left_out })
    }

    /// That not all versions were looked into.
    fn too_many(&self) -> String {
        format!(
            "{} versions of the header there were not looked into, since there are so many that only the oldest and the newest \
             are",
            self.left_out
        )
    }

    /// What it says.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.loaded.parsed.header
    }

    /// Refuses what can't be chosen without a key.
    ///
    /// # Errors
    /// `HeaderDamaged`, when two headers of one generation differ.
    pub fn without_key(&self) -> std::result::Result<(), StoreError> {
        match &self.doubt {
            Some(doubt) => Err(StoreError::HeaderDamaged(format!("{doubt}; a key tells which one is true"))),
            None => Ok(()),
        }
    }

    /// How many different headers stand there.
    #[must_use]
    pub fn count(&self) -> usize {
        self.candidates.len()
    }

    /// Whether this header stands there, too.
    #[must_use]
    pub fn has(&self, header: &Header) -> bool {
        self.candidates.iter().any(|one| one.parsed.header == *header)
    }

    /// The same with the header of a copy of the vault, which counts before others of its generation; without those of
    /// other vaults.
    #[must_use]
    pub fn beside(&self, ours: &ParsedHeader) -> Self {
        let mut candidates = self.candidates.clone();
        let of_vault = |header: &Header| (header.vault_id, header.signing_key);
        candidates
            .retain(|one| one.parsed != *ours && of_vault(&one.parsed.header) == of_vault(&ours.header));
        // It was here before any of those was looked at.
        candidates.iter_mut().for_each(|one| one.age += 1);
        let bytes = ours.header.encode(|_| ours.mac);
        candidates.insert(0, Candidate { parsed: ours.clone(), bytes, age: 0 });
        candidates.sort_by_key(|one| Reverse(one.parsed.header.generation));
        let loaded = LoadedHeader { parsed: ours.clone(), warning: None };
        Self {
            loaded,
            bytes: ours.header.encode(|_| ours.mac),
            candidates,
            doubt: None,
            only_differs: false,
            left_out: self.left_out,
        }
    }

    /// Unlocks the newest header that somebody wrote who has the key, among those that were looked into. `say` is told why a
    /// key is refused that would open an older one, and what was not looked into where no key opens.
    ///
    /// # Errors
    /// `WrongKey` when no slot opens, or only one of an older header; `HeaderTampered` when none is true.
    pub fn unlock(
        &self,
        credential: &Credential,
        say: &mut dyn FnMut(&str),
    ) -> std::result::Result<Proved, StoreError> {
        // Another vault's, which the same key may open, is looked at last.
        let is_of = |parsed: &ParsedHeader| {
            (parsed.header.vault_id, parsed.header.signing_key)
                == (self.header().vault_id, self.header().signing_key)
        };
        let (mut these, others): (Vec<_>, Vec<_>) =
            self.candidates.iter().partition(|one| is_of(&one.parsed));
        let mut budget = Budget::default();
        if !others.is_empty() {
            budget.keep_half();
        }
        let mut opened = unlock_newest(&claims(&these), credential, &mut budget);
        if opened.is_err() && !others.is_empty() {
            budget.use_kept();
            match (unlock_newest(&claims(&others), credential, &mut budget), &opened) {
                (Ok(found), _) => (these, opened) = (others, Ok(found)),
                // Something was tried after all.
                (wrong @ Err(CryptoError::WrongKey(_)), Err(CryptoError::Kdf(_))) => opened = wrong,
                _ => {}
            }
        }
        if opened.is_err() && budget.skipped() > 0 {
            say(&format!(
                "{} key slots of the headers there were not tried: they ask for more work than slots of one vault do, as those \
                 of forged headers may. A keyfile and a recovery key are tried in all of them",
                budget.skipped()
            ));
        }
        if opened.is_err() && self.left_out > 0 {
            say(&format!("{}: this key may be one of a header among those", self.too_many()));
        }
        let headers: Vec<&ParsedHeader> = these.iter().map(|one| &one.parsed).collect();
        let generation = |at: usize| headers[at].header.generation;
        let (at, root, slot) = match opened? {
            Newest::Opens { at, root, slot } => (at, root, slot),
            Newest::OnlyOlder { at, newest } => {
                say(&format!(
                    "this key opens an older header there (generation {}), and not the newest (generation {}): it was removed or \
                     changed since, and is good for nothing any more",
                    generation(at),
                    generation(newest)
                ));
                return Err(StoreError::WrongKey);
            }
        };
        let rival = |other: &usize| *other != at && generation(*other) >= generation(at);
        let alarm = (0..headers.len()).find(rival).map(|other| match check_header(&root, headers[other]) {
            Ok(()) => format!(
                "two headers of generation {} are there, both true: keys were changed in two copies of this vault",
                generation(at)
            ),
            Err(_) => format!(
                "a header there (generation {}) was written by nobody who has the key; it is passed over, and the true one is \
                 used (generation {})",
                generation(other),
                generation(at)
            ),
        });
        let Candidate { parsed, bytes, .. } = these[at];
        let stranger = || "a header of another vault lies over this vault's".to_string();
        let mut alarm = alarm.or_else(|| (!is_of(parsed)).then(stranger));
        let header = parsed.header.clone();
        let keys = VaultKeys::derive(&root, &header)?.into();
        // The alarm says why they differ.
        let warning = self.loaded.warning.clone().filter(|_| alarm.is_none() || !self.only_differs);
        if self.left_out > 0 {
            let text = format!(
                "{}: whether a newer one is among those, and whether this key was removed in it, is not known",
                self.too_many()
            );
            alarm = Some(alarm.map_or_else(|| text.clone(), |alarm| format!("{alarm}; and {text}")));
        }
        Ok(Proved { unlocked: Unlocked { header, root, keys, slot, warning }, bytes: bytes.clone(), alarm })
    }
}

fn claims<'a>(list: &[&'a Candidate]) -> Vec<Claim<'a>> {
    list.iter().map(|one| Claim { parsed: &one.parsed, age: one.age }).collect()
}

#[cfg(test)]
mod tests;
