//! POSIX access control lists: kept as the attributes that the kernel shows, checked by the kernel. What is done here
//! is what a filesystem owes them: mode and list agree, and new files inherit the default list of their directory
//! (POSIX 1003.1e draft 17, section 23).

use super::error::FsResult;
use super::txn::Txn;
use crate::format::tree::FileType;
use crate::store::live::Table;
use crate::store::records::{InodeRow, xattr_key};
use rustix::io::Errno;

const ACCESS: &[u8] = b"system.posix_acl_access";
const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const ENTRY_LEN: usize = 8;
const NO_ID: u32 = u32::MAX;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: u16,
    perm: u16,
    id: u32,
}

/// A list that obeys the rules: each class once, named entries ascending, a mask if there are any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Acl(Vec<Entry>);

/// Returns whether this is one of the two attributes that hold lists.
pub(super) fn is_acl(name: &[u8]) -> bool {
    name == ACCESS || name == DEFAULT
}

impl Acl {
    /// Reads the kernel's form. `None` for a list without entries, which stands for none. EINVAL for a bad one.
    fn parse(value: &[u8]) -> FsResult<Option<Self>> {
        let (version, rest) = value.split_first_chunk::<4>().ok_or(Errno::INVAL)?;
        if u32::from_le_bytes(*version) != VERSION || rest.len() % ENTRY_LEN != 0 {
            return Err(Errno::INVAL.into());
        }
        let mut entries = Vec::with_capacity(rest.len() / ENTRY_LEN);
        for raw in rest.chunks_exact(ENTRY_LEN) {
            entries.push(Entry {
                tag: u16::from_le_bytes([raw[0], raw[1]]),
                perm: u16::from_le_bytes([raw[2], raw[3]]),
                id: u32::from_le_bytes([raw[4], raw[5], raw[6], raw[7]]),
            });
        }
        if entries.is_empty() {
            return Ok(None);
        }
        let acl = Self(entries);
        if acl.is_valid() { Ok(Some(acl)) } else { Err(Errno::INVAL.into()) }
    }

    fn is_valid(&self) -> bool {
        let count = |tag| self.0.iter().filter(|entry| entry.tag == tag).count();
        let named = count(USER) + count(GROUP);
        self.0.iter().all(|entry| {
            entry.perm <= 7 && matches!(entry.tag, USER_OBJ | USER | GROUP_OBJ | GROUP | MASK | OTHER)
        }) && self.0.is_sorted_by_key(|entry| entry.tag)
            && self.0.windows(2).all(|two| two[0].tag != two[1].tag || two[0].id < two[1].id)
            && (count(USER_OBJ), count(GROUP_OBJ), count(OTHER)) == (1, 1, 1)
            && (count(MASK) == 1 || (count(MASK) == 0 && named == 0))
            && self.0.iter().all(|entry| !matches!(entry.tag, USER | GROUP) || entry.id != NO_ID)
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = VERSION.to_le_bytes().to_vec();
        for entry in &self.0 {
            out.extend_from_slice(&entry.tag.to_le_bytes());
            out.extend_from_slice(&entry.perm.to_le_bytes());
            let id = if matches!(entry.tag, USER | GROUP) { entry.id } else { NO_ID };
            out.extend_from_slice(&id.to_le_bytes());
        }
        out
    }

    fn perm(&self, tag: u16) -> Option<u32> {
        self.0.iter().find(|entry| entry.tag == tag).map(|entry| u32::from(entry.perm))
    }

    fn set_perm(&mut self, tag: u16, perm: u32) {
        for entry in self.0.iter_mut().filter(|entry| entry.tag == tag) {
            entry.perm = (perm & 7) as u16;
        }
    }

    /// The entry that the group bits of the mode stand for.
    fn group_class(&self) -> u16 {
        if self.perm(MASK).is_some() { MASK } else { GROUP_OBJ }
    }

    /// Returns the permission bits that the list amounts to.
    fn mode(&self) -> u32 {
        let bits = |tag| self.perm(tag).unwrap_or(0);
        bits(USER_OBJ) << 6 | bits(self.group_class()) << 3 | bits(OTHER)
    }

    /// Sets the permission bits.
    fn set_mode(&mut self, mode: u32) {
        self.set_perm(USER_OBJ, mode >> 6);
        self.set_perm(self.group_class(), mode >> 3);
        self.set_perm(OTHER, mode);
    }

    /// Returns whether the list says no more than permission bits can.
    fn is_plain(&self) -> bool {
        self.0.len() == 3
    }
}

/// Body of a fuzz target: a list that is read is written so that it reads as itself, and takes any mode.
pub fn fuzz_acl(data: &[u8]) {
    if let Ok(Some(mut acl)) = Acl::parse(data) {
        let encoded = acl.encode();
        assert_eq!(encoded.len(), data.len());
        assert!(matches!(Acl::parse(&encoded), Ok(Some(again)) if again.encode() == encoded));
        for mode in [0, 0o777, 0o421, acl.mode()] {
            acl.set_mode(mode);
            assert_eq!(acl.mode(), mode);
            assert!(acl.is_valid());
        }
    }
}

