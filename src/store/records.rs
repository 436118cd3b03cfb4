//! Keys and values of the live tables that hold the working tree. Local state only: these bytes never leave `live/`,
//! where they are sealed, so a row that does not decode means a damaged or foreign database, never hostile input that
//! got past authentication. It is an error all the same.
//!
//! ```text
//! Inodes    ino                      InodeRow
//! Dirents   parent || name           DirentRow                  byte order of names = order of tree objects
//! Extents   ino || file offset       ExtentRow                  never overlapping, never past the size
//! Xattrs    ino || name              the value itself
//! Links     ino || parent || name    nothing                    see below
//! Orphans   ino                      nothing                    no name left, but was open: purged at the next open
//! DirtyDirs directory ino            change counter, u64        its tree object must be rewritten by the next snapshot
//! Trees     directory ino            ChunkId                    its last written directory object
//! Settings  ASCII name               by name
//! ```
//!
//! Numbers in keys are big-endian, so that rows of one inode are neighbours and extents ascend; numbers in values are
//! little-endian.
//!
//! *Links.* An inode other than a directory whose link count is above 1 has one row for each of its names, so that all
//! directories that show it can be marked when it changes. An inode with one link has none: [`InodeRow::parent`] says
//! where it is. When a second name is made, the first one is not known (only its directory is), so its row has an
//! *empty name* and stands for exactly one name in that directory; it goes when a name is removed there that has no row
//! of its own. In a tree that is loaded lazily from a snapshot, names in directories not loaded yet have no row.
//!
//! *Inline extents* may stand anywhere in a file, not just in tiny ones: a small fsync puts its data there until the
//! next flush of the whole tree turns it into chunks. Whoever reads extents must take both kinds at any offset.

use crate::env::Time;
use crate::format::ids::ChunkId;
use crate::format::tree::FileType;
use crate::store::error::{Result, StoreError};

/// Inode number of the root directory.
pub const ROOT_INO: u64 = 1;

/// Most file bytes that one [`ExtentRow::Inline`] holds.
pub const INLINE_ROW_MAX: usize = 64 << 10;

/// A file whose data all stands in its first this many bytes is kept as one inline row for good, not as a chunk.
pub const TINY_FILE_MAX: u64 = 2 << 10;

/// Names of rows in the Settings table that the working tree owns.
pub mod settings {
    /// u64: every inode number at or above it is unused. Raised in steps, so some numbers are skipped after a crash.
    pub const NEXT_INO: &[u8] = b"next_ino";
    /// u64: above every change counter in DirtyDirs. Raised in steps.
    pub const CHANGE_COUNTER: &[u8] = b"change_counter";
    /// Id of the snapshot that this live state was made from or has last written.
    pub const BASE_SNAPSHOT: &[u8] = b"base_snapshot";
    /// Present while some directory or file may still have to be loaded from a snapshot.
    pub const LAZY: &[u8] = b"lazy";
}

/// Returns the key of an inode in Inodes, Orphans, DirtyDirs and Trees, and the prefix of its rows in all other tables.
pub fn inode_key(ino: u64) -> [u8; 8] {
    ino.to_be_bytes()
}

/// Returns the half-open key range of all rows that start with this inode number. Inode numbers stay below 2^63.
pub fn rows_of(ino: u64) -> ([u8; 8], [u8; 8]) {
    (ino.to_be_bytes(), ino.saturating_add(1).to_be_bytes())
}

/// Returns the key of a name in a directory.
pub fn dirent_key(parent: u64, name: &[u8]) -> Vec<u8> {
    prefixed(parent, name)
}

/// Returns the key of the extent that starts at this byte of a file.
pub fn extent_key(ino: u64, offset: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&ino.to_be_bytes());
    key[8..].copy_from_slice(&offset.to_be_bytes());
    key
}

/// Returns the key of an extended attribute.
pub fn xattr_key(ino: u64, name: &[u8]) -> Vec<u8> {
    prefixed(ino, name)
}

