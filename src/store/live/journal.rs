//! The journal: what was committed since the last checkpoint, in two preallocated segments used in turn.
//!
//! ```text
//! segment = header slot (4,096 bytes)   frame*              every frame starts at a multiple of 512 bytes
//! slot    = u32 length   sealed header                      AAD: "strongroom v1 segment" || epoch || u8 slot
//! header  = u64 segment number   u64 sequence number of the first frame
//! frame   = u32 length   sealed record                      AAD: "strongroom v1 journal" || epoch || u64 segment number
//!                                                                || u64 sequence number || tag of the frame before
//! record  = u8 last (1) or not (0)   u64 from   u64 to   ops
//! ```
//!
//! A commit writes one group of frames and one fdatasync. The group holds the batches after number `from` up to `to`;
//! only its last frame has the flag, and a group without it was torn. The first frame of a segment has the tag of the
//! sealed header for "frame before", so each use of a segment is a chain of its own: a torn tail, a stale frame of an
//! earlier use, a frame moved or copied from elsewhere do not open. Recovery replays a segment up to the first frame
//! that doesn't open, and requires the groups it replays to follow each other without a gap.
//!
//! Frames are aligned because a power cut may damage the 512-byte sectors that were being written, and the end of a
//! committed frame must not be among them.
//!
//! A segment is *free* when the database holds all its batches. Its header is written again when its next use
//! begins, together with its first group.

use std::io;
use std::sync::Arc;

use super::base::Epoch;
use super::batch::Ops;
use crate::crypto::LiveKeys;
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::env::Env;
use crate::store::error::{Result, StoreError};
use crate::store::records::INLINE_ROW_MAX;

const DIR: &str = "live/journal";
const PATHS: [&str; 2] = ["live/journal/a", "live/journal/b"];

const HEADER_SLOT: u64 = 4096;
const ALIGN: u64 = 512;
/// Plaintext operations in one frame.
const PART_MAX: usize = 4 << 20;
const RECORD_HEAD: usize = 17;
/// Nonce and tag.
const SEAL: usize = 40;
const TAG: usize = 16;
/// What one frame takes besides its operations, before alignment.
const FRAME_HEAD: usize = 4 + SEAL + RECORD_HEAD;

/// The smallest segment that makes sense: some changes of the largest kind, small files' data, fit into it.
pub(super) const SEGMENT_MIN: u64 = 4 * INLINE_ROW_MAX as u64;

type Tag = [u8; TAG];

struct Segment {
    file: Arc<dyn DiskFile>,
    /// 0: never used, or its header does not open.
    number: u64,
    /// Number of the last batch in it.
    last: u64,
    size: u64,
}

/// Where a journal ended when it was closed, for the database to remember: with it the next open needs to read only whether
/// there is more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    numbers: [u64; 2],
    current: u8,
    pos: u64,
    seq: u64,
    tag: Tag,
}

impl End {
    const LEN: usize = 2 * 8 + 1 + 2 * 8 + TAG;

    pub(super) fn encode(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..8].copy_from_slice(&self.numbers[0].to_le_bytes());
        out[8..16].copy_from_slice(&self.numbers[1].to_le_bytes());
        out[16] = self.current;
        out[17..25].copy_from_slice(&self.pos.to_le_bytes());
        out[25..33].copy_from_slice(&self.seq.to_le_bytes());
        out[33..].copy_from_slice(&self.tag);
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<End> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().ok()?;
        let number =
            |at: usize| -> u64 { bytes[at..at + 8].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)) };
        let (current, tag) = (bytes[16], *bytes.last_chunk::<TAG>()?);
        (current < 2).then(|| End {
            numbers: [number(0), number(8)],
            current,
            pos: number(17),
            seq: number(25),
            tag,
        })
    }
}

/// The open journal. One commit at a time writes to it.
pub(super) struct Journal {
    keys: LiveKeys,
    env: Arc<dyn Env>,
    epoch: Epoch,
    segments: [Segment; 2],
    current: usize,
    /// Where the next frame goes.
    pos: u64,
    /// Its sequence number.
    seq: u64,
    /// The tag of the frame before.
    tag: Tag,
    /// Bytes that all commits wrote together.
    written: u64,
}

/// A group of batches found by recovery.
pub(super) struct Group<'a> {
    /// Number of the last batch before the group.
    pub(super) from: u64,
    /// Number of the last batch in the group.
    pub(super) to: u64,
    pub(super) ops: Ops<'a>,
}

