//! The block file's log: which version of each block is the true one.
//!
//! ```text
//! file   = "SRBLKS1\n", 16 random bytes (log id), zeros up to 512; then frames, each at a multiple of 512
//! frame  = u32 length, u64 generation, sealed[length], zeros up to a multiple of 512     integers are little-endian
//! sealed = LiveKeys::seal_record(aad, tag of the frame before (zeros for the first), record)
//! aad    = DOMAIN, log id, generation
//! Full   = u8 1, u64 generation, u64 length, u8 header copy, u64 count, count * u64 version
//! Delta  = u8 2, u64 generation, u64 length, u8 header copy, u64 cut, varint count,
//!          count * (varint distance from the block after the previous one, u64 version)
//! ```
//!
//! The first frame is a Full record, all others are Delta records. `length` in a record is the logical length in
//! bytes. `cut` is the smallest length, in blocks, that the file had since the record before: versions from there on
//! are forgotten before the changes are applied, so a block that was cut off and grown again reads as zeros.
//!
//! Frames begin on a sector of their own, so a torn append damages no earlier one. A frame that is incomplete or
//! does not authenticate is either torn, and then it was the last one ever appended, because each is durable before
//! the next; it is dropped. Or it was damaged later, and then an authentic one may follow: if there is any, opening
//! fails, for dropping it would silently go back to an older state. The first record is never torn: a log appears
//! under its name (rename) only when it is durable.

use std::io;
use std::sync::Arc;

use crate::crypto::LiveKeys;
use crate::disk::{Disk, DiskFile, OpenMode, is_full, parent};
use crate::env::Env;

use super::{MAX_LEN, blocks_of, damaged};

const MAGIC: &[u8; 8] = b"SRBLKS1\n";
const DOMAIN: &[u8; 24] = b"strongroom v1 blocks.log";
const ID: usize = 16;
const TAG: usize = 16;
const SECTOR: u64 = 512;
/// length and generation before the sealed bytes of a frame.
const FRAME_HEAD: u64 = 12;
/// nonce and tag around a record.
const SEAL_OVERHEAD: u64 = 24 + TAG as u64;
/// Longest sealed record: 16 bytes for each block of the longest file, and its head.
const MAX_SEALED: u64 = 16 * (MAX_LEN / 4096) + 1024;
const KIND_FULL: u8 = 1;
const KIND_DELTA: u8 = 2;
/// The log reserves room in steps, so that appending rarely changes the file's allocation.
const RESERVE_STEP_BYTES: u64 = 256 << 10;
/// A log is rewritten when its deltas outgrow both this and four times its full record.
const COMPACT_MIN_BYTES: u64 = 1 << 20;
const COMPACT_RATIO: u64 = 4;

/// What the log says: the state at the last complete record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    /// Number of the record, counted over the life of the vault. Never goes back.
    pub(super) generation: u64,
    /// Logical length in bytes.
    pub(super) len: u64,
    /// Which of the two physical copies of block 0 is the true one.
    pub(super) header_copy: u8,
    /// Version of each block; 0, or beyond the end: never written.
    pub(super) versions: Vec<u64>,
}

/// One sync's changes to a [`Table`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Delta {
    pub(super) generation: u64,
    pub(super) len: u64,
    pub(super) header_copy: u8,
    /// Blocks of the table before that were never cut off.
    pub(super) cut: u64,
    /// Ascending (block, version).
    pub(super) changes: Vec<(u64, u64)>,
}

impl Table {
    pub(super) fn version(&self, block: u64) -> u64 {
        usize::try_from(block).ok().and_then(|b| self.versions.get(b)).copied().unwrap_or(0)
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(26 + 8 * self.versions.len());
        put_head(&mut out, KIND_FULL, self.generation, self.len, self.header_copy);
        out.extend((self.versions.len() as u64).to_le_bytes());
        self.versions.iter().for_each(|v| out.extend(v.to_le_bytes()));
        out
    }

    fn decode(record: &[u8]) -> io::Result<Self> {
        let mut input = Input(record);
        let (generation, len, header_copy) = input.head(KIND_FULL)?;
        let count = input.u64()?;
        if count > blocks_of(len) || count != (input.0.len() / 8) as u64 || !input.0.len().is_multiple_of(8) {
            return Err(malformed());
        }
        let versions =
            input.0.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().expect("chunks of 8")));
        Ok(Self { generation, len, header_copy, versions: versions.collect() })
    }

    fn apply(&mut self, delta: &Delta) -> io::Result<()> {
        if delta.generation != self.generation + 1 || delta.cut > blocks_of(self.len) {
            return Err(malformed());
        }
        let cut = usize::try_from(delta.cut).map_err(|_| malformed())?;
        self.versions.truncate(cut);
        for &(block, version) in &delta.changes {
            let at = usize::try_from(block).map_err(|_| malformed())?;
            if self.versions.len() <= at {
                self.versions.resize(at + 1, 0);
            }
            self.versions[at] = version;
        }
        (self.generation, self.len, self.header_copy) = (delta.generation, delta.len, delta.header_copy);
        Ok(())
    }
}