/// Returns the key of one name of a hard-linked inode; an empty name stands for one unknown name in that directory.
pub fn links_key(ino: u64, parent: u64, name: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(16 + name.len());
    key.extend_from_slice(&ino.to_be_bytes());
    key.extend_from_slice(&parent.to_be_bytes());
    key.extend_from_slice(name);
    key
}

fn prefixed(ino: u64, name: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(8 + name.len());
    key.extend_from_slice(&ino.to_be_bytes());
    key.extend_from_slice(name);
    key
}

/// Splits a key of Inodes, Orphans, DirtyDirs or Trees: the inode number.
pub fn parse_inode_key(key: &[u8]) -> Result<u64> {
    match key.try_into() {
        Ok(bytes) => Ok(u64::from_be_bytes(bytes)),
        Err(_) => Err(bad("inode key")),
    }
}

/// Splits a key of Dirents: directory and name.
pub fn parse_dirent_key(key: &[u8]) -> Result<(u64, &[u8])> {
    match key.split_first_chunk::<8>() {
        Some((ino, name)) if !name.is_empty() => Ok((u64::from_be_bytes(*ino), name)),
        _ => Err(bad("directory entry key")),
    }
}

/// Splits a key of Extents: inode number and file offset.
pub fn parse_extent_key(key: &[u8]) -> Result<(u64, u64)> {
    let (ino, rest) = key.split_first_chunk::<8>().ok_or_else(|| bad("extent key"))?;
    let offset: [u8; 8] = rest.try_into().map_err(|_| bad("extent key"))?;
    Ok((u64::from_be_bytes(*ino), u64::from_be_bytes(offset)))
}

/// Splits a key of Xattrs: inode number and attribute name.
pub fn parse_xattr_key(key: &[u8]) -> Result<(u64, &[u8])> {
    match key.split_first_chunk::<8>() {
        Some((ino, name)) if !name.is_empty() => Ok((u64::from_be_bytes(*ino), name)),
        _ => Err(bad("attribute key")),
    }
}

/// Splits a key of Links: inode number, directory, name (empty: see the module's text).
pub fn parse_links_key(key: &[u8]) -> Result<(u64, u64, &[u8])> {
    let (ino, rest) = key.split_first_chunk::<8>().ok_or_else(|| bad("link key"))?;
    let (parent, name) = rest.split_first_chunk::<8>().ok_or_else(|| bad("link key"))?;
    Ok((u64::from_be_bytes(*ino), u64::from_be_bytes(*parent), name))
}

/// Encodes the counters in Settings and DirtyDirs.
pub fn encode_u64(value: u64) -> [u8; 8] {
    value.to_le_bytes()
}

/// Decodes the counters in Settings and DirtyDirs.
pub fn decode_u64(value: &[u8]) -> Result<u64> {
    match value.try_into() {
        Ok(bytes) => Ok(u64::from_le_bytes(bytes)),
        Err(_) => Err(bad("counter")),
    }
}

/// Encodes the value of a Trees row.
pub fn encode_tree(id: &ChunkId) -> [u8; 32] {
    id.0
}

/// Decodes the value of a Trees row.
pub fn decode_tree(value: &[u8]) -> Result<ChunkId> {
    match value.try_into() {
        Ok(bytes) => Ok(ChunkId(bytes)),
        Err(_) => Err(bad("tree id")),
    }
}

/// Value of Dirents: which inode a name stands for. The type is repeated so that listing needs no inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirentRow {
    /// The inode.
    pub ino: u64,
    /// Its type.
    pub kind: FileType,
}

impl DirentRow {
    /// Encodes the row.
    pub fn encode(&self) -> [u8; 9] {
        let mut out = [0; 9];
        out[..8].copy_from_slice(&self.ino.to_le_bytes());
        out[8] = self.kind as u8;
        out
    }

    /// Decodes a row.
    pub fn decode(value: &[u8]) -> Result<Self> {
        let mut fields = Fields { what: "directory entry", rest: value };
        let row = Self { ino: fields.u64()?, kind: fields.kind()? };
        fields.finish()?;
        Ok(row)
    }
}