/// What a scan of one segment found.
struct Scan {
    number: u64,
    pos: u64,
    seq: u64,
    tag: Tag,
    last: u64,
}

fn fail(what: &str, slot: usize) -> impl Fn(io::Error) -> StoreError + use<> {
    let what = format!("cannot {what} {}", PATHS[slot]);
    move |e| StoreError::io(what.clone(), e)
}

impl Journal {
    /// Makes both segments anew and writes every byte of them, so that commits never allocate space.
    pub(super) fn create(
        disk: &dyn Disk,
        keys: LiveKeys,
        env: Arc<dyn Env>,
        epoch: Epoch,
        size: u64,
    ) -> Result<Journal> {
        disk.create_dir_all(DIR).map_err(|e| StoreError::io("cannot create the journal", e))?;
        let make = |slot: usize| -> Result<Segment> {
            match disk.remove(PATHS[slot]) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(fail("remove", slot)(e)),
                _ => {}
            }
            let file = disk.open(PATHS[slot], OpenMode::CreateNew).map_err(fail("create", slot))?;
            fill(&*file, &*env, 0, size).map_err(fail("fill", slot))?;
            Ok(Segment { file, number: 0, last: 0, size })
        };
        let segments = [make(0)?, make(1)?];
        let mut journal =
            Journal { keys, env, epoch, segments, current: 1, pos: 0, seq: 1, tag: [0; TAG], written: 0 };
        journal.switch().map_err(fail("begin", 0))?;
        journal.segments[0].file.sync_data().map_err(fail("sync", 0))?;
        disk.sync_dir(DIR).map_err(|e| StoreError::io("cannot create the journal", e))?;
        Ok(journal)
    }

    /// Opens both segments and passes every whole group to `replay`, in the order in which they were written. If the journal
    /// still ends where the database remembers it to have been closed, `closed`, there is nothing to pass, and another segment
    /// is begun.
    pub(super) fn open(
        disk: &dyn Disk,
        keys: LiveKeys,
        env: Arc<dyn Env>,
        epoch: Epoch,
        size: u64,
        closed: Option<End>,
        replay: &mut dyn FnMut(Group<'_>) -> Result<()>,
    ) -> Result<Journal> {
        let open = |slot: usize| -> Result<Segment> {
            let file = disk.open(PATHS[slot], OpenMode::ReadWrite).map_err(|e| match e.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::InvalidData => {
                    StoreError::Corrupt(format!("{} is missing or no file", PATHS[slot]))
                }
                _ => fail("open", slot)(e),
            })?;
            let len = file.len().map_err(fail("measure", slot))?;
            Ok(Segment { file, number: 0, last: 0, size: len })
        };
        let segments = [open(0)?, open(1)?];
        let mut journal = Journal {
            keys,
            env,
            epoch,
            segments,
            current: 0,
            pos: HEADER_SLOT,
            seq: 1,
            tag: [0; TAG],
            written: 0,
        };
        let headers = [journal.read_header(0)?, journal.read_header(1)?];
        let mut order: Vec<usize> = (0..2).filter(|&slot| headers[slot].is_some()).collect();
        order.sort_by_key(|&slot| headers[slot].as_ref().map(|scan| scan.number));
        if order.is_empty() {
            return Err(StoreError::Corrupt("neither journal segment has a sound header".into()));
        }
        for (slot, header) in headers.into_iter().enumerate() {
            journal.segments[slot].number = header.as_ref().map_or(0, |scan| scan.number);
        }
        if journal.segments[0].number == journal.segments[1].number {
            return Err(StoreError::Corrupt("both journal segments have the same number".into()));
        }
        let closed = match closed {
            Some(end) if journal.ends_at(&end)? => Some(end),
            _ => None,
        };
        if let Some(end) = closed {
            journal.current = usize::from(end.current);
            (journal.pos, journal.seq, journal.tag) = (end.pos, end.seq, end.tag);
        } else {
            for slot in order {
                let Some(start) = journal.read_header(slot)? else { continue };
                let end = journal.scan(slot, start, replay)?;
                journal.segments[slot].last = end.last;
                journal.current = slot;
                (journal.pos, journal.seq, journal.tag) = (end.pos, end.seq, end.tag);
            }
        }
        for (slot, segment) in journal.segments.iter_mut().enumerate() {
            if segment.size < size {
                fill(&*segment.file, &*journal.env, segment.size, size).map_err(fail("fill", slot))?;
                segment.size = size;
            }
            // What was replayed may have been in the page cache only, if nothing but the process died.
            segment.file.sync_data().map_err(fail("sync", slot))?;
        }
        if closed.is_some() {
            // Not after frames that were not read: if one of them is damaged, recovery would end there.
            journal.switch().map_err(fail("begin", 1 - journal.current))?;
        }
        Ok(journal)
    }

    /// Returns where it ends.
    pub(super) fn end(&self) -> End {
        End {
            numbers: [self.segments[0].number, self.segments[1].number],
            current: u8::from(self.current == 1),
            pos: self.pos,
            seq: self.seq,
            tag: self.tag,
        }
    }

    /// Tells whether neither segment was used since it ended there, as far as headers and the next frame tell.
    fn ends_at(&self, end: &End) -> Result<bool> {
        let (slot, number) = (usize::from(end.current), end.numbers[usize::from(end.current)]);
        if end.numbers != [self.segments[0].number, self.segments[1].number] || end.pos < HEADER_SLOT {
            return Ok(false);
        }
        let Some(sealed) = self.read_sealed(slot, end.pos, u64::MAX)? else { return Ok(true) };
        let next = self.keys.open_record(&frame_aad(&self.epoch, number, end.seq, &end.tag), &sealed);
        Ok(next.is_err())
    }

    /// Bytes written so far by all commits of this process, and by those that recovery found.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Makes a group durable. False: there is no room before a checkpoint; nothing was written. Batches up to `floor`
    /// are in the database. After an error nobody knows what is on disk, and nothing may be appended.
    pub(super) fn append(&mut self, ops: &[u8], from: u64, to: u64, floor: u64) -> Result<bool> {
        let need = group_len(ops.len());
        if !self.has_room(ops.len(), floor) {
            return Ok(false);
        }
        // The sooner a segment is left, the sooner a checkpoint frees it.
        let half_full = self.pos > self.segments[self.current].size / 2;
        if !self.fits_here(need) || (half_full && self.fits_other(need, floor)) {
            self.switch().map_err(fail("begin", 1 - self.current))?;
        }
        let number = self.segments[self.current].number;
        let mut out = Vec::with_capacity(usize::try_from(need).unwrap_or(0));
        let mut parts = ops.chunks(PART_MAX).peekable();
        let (mut seq, mut tag) = (self.seq, self.tag);
        while let Some(part) = parts.next() {
            let mut record = Vec::with_capacity(RECORD_HEAD + part.len());
            record.push(u8::from(parts.peek().is_none()));
            record.extend_from_slice(&from.to_le_bytes());
            record.extend_from_slice(&to.to_le_bytes());
            record.extend_from_slice(part);
            let sealed =
                self.keys.seal_record(&*self.env, &frame_aad(&self.epoch, number, seq, &tag), &record);
            tag = put_sealed(&mut out, &sealed);
            seq += 1;
            let aligned = out.len().next_multiple_of(ALIGN as usize);
            out.resize(aligned, 0);
        }
        let segment = &mut self.segments[self.current];
        segment.file.write_all_at(&out, self.pos).map_err(fail("write", self.current))?;
        segment.file.sync_data().map_err(fail("sync", self.current))?;
        segment.last = to;
        self.pos += out.len() as u64;
        self.written += out.len() as u64;
        (self.seq, self.tag) = (seq, tag);
        Ok(true)
    }

    /// Tells whether a group of so many bytes of operations can be appended.
    pub(super) fn has_room(&self, ops: usize, floor: u64) -> bool {
        let need = group_len(ops);
        self.fits_here(need) || self.fits_other(need, floor)
    }

    fn fits_here(&self, need: u64) -> bool {
        need <= self.segments[self.current].size.saturating_sub(self.pos)
    }

    /// Tells whether the other segment is free and large enough.
    fn fits_other(&self, need: u64, floor: u64) -> bool {
        let other = &self.segments[1 - self.current];
        other.last <= floor && need <= other.size.saturating_sub(HEADER_SLOT)
    }

    /// Begins to use the other segment. The header becomes durable with the first group.
    fn switch(&mut self) -> io::Result<()> {
        let slot = 1 - self.current;
        let number = self.segments[self.current].number + 1;
        let mut header = [0; 16];
        header[..8].copy_from_slice(&number.to_le_bytes());
        header[8..].copy_from_slice(&self.seq.to_le_bytes());
        let sealed = self.keys.seal_record(&*self.env, &header_aad(&self.epoch, slot), &header);
        let mut out = Vec::new();
        let tag = put_sealed(&mut out, &sealed);
        let segment = &mut self.segments[slot];
        segment.file.write_all_at(&out, 0)?;
        (segment.number, segment.last) = (number, 0);
        (self.current, self.pos, self.tag) = (slot, HEADER_SLOT, tag);
        Ok(())
    }

    /// Returns where a segment's frames begin, or `None` when its header doesn't open.
    fn read_header(&self, slot: usize) -> Result<Option<Scan>> {
        let Some(sealed) = self.read_sealed(slot, 0, HEADER_SLOT)? else { return Ok(None) };
        let Ok(header) = self.keys.open_record(&header_aad(&self.epoch, slot), &sealed) else {
            return Ok(None);
        };
        let Some((number, seq)) = header.split_first_chunk::<8>() else { return Ok(None) };
        let (Ok(seq), Some(tag)) = (<[u8; 8]>::try_from(seq), sealed.last_chunk::<TAG>()) else {
            return Ok(None);
        };
        Ok(Some(Scan {
            number: u64::from_le_bytes(*number),
            pos: HEADER_SLOT,
            seq: u64::from_le_bytes(seq),
            tag: *tag,
            last: 0,
        }))
    }

    /// Reads a length and as many bytes, which must end before `end`. `None`: they don't, or the file is shorter.
    fn read_sealed(&self, slot: usize, pos: u64, end: u64) -> Result<Option<Vec<u8>>> {
        let segment = &self.segments[slot];
        let end = end.min(segment.size);
        if end.saturating_sub(pos) < 4 {
            return Ok(None);
        }
        let mut len = [0; 4];
        segment.file.read_exact_at(&mut len, pos).map_err(fail("read", slot))?;
        let len = u32::from_le_bytes(len) as usize;
        let room = end - pos - 4;
        if !(SEAL..=SEAL + RECORD_HEAD + PART_MAX).contains(&len) || len as u64 > room {
            return Ok(None);
        }
        let mut sealed = vec![0; len];
        segment.file.read_exact_at(&mut sealed, pos + 4).map_err(fail("read", slot))?;
        Ok(Some(sealed))
    }

    /// Replays a segment's whole groups and returns where the last of them ends.
    fn scan(
        &mut self,
        slot: usize,
        start: Scan,
        replay: &mut dyn FnMut(Group<'_>) -> Result<()>,
    ) -> Result<Scan> {
        let mut end = start;
        let (mut pos, mut seq, mut tag) = (end.pos, end.seq, end.tag);
        let mut ops = Vec::new();
        while let Some(sealed) = self.read_sealed(slot, pos, u64::MAX)? {
            let Ok(record) = self.keys.open_record(&frame_aad(&self.epoch, end.number, seq, &tag), &sealed)
            else {
                break;
            };
            // From here on the bytes are our own.
            let bad = || StoreError::Corrupt(format!("{} holds a malformed record", PATHS[slot]));
            let (head, part) = record.split_at_checked(RECORD_HEAD).ok_or_else(bad)?;
            let number =
                |at: usize| -> u64 { head[at..at + 8].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)) };
            let (from, to) = (number(1), number(9));
            ops.extend_from_slice(part);
            pos = (pos + 4 + sealed.len() as u64).next_multiple_of(ALIGN);
            seq += 1;
            tag = *sealed.last_chunk::<TAG>().ok_or_else(bad)?;
            match head[0] {
                0 => {}
                1 => {
                    replay(Group { from, to, ops: Ops(&ops) })?;
                    ops.clear();
                    self.written += pos - end.pos;
                    end = Scan { number: end.number, pos, seq, tag, last: to };
                }
                _ => return Err(bad()),
            }
        }
        Ok(end)
    }
}