/// Follows the setting of an attribute: an access list sets the mode. Returns whether the attribute itself is to be
/// kept; a list that says no more than the mode is not.
pub(super) fn set(txn: &mut Txn<'_>, ino: u64, name: &[u8], value: &[u8]) -> FsResult<bool> {
    if !is_acl(name) {
        return Ok(true);
    }
    let row = txn.row(ino)?;
    if row.kind == FileType::Symlink {
        return Err(Errno::OPNOTSUPP.into());
    }
    if name == DEFAULT && row.kind != FileType::Dir {
        return Err(Errno::ACCESS.into());
    }
    let Some(acl) = Acl::parse(value)? else { return Ok(false) };
    if name == DEFAULT {
        return Ok(true);
    }
    row.mode = row.mode & 0o7000 | acl.mode();
    Ok(!acl.is_plain())
}

/// Follows a chmod: the access list, if there is one, says the same.
pub(super) fn chmod(txn: &mut Txn<'_>, ino: u64, mode: u32) -> FsResult<()> {
    let Some(value) = txn.xattr(ino, ACCESS)? else { return Ok(()) };
    if let Some(mut acl) = Acl::parse(&value)? {
        acl.set_mode(mode);
        txn.batch.put(Table::Xattrs, xattr_key(ino, ACCESS), acl.encode());
    }
    Ok(())
}

/// Returns a directory's default list.
pub(super) fn default_of(txn: &Txn<'_>, dir: u64) -> FsResult<Option<Acl>> {
    match txn.xattr(dir, DEFAULT)? {
        Some(value) => Acl::parse(&value),
        None => Ok(None),
    }
}

/// Gives a new inode what it inherits from its directory's default list, in place of what the umask would do.
pub(super) fn inherit(txn: &mut Txn<'_>, ino: u64, row: &mut InodeRow, default: &Acl) {
    let mut access = default.clone();
    access.set_mode(row.mode & access.mode());
    row.mode = row.mode & 0o7000 | access.mode();
    if !access.is_plain() {
        txn.batch.put(Table::Xattrs, xattr_key(ino, ACCESS), access.encode());
        row.has_xattrs = true;
    }
    if row.kind == FileType::Dir {
        txn.batch.put(Table::Xattrs, xattr_key(ino, DEFAULT), default.encode());
        row.has_xattrs = true;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        Acl(entries.iter().map(|&(tag, perm, id)| Entry { tag, perm, id }).collect()).encode()
    }

    const PLAIN: [(u16, u16, u32); 3] = [(USER_OBJ, 6, NO_ID), (GROUP_OBJ, 4, NO_ID), (OTHER, 0, NO_ID)];

    #[test]
    fn lists_round_trip_and_know_their_mode() {
        let plain = Acl::parse(&list(&PLAIN)).unwrap().unwrap();
        assert_eq!((plain.mode(), plain.is_plain(), plain.encode()), (0o640, true, list(&PLAIN)));
        let full = list(&[
            (USER_OBJ, 7, NO_ID),
            (USER, 4, 10),
            (USER, 5, 11),
            (GROUP_OBJ, 7, NO_ID),
            (GROUP, 1, 5),
            (MASK, 5, NO_ID),
            (OTHER, 1, NO_ID),
        ]);
        let mut acl = Acl::parse(&full).unwrap().unwrap();
        assert_eq!((acl.mode(), acl.is_plain()), (0o751, false));
        acl.set_mode(0o4620);
        assert_eq!(acl.mode(), 0o620);
        assert_eq!(acl.perm(GROUP_OBJ), Some(7), "the mask stands for the group bits");
        assert!(Acl::parse(&2u32.to_le_bytes()).unwrap().is_none());
    }

    #[test]
    fn bad_lists_are_refused() {
        let good = list(&PLAIN);
        for n in (0..good.len()).filter(|n| *n != 4) {
            assert!(Acl::parse(&good[..n]).is_err(), "cut at {n}");
        }
        let mut version = good.clone();
        version[0] = 1;
        assert!(Acl::parse(&version).is_err());
        let bad: [&[(u16, u16, u32)]; 8] = [
            &PLAIN[..2],
            &[PLAIN[1], PLAIN[0], PLAIN[2]],
            &[PLAIN[0], PLAIN[0], PLAIN[1], PLAIN[2]],
            &[PLAIN[0], (USER, 4, 1), PLAIN[1], PLAIN[2]],
            &[PLAIN[0], (USER, 4, 2), (USER, 4, 1), PLAIN[1], (MASK, 7, NO_ID), PLAIN[2]],
            &[PLAIN[0], (USER, 4, NO_ID), PLAIN[1], (MASK, 7, NO_ID), PLAIN[2]],
            &[(USER_OBJ, 8, NO_ID), PLAIN[1], PLAIN[2]],
            &[PLAIN[0], PLAIN[1], PLAIN[2], (0x40, 0, NO_ID)],
        ];
        for entries in bad {
            assert!(Acl::parse(&list(entries)).is_err(), "{entries:?}");
        }
    }
}