/// Value of Inodes: everything about a file but its names, data and extended attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InodeRow {
    /// Type, which never changes.
    pub kind: FileType,
    /// Permission bits, 0o7777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names that stand for it; for a directory 2 and one for each directory in it. 0: see Orphans.
    pub nlink: u32,
    /// Major and minor number of a device.
    pub rdev: (u32, u32),
    /// Bytes, of a file or of a link's target. For a file never more than what is published: newer data may be in memory.
    pub size: u64,
    /// Last read.
    pub atime: Time,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of anything.
    pub ctime: Time,
    /// A directory that has a name for it (see Links); its own number for the root.
    pub parent: u64,
    /// What a symbolic link says.
    pub target: Vec<u8>,
    /// For a directory whose entries have not been loaded from a snapshot: its directory object.
    pub lazy: Option<ChunkId>,
    /// For a file whose extents have not been loaded from a snapshot: its extent object.
    pub lazy_extents: Option<ChunkId>,
    /// Bytes that extents cover.
    pub blocks: u64,
    /// False only if Xattrs has no row for it.
    pub has_xattrs: bool,
}

const FLAG_LAZY: u8 = 1;
const FLAG_LAZY_EXTENTS: u8 = 2;
const FLAG_XATTRS: u8 = 4;
const FLAG_DEVICE: u8 = 8;
const FLAGS_KNOWN: u8 = 15;

impl InodeRow {
    /// Returns a row for a new inode with one name in `parent`, or a directory's two, and all times the same.
    pub fn new(kind: FileType, mode: u32, uid: u32, gid: u32, parent: u64, now: Time) -> Self {
        Self {
            kind,
            mode,
            uid,
            gid,
            nlink: if kind == FileType::Dir { 2 } else { 1 },
            rdev: (0, 0),
            size: 0,
            atime: now,
            mtime: now,
            ctime: now,
            parent,
            target: Vec::new(),
            lazy: None,
            lazy_extents: None,
            blocks: 0,
            has_xattrs: false,
        }
    }

    /// Encodes the row.
    pub fn encode(&self) -> Vec<u8> {
        let mut flags = 0;
        for (set, flag) in [
            (self.lazy.is_some(), FLAG_LAZY),
            (self.lazy_extents.is_some(), FLAG_LAZY_EXTENTS),
            (self.has_xattrs, FLAG_XATTRS),
            (self.rdev != (0, 0), FLAG_DEVICE),
        ] {
            if set {
                flags |= flag;
            }
        }
        let mut out = Vec::with_capacity(80 + self.target.len() + 64);
        out.push(self.kind as u8);
        out.push(flags);
        for value in [self.mode, self.uid, self.gid, self.nlink] {
            out.extend_from_slice(&value.to_le_bytes());
        }
        for value in [self.size, self.blocks, self.parent] {
            out.extend_from_slice(&value.to_le_bytes());
        }
        for time in [self.atime, self.mtime, self.ctime] {
            out.extend_from_slice(&time.secs.to_le_bytes());
            out.extend_from_slice(&time.nanos.to_le_bytes());
        }
        if flags & FLAG_DEVICE != 0 {
            out.extend_from_slice(&self.rdev.0.to_le_bytes());
            out.extend_from_slice(&self.rdev.1.to_le_bytes());
        }
        for id in [self.lazy, self.lazy_extents].into_iter().flatten() {
            out.extend_from_slice(&id.0);
        }
        out.extend_from_slice(&self.target);
        out
    }