fn header_aad(epoch: &Epoch, slot: usize) -> Vec<u8> {
    let mut aad = b"strongroom v1 segment".to_vec();
    aad.extend_from_slice(epoch);
    aad.push(u8::from(slot == 1));
    aad
}

fn frame_aad(epoch: &Epoch, number: u64, seq: u64, before: &Tag) -> Vec<u8> {
    let mut aad = b"strongroom v1 journal".to_vec();
    aad.extend_from_slice(epoch);
    aad.extend_from_slice(&number.to_le_bytes());
    aad.extend_from_slice(&seq.to_le_bytes());
    aad.extend_from_slice(before);
    aad
}

/// Appends length and bytes, and returns the seal's tag.
fn put_sealed(out: &mut Vec<u8>, sealed: &[u8]) -> Tag {
    let len = u32::try_from(sealed.len()).expect("records are cut to a few MiB");
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(sealed);
    *sealed.last_chunk().expect("a sealed record ends with its tag")
}

/// Returns the bytes that a group takes in a segment.
fn group_len(ops: usize) -> u64 {
    let frame = |part: usize| ((FRAME_HEAD + part) as u64).next_multiple_of(ALIGN);
    let rest = ops % PART_MAX;
    (ops / PART_MAX) as u64 * frame(PART_MAX) + if rest > 0 { frame(rest) } else { 0 }
}