impl Delta {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(40 + 12 * self.changes.len());
        put_head(&mut out, KIND_DELTA, self.generation, self.len, self.header_copy);
        out.extend(self.cut.to_le_bytes());
        put_varint(&mut out, self.changes.len() as u64);
        let mut next = 0;
        for &(block, version) in &self.changes {
            put_varint(&mut out, block - next);
            out.extend(version.to_le_bytes());
            next = block + 1;
        }
        out
    }

    fn decode(record: &[u8]) -> io::Result<Self> {
        let mut input = Input(record);
        let (generation, len, header_copy) = input.head(KIND_DELTA)?;
        let cut = input.u64()?;
        let count = input.varint()?;
        if cut > blocks_of(MAX_LEN) || count > (input.0.len() / 9) as u64 {
            return Err(malformed());
        }
        let mut changes = Vec::new();
        let mut next: u64 = 0;
        for _ in 0..count {
            let block =
                next.checked_add(input.varint()?).filter(|b| *b < blocks_of(len)).ok_or_else(malformed)?;
            let version = input.u64()?;
            if version == 0 {
                return Err(malformed());
            }
            changes.push((block, version));
            next = block + 1;
        }
        if !input.0.is_empty() {
            return Err(malformed());
        }
        Ok(Self { generation, len, header_copy, cut, changes })
    }
}

/// The open log, ready to append.
#[derive(Debug)]
pub(super) struct Log {
    file: Arc<dyn DiskFile>,
    id: [u8; ID],
    /// Where the next frame goes.
    tail: u64,
    /// Room is reserved up to here.
    reserved: u64,
    /// Length after the full record.
    base_len: u64,
    /// Tag of the last frame.
    chain: [u8; TAG],
    /// A rewrite that found the disk full is tried again when the log has this length.
    retry_at: u64,
}

impl Log {
    /// Writes a new log that holds `table`, durable under its name on return. `StorageFull` means that nothing was
    /// changed; after any other error the log on disk may be the old or the new one.
    pub(super) fn create(
        disk: &dyn Disk,
        path: &str,
        keys: &LiveKeys,
        env: &dyn Env,
        table: &Table,
    ) -> io::Result<Self> {
        let mut id = [0; ID];
        env.random(&mut id);
        let mut bytes = [&MAGIC[..], &id].concat();
        bytes.resize(SECTOR as usize, 0);
        let (frame, chain) = frame(keys, env, &id, &[0; TAG], table.generation, &table.encode())?;
        bytes.extend(frame);
        let tmp = format!("{path}.new");
        match disk.remove(&tmp) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let file = disk.open(&tmp, OpenMode::CreateNew)?;
        let len = bytes.len() as u64;
        let fill = || {
            file.allocate(0, len)?;
            file.write_all_at(&bytes, 0)?;
            file.sync_data()?;
            disk.rename(&tmp, path)
        };
        if let Err(e) = fill() {
            // Frees the space that made it fail; the first error is the one to report.
            drop(disk.remove(&tmp));
            return Err(e);
        }
        // From here on a full disk is no excuse: the old log has lost its name.
        disk.sync_dir(parent(path)).map_err(|e| io::Error::other(format!("{path}: {e}")))?;
        Ok(Self { file, id, tail: len, reserved: len, base_len: len, chain, retry_at: 0 })
    }