    /// Decodes a row.
    pub fn decode(value: &[u8]) -> Result<Self> {
        let mut fields = Fields { what: "inode", rest: value };
        let kind = fields.kind()?;
        let flags = fields.u8()?;
        if flags & !FLAGS_KNOWN != 0 {
            return Err(bad("inode flags"));
        }
        let mut row = Self {
            kind,
            mode: fields.u32()?,
            uid: fields.u32()?,
            gid: fields.u32()?,
            nlink: fields.u32()?,
            rdev: (0, 0),
            size: fields.u64()?,
            blocks: fields.u64()?,
            parent: fields.u64()?,
            atime: fields.time()?,
            mtime: fields.time()?,
            ctime: fields.time()?,
            target: Vec::new(),
            lazy: None,
            lazy_extents: None,
            has_xattrs: flags & FLAG_XATTRS != 0,
        };
        if flags & FLAG_DEVICE != 0 {
            row.rdev = (fields.u32()?, fields.u32()?);
            if row.rdev == (0, 0) {
                return Err(bad("inode"));
            }
        }
        if flags & FLAG_LAZY != 0 {
            row.lazy = Some(ChunkId(fields.array()?));
        }
        if flags & FLAG_LAZY_EXTENTS != 0 {
            row.lazy_extents = Some(ChunkId(fields.array()?));
        }
        row.target = fields.rest.to_vec();
        if row.mode > 0o7777 || (!row.target.is_empty() && kind != FileType::Symlink) {
            return Err(bad("inode"));
        }
        Ok(row)
    }
}

/// Value of Extents: where some bytes of a file are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExtentRow {
    /// In a data chunk.
    Chunk {
        /// Bytes of the file that it covers; at least 1.
        len: u64,
        /// The chunk.
        chunk: ChunkId,
        /// First of them in the chunk's plaintext.
        chunk_offset: u32,
    },
    /// In the row itself; 1 to [`INLINE_ROW_MAX`] bytes.
    Inline(Vec<u8>),
}

impl ExtentRow {
    /// Returns how many bytes of the file it covers.
    pub fn len(&self) -> u64 {
        match self {
            Self::Chunk { len, .. } => *len,
            Self::Inline(bytes) => bytes.len() as u64,
        }
    }

    /// Returns whether it covers nothing, which no stored row does.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the part of it that starts `skip` bytes in and covers `len` bytes; both must be inside it.
    pub fn slice(&self, skip: u64, len: u64) -> Self {
        debug_assert!(skip.checked_add(len).is_some_and(|end| end <= self.len()));
        match self {
            // An extent stands inside one chunk, which is at most 8 MiB long: the sum fits.
            Self::Chunk { chunk, chunk_offset, .. } => {
                Self::Chunk { len, chunk: *chunk, chunk_offset: chunk_offset + skip as u32 }
            }
            Self::Inline(bytes) => Self::Inline(bytes[skip as usize..(skip + len) as usize].to_vec()),
        }
    }

    /// Encodes the row.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Chunk { len, chunk, chunk_offset } => {
                let mut out = Vec::with_capacity(45);
                out.push(1);
                out.extend_from_slice(&len.to_le_bytes());
                out.extend_from_slice(&chunk.0);
                out.extend_from_slice(&chunk_offset.to_le_bytes());
                out
            }
            Self::Inline(bytes) => {
                let mut out = Vec::with_capacity(1 + bytes.len());
                out.push(2);
                out.extend_from_slice(bytes);
                out
            }
        }
    }

    /// Decodes a row.
    pub fn decode(value: &[u8]) -> Result<Self> {
        let mut fields = Fields { what: "extent", rest: value };
        match fields.u8()? {
            1 => {
                let (len, chunk, chunk_offset) = (fields.u64()?, ChunkId(fields.array()?), fields.u32()?);
                fields.finish()?;
                if len == 0
                    || len.checked_add(u64::from(chunk_offset)).is_none_or(|end| end > u64::from(u32::MAX))
                {
                    return Err(bad("extent"));
                }
                Ok(Self::Chunk { len, chunk, chunk_offset })
            }
            2 if (1..=INLINE_ROW_MAX).contains(&fields.rest.len()) => Ok(Self::Inline(fields.rest.to_vec())),
            _ => Err(bad("extent")),
        }
    }
}

