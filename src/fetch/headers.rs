//! The headers that a remote has: two copies, and where it keeps versions what lies under them.
//!
//! Anybody who may write there can put a header of a higher generation on top, with the vault's id and public keys, which are
//! no secret. Without a key it can't be told from a true one. With a key it can: the root secret stands in a slot of some
//! header, and its MAC tells which headers were written by who has it. The newest of those counts, and no other. A key that
//! opens only an older one was removed or changed since, and is refused.

use std::cmp::Reverse;
use std::io;

use crate::crypto::{Credential, Newest, VaultKeys, check_header, unlock_newest};
use crate::format::{Header, ParsedHeader};
use crate::remote::{self, ErrorKind, Key, Remote, RemoteError};
use crate::snapshot::open::Unlocked;
use crate::store::error::StoreError;
use crate::store::header::{HEADER_BACKUP_PATH, HEADER_BYTES_MAX, HEADER_PATH, LoadedHeader, load_by};

use super::error::Result;

/// Both copies of a header.
pub(super) const COPIES: [&str; 2] = [HEADER_PATH, HEADER_BACKUP_PATH];

/// The header of the vault at a remote. Without a key it can't be known to be true.
#[derive(Debug)]
pub struct RemoteHeader {
    /// What it says.
    pub loaded: LoadedHeader,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// All that could be meant, this one as well; newest first.
    candidates: Vec<(ParsedHeader, Vec<u8>)>,
    /// Why none of them can be chosen without a key.
    doubt: Option<String>,
}

/// A header that a key has proved.
pub struct Proved {
    /// The vault, unlocked by it.
    pub unlocked: Unlocked,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What to say of headers that nobody with the key wrote, if there are any that would hide this one.
    pub alarm: Option<String>,
}

/// What was read of one copy: the bytes of all its versions, the one first that counts.
pub(super) type CopyRead = remote::Result<Vec<Vec<u8>>>;

/// Reads a copy of the header, with all its versions.
pub(super) fn read_copy(remote: &dyn Remote, path: &str) -> CopyRead {
    let key =
        Key::new(path).ok_or_else(|| RemoteError::new(ErrorKind::Local, "a header's name is no object's"))?;
    let versions = remote.versions(&key, HEADER_BYTES_MAX)?;
    if versions.is_empty() {
        // Missing, or too long to be a header: this says which.
        return remote::read(remote, &key, HEADER_BYTES_MAX).map(|bytes| vec![bytes]);
    }
    Ok(versions.into_iter().map(|version| version.bytes).collect())
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
    pub(super) fn choose(copies: [CopyRead; 2]) -> Result<Self> {
        let mut read = Vec::new();
        for (path, copy) in COPIES.into_iter().zip(copies) {
            let copy = match copy {
                Ok(versions) => Ok(versions),
                Err(e) if e.kind == ErrorKind::NotFound => Err(io::ErrorKind::NotFound),
                Err(e) if e.kind == ErrorKind::Corrupt => Err(io::ErrorKind::InvalidData),
                Err(e) => return Err(e.into()),
            };
            read.push((path, copy));
        }
        let loaded = load_by(&mut |path| match read.iter().find(|(name, _)| *name == path) {
            Some((_, Ok(versions))) => versions.first().cloned().ok_or(io::ErrorKind::NotFound.into()),
            Some((_, Err(kind))) => Err((*kind).into()),
            None => Err(io::ErrorKind::NotFound.into()),
        });
        let mut candidates: Vec<(ParsedHeader, Vec<u8>)> = Vec::new();
        for bytes in read.into_iter().filter_map(|(_, versions)| versions.ok()).flatten() {
            if let Ok(parsed) = Header::parse(&bytes)
                && !candidates.iter().any(|(_, other)| *other == bytes)
            {
                candidates.push((parsed, bytes));
            }
        }
        // Stable: of one generation the one first that counts for more there.
        candidates.sort_by_key(|(parsed, _)| Reverse(parsed.header.generation));
        let (loaded, doubt) = match (loaded, candidates.first()) {
            (Ok(loaded), _) => (loaded, None),
            (Err(StoreError::HeaderDamaged(doubt)), Some((parsed, _))) => {
                (LoadedHeader { parsed: parsed.clone(), warning: None }, Some(doubt))
            }
            (Err(error), _) => return Err(error.into()),
        };
        // The one that was chosen is one of them.
        let bytes = candidates.iter().find(|(parsed, _)| *parsed == loaded.parsed);
        let bytes = bytes.map(|(_, bytes)| bytes.clone()).ok_or(StoreError::NotAVault)?;
        Ok(Self { loaded, bytes, candidates, doubt })
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
        self.candidates.iter().any(|(parsed, _)| parsed.header == *header)
    }

    /// The same with the header of a copy of the vault, which counts before others of its generation; without those of
    /// other vaults.
    #[must_use]
    pub fn beside(&self, ours: &ParsedHeader) -> Self {
        let mut candidates = self.candidates.clone();
        let of_vault = |header: &Header| (header.vault_id, header.signing_key);
        candidates.retain(|(parsed, _)| parsed != ours && of_vault(&parsed.header) == of_vault(&ours.header));
        candidates.insert(0, (ours.clone(), ours.header.encode(|_| ours.mac)));
        candidates.sort_by_key(|(parsed, _)| Reverse(parsed.header.generation));
        let loaded = LoadedHeader { parsed: ours.clone(), warning: None };
        Self { loaded, bytes: ours.header.encode(|_| ours.mac), candidates, doubt: None }
    }

    /// Unlocks the newest header that somebody wrote who has the key. `say` is told why a key is refused that would open an
    /// older one.
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
            self.candidates.iter().partition(|(parsed, _)| is_of(parsed));
        let parsed = |list: &[&(ParsedHeader, Vec<u8>)]| -> Vec<ParsedHeader> {
            list.iter().map(|(parsed, _)| parsed.clone()).collect()
        };
        let mut headers = parsed(&these);
        let mut opened = unlock_newest(&headers, credential);
        let hidden = opened.is_err() && !others.is_empty();
        if hidden && let Ok(found) = unlock_newest(&parsed(&others), credential) {
            (headers, these, opened) = (parsed(&others), others, Ok(found));
        }
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
        let alarm = (0..headers.len()).find(rival).map(|other| match check_header(&root, &headers[other]) {
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
        let (parsed, bytes) = these[at];
        let stranger = || "a header of another vault lies over this vault's".to_string();
        let alarm = alarm.or_else(|| (!is_of(parsed)).then(stranger));
        let header = parsed.header.clone();
        let keys = VaultKeys::derive(&root, &header)?.into();
        let warning = self.loaded.warning.clone().filter(|_| alarm.is_none());
        Ok(Proved { unlocked: Unlocked { header, root, keys, slot, warning }, bytes: bytes.clone(), alarm })
    }
}