    /// Reads a log up to its last complete record. Changes nothing.
    pub(super) fn open(disk: &dyn Disk, path: &str, keys: &LiveKeys) -> io::Result<(Self, Table)> {
        let file = disk.open(path, OpenMode::ReadWrite)?;
        let len = file.len()?;
        let mut head = [0; MAGIC.len() + ID];
        if len < SECTOR {
            return Err(damaged(format!("{path} is truncated")));
        }
        file.read_exact_at(&mut head, 0)?;
        let (magic, id) = head.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(damaged(format!("{path} is not a block log of this version")));
        }
        let id = id.try_into().expect("the head was split before the id");
        let reader = FrameReader { file: &*file, keys, id, file_len: len };
        let Some(base) = reader.read(SECTOR, 0)? else {
            return Err(damaged(format!("{path}: the first record is damaged, or belongs to another vault")));
        };
        let mut table = Table::decode(base.chained_to(&[0; TAG])?)?;
        let (base_len, mut tail, mut chain) = (base.end, base.end, base.tag);
        while let Some(next) = reader.read(tail, table.generation + 1)? {
            table.apply(&Delta::decode(next.chained_to(&chain)?)?)?;
            (tail, chain) = (next.end, next.tag);
        }
        if tail < len {
            reader.check_torn(tail, table.generation, path)?;
        }
        Ok((Self { file, id, tail, reserved: tail, base_len, chain, retry_at: 0 }, table))
    }

    /// Makes what [`Log::open`] read durable, and removes what it dropped. For when the disk has no room for the
    /// better way, a new log.
    pub(super) fn settle(&self) -> io::Result<()> {
        // Not without need: it would give back room that was reserved behind the end.
        if self.file.len()? > self.tail {
            self.file.set_len(self.tail)?;
        }
        self.file.sync_data()
    }

    /// Reserves room for a record, so that a full disk is found before anything is written.
    pub(super) fn reserve(&mut self, record_len: usize) -> io::Result<()> {
        let need = self.tail + frame_len(record_len);
        if need <= self.reserved {
            return Ok(());
        }
        let ahead = need.next_multiple_of(RESERVE_STEP_BYTES);
        self.reserved = match self.file.allocate(self.reserved, ahead - self.reserved) {
            Ok(()) => ahead,
            Err(e) if is_full(&e) => {
                self.file.allocate(self.reserved, need - self.reserved)?;
                need
            }
            Err(e) => return Err(e),
        };
        Ok(())
    }

    /// Appends the record of a generation and makes it durable.
    pub(super) fn append(
        &mut self,
        keys: &LiveKeys,
        env: &dyn Env,
        generation: u64,
        record: &[u8],
    ) -> io::Result<()> {
        let (frame, chain) = frame(keys, env, &self.id, &self.chain, generation, record)?;
        self.file.write_all_at(&frame, self.tail)?;
        self.file.sync_data()?;
        self.tail += frame.len() as u64;
        self.chain = chain;
        Ok(())
    }

    /// Tells whether deltas have outgrown the full record so far that a new log is due.
    pub(super) fn wants_compaction(&self) -> bool {
        let deltas = self.tail - self.base_len;
        deltas > COMPACT_MIN_BYTES.max(COMPACT_RATIO * self.base_len) && self.tail >= self.retry_at
    }

    /// Puts off the next attempt to rewrite the log: this one found no room.
    pub(super) fn delay_compaction(&mut self) {
        self.retry_at = self.tail + COMPACT_MIN_BYTES;
    }
}

fn aad(id: &[u8; ID], generation: u64) -> Vec<u8> {
    [&DOMAIN[..], id, &generation.to_le_bytes()].concat()
}

/// Length of the frame of a record, padding included.
fn frame_len(record_len: usize) -> u64 {
    (FRAME_HEAD + SEAL_OVERHEAD + (TAG + record_len) as u64).next_multiple_of(SECTOR)
}

/// Seals a record; returns its frame and its tag.
fn frame(
    keys: &LiveKeys,
    env: &dyn Env,
    id: &[u8; ID],
    chain: &[u8; TAG],
    generation: u64,
    record: &[u8],
) -> io::Result<(Vec<u8>, [u8; TAG])> {
    let sealed = keys.seal_record(env, &aad(id, generation), &[&chain[..], record].concat());
    let len = u32::try_from(sealed.len()).ok().filter(|len| u64::from(*len) <= MAX_SEALED);
    let len = len.ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))?;
    let mut out = Vec::with_capacity(frame_len(record.len()) as usize);
    out.extend(len.to_le_bytes());
    out.extend(generation.to_le_bytes());
    out.extend(&sealed);
    out.resize(out.len().next_multiple_of(SECTOR as usize), 0);
    let tag = sealed[sealed.len() - TAG..].try_into().expect("a sealed record ends with its tag");
    Ok((out, tag))
}

/// An authentic frame.
struct Frame {
    /// Tag of the frame before, then the record.
    content: Vec<u8>,
    tag: [u8; TAG],
    /// Where the next frame begins.
    end: u64,
}