/// Body of a fuzz target: what is read as a key or value is what would be written for it.
pub(crate) fn fuzz(data: &[u8]) {
    if let Ok(row) = InodeRow::decode(data) {
        assert_eq!(row.encode(), data);
    }
    if let Ok(row) = DirentRow::decode(data) {
        assert_eq!(row.encode(), data);
    }
    if let Ok(row) = ExtentRow::decode(data) {
        assert_eq!(row.encode(), data);
        assert!(!row.is_empty());
        assert_eq!(row.slice(row.len() - 1, 1).len(), 1);
    }
    if let Ok(id) = decode_tree(data) {
        assert_eq!(encode_tree(&id), data);
    }
    if let Ok(value) = decode_u64(data) {
        assert_eq!(encode_u64(value), data);
    }
    if let Ok(ino) = parse_inode_key(data) {
        assert_eq!(inode_key(ino), data);
    }
    if let Ok((ino, name)) = parse_dirent_key(data) {
        assert_eq!(dirent_key(ino, name), data);
    }
    if let Ok((ino, offset)) = parse_extent_key(data) {
        assert_eq!(extent_key(ino, offset), data);
    }
    if let Ok((ino, name)) = parse_xattr_key(data) {
        assert_eq!(xattr_key(ino, name), data);
    }
    if let Ok((ino, parent, name)) = parse_links_key(data) {
        assert_eq!(links_key(ino, parent, name), data);
    }
}

fn bad(what: &str) -> StoreError {
    StoreError::Corrupt(format!("live database: bad {what}"))
}