/// Returns the largest group that an empty segment can take for sure.
pub(super) fn group_max(segment: u64) -> usize {
    let room = segment.saturating_sub(HEADER_SLOT);
    // Each started part costs less than 1 KiB beyond its operations.
    let parts = room / PART_MAX as u64 + 1;
    usize::try_from(room.saturating_sub(parts * 1024)).unwrap_or(usize::MAX)
}

/// Writes bytes that no filesystem can leave out or compress, and makes them durable.
fn fill(file: &dyn DiskFile, env: &dyn Env, mut from: u64, to: u64) -> io::Result<()> {
    file.allocate(from, to.saturating_sub(from))?;
    let mut noise = vec![0; 256 << 10];
    env.random(&mut noise);
    while from < to {
        let n = usize::try_from(to - from).unwrap_or(usize::MAX).min(noise.len());
        file.write_all_at(&noise[..n], from)?;
        from += n as u64;
    }
    file.sync_data()
}

/// Body of a fuzz target. The input is first taken for both segments, as an attacker without keys can write them; then
/// for records, each after its length, that are sealed in their places: what is replayed is what a simple reader makes
/// of them.
pub(super) fn fuzz(data: &[u8]) {
    type Groups = Vec<(u64, u64, Vec<u8>)>;
    const EPOCH: Epoch = [7; 16];
    let secret = || crate::crypto::Secret::<32>::fill_with(|bytes| bytes.fill(1));
    let keys = LiveKeys::new(crate::format::VaultId([1; 16]), &secret(), &secret());
    let env: Arc<dyn Env> = Arc::new(crate::env::TestEnv::new(1));
    let open = |segments: [&[u8]; 2]| -> Result<Groups> {
        let disk = crate::disk::SimDisk::new(1);
        for (path, bytes) in PATHS.iter().zip(segments) {
            disk.raw_write(path, bytes);
        }
        let mut groups = Vec::new();
        Journal::open(&disk, keys.clone(), env.clone(), EPOCH, 0, None, &mut |group| {
            groups.push((group.from, group.to, group.ops.0.to_vec()));
            Ok(())
        })?;
        Ok(groups)
    };
    assert!(open([data, data]).is_err(), "a segment that nobody sealed");

    let mut bytes = Vec::new();
    let header = [1u64.to_le_bytes(), 1u64.to_le_bytes()].concat();
    let mut tag = put_sealed(&mut bytes, &keys.seal_record(&*env, &header_aad(&EPOCH, 0), &header));
    bytes.resize(HEADER_SLOT as usize, 0);
    let (mut rest, mut seq) = (data, 1);
    let (mut expected, mut ops, mut sound) = (Groups::new(), Vec::new(), true);
    while let Some((len, tail)) = rest.split_first_chunk::<2>() {
        let (record, tail) = tail.split_at(usize::from(u16::from_le_bytes(*len)).min(tail.len()));
        rest = tail;
        tag = put_sealed(&mut bytes, &keys.seal_record(&*env, &frame_aad(&EPOCH, 1, seq, &tag), record));
        bytes.resize(bytes.len().next_multiple_of(ALIGN as usize), 0);
        seq += 1;
        match record.split_first_chunk::<RECORD_HEAD>() {
            Some((head, part)) if sound && head[0] <= 1 => {
                ops.extend_from_slice(part);
                if head[0] == 1 {
                    let (from, to) = head[1..].split_at(8);
                    let number = |b: &[u8]| u64::from_le_bytes(b.try_into().expect("8 of 16 bytes"));
                    expected.push((number(from), number(to), std::mem::take(&mut ops)));
                }
            }
            _ => sound = false,
        }
    }
    match open([&bytes, data]) {
        Ok(groups) => assert!(sound && groups == expected),
        Err(error) => assert!(!sound, "{error}"),
    }
}