impl Frame {
    /// Returns the record if it was appended to the frame with this tag.
    fn chained_to(&self, chain: &[u8; TAG]) -> io::Result<&[u8]> {
        match self.content.split_first_chunk::<TAG>() {
            Some((before, record)) if before == chain => Ok(record),
            _ => Err(damaged("the block log is put together from different histories".to_string())),
        }
    }
}

struct FrameReader<'a> {
    file: &'a dyn DiskFile,
    keys: &'a LiveKeys,
    id: [u8; ID],
    file_len: u64,
}

impl FrameReader<'_> {
    /// Reads length and generation of the frame at `at`, if they can be true.
    fn head(&self, at: u64) -> io::Result<Option<(usize, u64)>> {
        let left = self.file_len.saturating_sub(at);
        if left < FRAME_HEAD {
            return Ok(None);
        }
        let mut head = [0; FRAME_HEAD as usize];
        self.file.read_exact_at(&mut head, at)?;
        let mut input = Input(&head);
        let (len, generation) = (u64::from(u32::from_le_bytes(input.take()?)), input.u64()?);
        let fits = (SEAL_OVERHEAD..=MAX_SEALED.min(left - FRAME_HEAD)).contains(&len);
        Ok(fits.then_some((len as usize, generation)))
    }

    /// Reads the frame at `at` if it is complete, authentic, and not older than `oldest`.
    fn read(&self, at: u64, oldest: u64) -> io::Result<Option<Frame>> {
        let Some((len, generation)) = self.head(at)?.filter(|(_, generation)| *generation >= oldest) else {
            return Ok(None);
        };
        let mut sealed = vec![0; len];
        self.file.read_exact_at(&mut sealed, at + FRAME_HEAD)?;
        let Ok(content) = self.keys.open_record(&aad(&self.id, generation), &sealed) else { return Ok(None) };
        let tag = sealed[len - TAG..].try_into().expect("at least the overhead is there");
        let end = at + (FRAME_HEAD + len as u64).next_multiple_of(SECTOR);
        Ok(Some(Frame { content, tag, end }))
    }

    /// Checks that nothing authentic follows the frame at `tail`, which does not open: then it was torn by a crash.
    fn check_torn(&self, tail: u64, generation: u64, path: &str) -> io::Result<()> {
        let mut at = tail + SECTOR;
        while at < self.file_len {
            // Random bytes in place of a generation are hardly ever close to it, so few frames are tried in vain.
            let near = self.head(at)?.is_some_and(|(_, found)| found.wrapping_sub(generation) < 1 << 32);
            if near && self.read(at, generation)?.is_some() {
                return Err(damaged(format!("{path} is damaged at {tail}: a later record is intact")));
            }
            at += SECTOR;
        }
        let bytes = self.file_len - tail;
        tracing::warn!(path, bytes, "dropped an incomplete record at the end of the block log");
        Ok(())
    }
}