/// Reads a row's fields one after the other.
struct Fields<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or_else(|| bad(self.what))?;
        self.rest = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn time(&mut self) -> Result<Time> {
        let time = Time { secs: i64::from_le_bytes(self.array()?), nanos: self.u32()? };
        if time.nanos >= 1_000_000_000 { Err(bad(self.what)) } else { Ok(time) }
    }

    fn kind(&mut self) -> Result<FileType> {
        Ok(match self.u8()? {
            1 => FileType::File,
            2 => FileType::Dir,
            3 => FileType::Symlink,
            4 => FileType::Fifo,
            5 => FileType::Socket,
            6 => FileType::CharDev,
            7 => FileType::BlockDev,
            _ => return Err(bad(self.what)),
        })
    }

    fn finish(&self) -> Result<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(bad(self.what)) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn sample(kind: FileType) -> InodeRow {
        InodeRow {
            kind,
            mode: 0o6755,
            uid: 1,
            gid: u32::MAX,
            nlink: 3,
            rdev: (8, 1),
            size: u64::MAX >> 1,
            atime: Time { secs: -5, nanos: 999_999_999 },
            mtime: Time { secs: 7, nanos: 0 },
            ctime: Time { secs: i64::MAX, nanos: 1 },
            parent: 42,
            target: if kind == FileType::Symlink { b"../x".to_vec() } else { Vec::new() },
            lazy: Some(ChunkId([7; 32])),
            lazy_extents: Some(ChunkId([9; 32])),
            blocks: 4096,
            has_xattrs: true,
        }
    }

    #[test]
    fn inode_rows_round_trip() {
        for kind in [FileType::File, FileType::Dir, FileType::Symlink, FileType::BlockDev] {
            let full = sample(kind);
            assert_eq!(InodeRow::decode(&full.encode()).unwrap(), full);
            let mut few = full;
            (few.lazy, few.lazy_extents, few.rdev, few.has_xattrs) = (None, None, (0, 0), false);
            assert_eq!(InodeRow::decode(&few.encode()).unwrap(), few);
        }
    }

    #[test]
    fn damaged_inode_rows_are_errors() {
        let good = sample(FileType::File).encode();
        for n in 0..good.len() {
            assert!(InodeRow::decode(&good[..n]).is_err(), "cut at {n}");
        }
        let mut longer = good.clone();
        longer.push(0);
        assert!(InodeRow::decode(&longer).is_err(), "a file has no target");
        for (at, value) in [(0, 0), (0, 8), (1, 0x10), (3, 0xff)] {
            let mut wrong = good.clone();
            wrong[at] = value;
            assert!(InodeRow::decode(&wrong).is_err(), "byte {at} = {value}");
        }
        let mut nanos = good.clone();
        nanos[2 + 16 + 24 + 8..][..4].copy_from_slice(&1_000_000_000u32.to_le_bytes());
        assert!(InodeRow::decode(&nanos).is_err());
        let mut device = good.clone();
        device[2 + 16 + 24 + 36..][..8].fill(0);
        assert!(InodeRow::decode(&device).is_err(), "no device number has no flag");
    }

    #[test]
    fn extent_rows_round_trip_and_slice() {
        let chunk = ExtentRow::Chunk { len: 100, chunk: ChunkId([3; 32]), chunk_offset: 5 };
        let inline = ExtentRow::Inline((0..100).collect());
        for row in [&chunk, &inline] {
            assert_eq!(&ExtentRow::decode(&row.encode()).unwrap(), row);
            assert_eq!((row.len(), row.slice(10, 20).len()), (100, 20));
        }
        assert_eq!(
            chunk.slice(10, 20),
            ExtentRow::Chunk { len: 20, chunk: ChunkId([3; 32]), chunk_offset: 15 }
        );
        assert_eq!(inline.slice(98, 2), ExtentRow::Inline(vec![98, 99]));
    }

    #[test]
    fn damaged_extent_rows_are_errors() {
        let good = ExtentRow::Chunk { len: 1, chunk: ChunkId([3; 32]), chunk_offset: 0 }.encode();
        for n in 0..good.len() {
            assert!(ExtentRow::decode(&good[..n]).is_err(), "cut at {n}");
        }
        let mut longer = good.clone();
        longer.push(0);
        assert!(ExtentRow::decode(&longer).is_err());
        for row in [
            ExtentRow::Chunk { len: 0, chunk: ChunkId([3; 32]), chunk_offset: 0 },
            ExtentRow::Chunk { len: u64::MAX, chunk: ChunkId([3; 32]), chunk_offset: 1 },
            ExtentRow::Chunk { len: 1, chunk: ChunkId([3; 32]), chunk_offset: u32::MAX },
            ExtentRow::Inline(Vec::new()),
            ExtentRow::Inline(vec![0; INLINE_ROW_MAX + 1]),
        ] {
            assert!(ExtentRow::decode(&row.encode()).is_err());
        }
        assert!(ExtentRow::decode(&[3, 1]).is_err());
    }

    #[test]
    fn keys_sort_like_what_they_stand_for() {
        assert!(extent_key(1, 255) < extent_key(1, 256));
        assert!(extent_key(1, u64::MAX) < extent_key(2, 0));
        assert!(dirent_key(1, b"a") < dirent_key(1, b"a\x01"));
        assert!(dirent_key(1, b"\xff\xff").as_slice() < rows_of(1).1.as_slice());
        assert_eq!(parse_extent_key(&extent_key(9, 77)).unwrap(), (9, 77));
        assert_eq!(parse_dirent_key(&dirent_key(9, b"n")).unwrap(), (9, &b"n"[..]));
        assert_eq!(parse_xattr_key(&xattr_key(9, b"user.n")).unwrap(), (9, &b"user.n"[..]));
        assert_eq!(parse_links_key(&links_key(9, 8, b"")).unwrap(), (9, 8, &b""[..]));
        assert_eq!(parse_inode_key(&inode_key(9)).unwrap(), 9);
    }

    #[test]
    fn damaged_keys_and_small_values_are_errors() {
        assert!(parse_inode_key(&[0; 7]).is_err() && parse_inode_key(&[0; 9]).is_err());
        assert!(parse_dirent_key(&[0; 8]).is_err(), "a name is never empty");
        assert!(parse_xattr_key(&[0; 8]).is_err());
        assert!(parse_extent_key(&[0; 15]).is_err() && parse_extent_key(&[0; 17]).is_err());
        assert!(parse_links_key(&[0; 15]).is_err());
        assert!(decode_u64(&[0; 7]).is_err());
        assert_eq!(decode_u64(&encode_u64(77)).unwrap(), 77);
        assert!(decode_tree(&[0; 31]).is_err());
        let dirent = DirentRow { ino: 5, kind: FileType::Fifo };
        assert_eq!(DirentRow::decode(&dirent.encode()).unwrap(), dirent);
        assert!(DirentRow::decode(&[0; 9]).is_err());
        assert!(DirentRow::decode(&dirent.encode()[..8]).is_err());
    }
}