fn put_head(out: &mut Vec<u8>, kind: u8, generation: u64, len: u64, header_copy: u8) {
    out.push(kind);
    out.extend(generation.to_le_bytes());
    out.extend(len.to_le_bytes());
    out.push(header_copy);
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// An authentic record that makes no sense: a bug or another version, not an attack.
fn malformed() -> io::Error {
    damaged("the block log holds a malformed record".to_string())
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or_else(malformed)?;
        self.0 = rest;
        Ok(*head)
    }

    fn u64(&mut self) -> io::Result<u64> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    fn varint(&mut self) -> io::Result<u64> {
        let mut value = 0;
        for shift in (0..63).step_by(7) {
            let [byte] = self.take()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(malformed())
    }

    fn head(&mut self, kind: u8) -> io::Result<(u64, u64, u8)> {
        let [found] = self.take()?;
        let (generation, len, [copy]) = (self.u64()?, self.u64()?, self.take()?);
        if found != kind || len > MAX_LEN || copy > 1 || generation == u64::MAX {
            return Err(malformed());
        }
        Ok((generation, len, copy))
    }
}

/// A full record and a delta that follows it, for the fuzz target to start from.
pub(crate) fn fuzz_seeds() -> (Vec<u8>, Vec<u8>) {
    let len = 5 * super::BLOCK as u64;
    let table = Table { generation: 0, len, header_copy: 1, versions: vec![3, 0, u64::MAX] };
    let delta = Delta { generation: 1, len: 2 * len, header_copy: 0, cut: 2, changes: vec![(0, 9), (8, 1)] };
    (table.encode(), delta.encode())
}

/// Body of a fuzz target. The input is taken for a record; for a whole log, as an attacker without keys can write it;
/// and for records, each after its length, that are sealed in their places: the table is what a simple reader makes of
/// them.
pub(crate) fn fuzz(data: &[u8]) {
    /// Longer files are as good as any, but their tables take memory.
    const FUZZ_LEN_MAX: u64 = 1 << 30;
    if let Ok(table) = Table::decode(data) {
        assert_eq!(table.encode(), data);
    }
    if let Ok(delta) = Delta::decode(data) {
        assert!(Delta::decode(&delta.encode()).is_ok_and(|again| again == delta));
    }
    let secret = || crate::crypto::Secret::<32>::fill_with(|bytes| bytes.fill(1));
    let keys = LiveKeys::new(crate::format::VaultId([1; 16]), &secret(), &secret());
    let env = crate::env::TestEnv::new(1);
    let open = |bytes: &[u8]| {
        let disk = crate::disk::SimDisk::new(1);
        disk.raw_write("log", bytes);
        Log::open(&disk, "log", &keys).map(|(_, table)| table)
    };
    assert!(open(data).is_err(), "a log that nobody sealed");

    let id = [3; ID];
    let mut bytes = [&MAGIC[..], &id].concat();
    bytes.resize(SECTOR as usize, 0);
    let (mut rest, mut chain) = (data, [0; TAG]);
    let mut expected: Option<io::Result<Table>> = None;
    while let Some((len, tail)) = rest.split_first_chunk::<2>() {
        let (record, tail) = tail.split_at(usize::from(u16::from_le_bytes(*len)).min(tail.len()));
        rest = tail;
        let generation = match &expected {
            None => 0,
            Some(Ok(table)) => table.generation + 1,
            Some(Err(_)) => break,
        };
        let next = match expected {
            Some(Ok(mut table)) => Delta::decode(record).and_then(|delta| {
                table.apply(&delta)?;
                Ok(table)
            }),
            _ => Table::decode(record),
        };
        if next.as_ref().is_ok_and(|table| table.len > FUZZ_LEN_MAX) {
            return;
        }
        let Ok((frame, tag)) = frame(&keys, &env, &id, &chain, generation, record) else { return };
        bytes.extend(frame);
        chain = tag;
        expected = Some(next);
    }
    match (open(&bytes), expected) {
        (Ok(found), Some(Ok(expected))) => assert_eq!(found, expected),
        (Err(_), None | Some(Err(_))) => {}
        (found, expected) => panic!("{found:?} is not {expected:?}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::BLOCK;
    use super::*;

    fn table() -> Table {
        Table { generation: 7, len: 5 * BLOCK as u64, header_copy: 1, versions: vec![3, 0, u64::MAX] }
    }

    fn delta() -> Delta {
        Delta {
            generation: 8,
            len: 900 * BLOCK as u64,
            header_copy: 0,
            cut: 2,
            changes: vec![(0, 9), (899, 1)],
        }
    }

    #[test]
    fn records_round_trip() {
        assert_eq!(Table::decode(&table().encode()).unwrap(), table());
        assert_eq!(Delta::decode(&delta().encode()).unwrap(), delta());
        let mut merged = table();
        merged.apply(&delta()).unwrap();
        assert_eq!((merged.version(0), merged.version(1), merged.version(2)), (9, 0, 0));
        assert_eq!((merged.version(899), merged.version(900), merged.generation), (1, 0, 8));
    }

    #[test]
    fn malformed_records_are_errors() {
        for full in [true, false] {
            let good = if full { table().encode() } else { delta().encode() };
            let decode = |b: &[u8]| if full { Table::decode(b).is_err() } else { Delta::decode(b).is_err() };
            for cut in 0..good.len() {
                assert!(decode(&good[..cut]), "{full} {cut}");
            }
            assert!(decode(&[&good[..], &[0]].concat()));
            let patched = |at: usize, to: u8| {
                let mut bad = good.clone();
                bad[at] = to;
                bad
            };
            assert!(decode(&patched(0, 3)), "kind");
            assert!(decode(&patched(16, 0xff)), "length");
            assert!(decode(&patched(17, 2)), "copy");
            assert!(decode(&patched(25, 0xff)), "count or cut");
        }
        let beyond = Delta { changes: vec![(900, 1)], ..delta() };
        assert!(Delta::decode(&beyond.encode()).is_err());
        let zero = Delta { changes: vec![(1, 0)], ..delta() };
        assert!(Delta::decode(&zero.encode()).is_err());
        assert!(table().apply(&Delta { generation: 9, ..delta() }).is_err());
        assert!(table().apply(&Delta { cut: 6, ..delta() }).is_err());
    }
}
