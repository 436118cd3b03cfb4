//! The content of one file that is imported: read in order, cut, and stored by the workers.

use std::collections::VecDeque;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::format::{ChunkId, Content, Extent};
use crate::store::Effort;
use crate::store::chunker::Chunker;
use crate::store::error::Result;
use crate::store::packs::Packs;

use super::write::{ContentWriter, INLINE_WRITTEN_MAX};

/// Chunks of one file whose result is awaited before its extents go to the writer.
const SLOTS_MAX: usize = 1024;

/// One chunk of a file on its way.
struct Slot {
    offset: u64,
    len: u64,
    id: Option<Result<ChunkId>>,
}

/// Chunks in file order; workers fill in their ids in any order.
#[derive(Default)]
struct Slots {
    state: Mutex<SlotState>,
    filled: Condvar,
}

#[derive(Default)]
struct SlotState {
    /// How many were taken out at the front.
    taken: usize,
    waiting: VecDeque<Slot>,
}

impl Slots {
    fn lock(&self) -> MutexGuard<'_, SlotState> {
        // The state is valid after every statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Content that is being stored. [`Pending::finish`] waits for it.
pub(super) struct Pending<'a> {
    slots: Arc<Slots>,
    writer: Option<ContentWriter<'a>>,
    done: Option<Content>,
}

impl<'a> Pending<'a> {
    /// Content that needs no chunk.
    pub(super) fn ready(content: Content) -> Self {
        Pending { slots: Arc::default(), writer: None, done: Some(content) }
    }

    fn streamed(packs: &'a Packs) -> Self {
        Pending { slots: Arc::default(), writer: Some(ContentWriter::new(packs)), done: None }
    }

    fn submit(&mut self, packs: &Packs, offset: u64, bytes: Vec<u8>) -> Result<()> {
        let number = {
            let mut state = self.slots.lock();
            state.waiting.push_back(Slot { offset, len: bytes.len() as u64, id: None });
            state.taken + state.waiting.len() - 1
        };
        let slots = Arc::clone(&self.slots);
        packs.submit(
            bytes,
            Effort::Thorough,
            Box::new(move |id| {
                let mut state = slots.lock();
                let at = number - state.taken;
                if let Some(slot) = state.waiting.get_mut(at) {
                    slot.id = Some(id);
                }
                drop(state);
                slots.filled.notify_all();
            }),
        );
        let wait = self.slots.lock().waiting.len() > SLOTS_MAX;
        self.drain(wait.then_some(SLOTS_MAX / 2)).map(|_| ())
    }

    /// Hands finished extents to the writer, in order. `Some(n)`: waits until at most n are left.
    fn drain(&mut self, down_to: Option<usize>) -> Result<bool> {
        let Some(writer) = &mut self.writer else { return Ok(true) };
        let mut state = self.slots.lock();
        loop {
            match state.waiting.front() {
                None => return Ok(true),
                Some(Slot { id: Some(_), .. }) => {}
                Some(_) if down_to.is_none_or(|n| state.waiting.len() <= n) => return Ok(false),
                Some(_) => {
                    state = self.slots.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
            }
            if let Some(Slot { offset, len, id: Some(id) }) = state.waiting.pop_front() {
                state.taken += 1;
                drop(state);
                writer.push(Extent { offset, len, chunk: id?, chunk_offset: 0 })?;
                state = self.slots.lock();
            }
        }
    }

    /// Returns whether [`Pending::finish`] would not have to wait.
    pub(super) fn is_ready(&mut self) -> Result<bool> {
        self.drain(None)
    }

    /// Waits for all chunks and returns the content; the same each time.
    pub(super) fn finish(&mut self) -> Result<Content> {
        self.drain(Some(0))?;
        if let Some(writer) = self.writer.take() {
            self.done = Some(writer.finish()?);
        }
        Ok(self.done.clone().unwrap_or(Content::Empty))
    }
}

/// Why a file's content could not be read.
pub(super) enum ReadError {
    /// The file system failed.
    Os(Errno),
    /// The vault failed: the import can't go on.
    Store(crate::store::error::StoreError),
}

impl From<Errno> for ReadError {
    fn from(e: Errno) -> Self {
        ReadError::Os(e)
    }
}

impl From<crate::store::error::StoreError> for ReadError {
    fn from(e: crate::store::error::StoreError) -> Self {
        ReadError::Store(e)
    }
}

/// Reads files and stores their content.
pub(super) struct FileReader<'a> {
    packs: &'a Packs,
    chunker: Chunker,
    buffer: Vec<u8>,
}

impl<'a> FileReader<'a> {
    pub(super) fn new(packs: &'a Packs, chunker: Chunker) -> Self {
        FileReader { packs, chunker, buffer: Vec::new() }
    }

    /// Stores what an open file of `size` bytes holds. Returns the content and the size up to which there was
    /// a file: less than `size` if it shrank. `progress` is told of bytes as they are read, holes included.
    pub(super) fn read(
        &mut self,
        file: &OwnedFd,
        size: u64,
        progress: &mut dyn FnMut(u64),
    ) -> std::result::Result<(Pending<'a>, u64), ReadError> {
        if size == 0 {
            return Ok((Pending::ready(Content::Empty), 0));
        }
        if size <= INLINE_WRITTEN_MAX as u64 {
            let mut bytes = vec![0; size as usize];
            let n = read_full(file, &mut bytes, 0)?;
            bytes.truncate(n);
            progress(n as u64);
            let content = if n == 0 { Content::Empty } else { Content::Inline(bytes) };
            return Ok((Pending::ready(content), n as u64));
        }
        let mut pending = Pending::streamed(self.packs);
        let mut at = 0;
        while at < size {
            let Some((start, end)) = next_data(file, at, size)? else {
                break;
            };
            progress(start - at);
            let reached = self.range(file, start, end, &mut pending, progress)?;
            if reached < end {
                return Ok((pending, reached));
            }
            at = end;
        }
        progress(size - at);
        Ok((pending, size))
    }

    /// Cuts and submits one run of data. Returns where the file ended, or `end`.
    fn range(
        &mut self,
        file: &OwnedFd,
        start: u64,
        end: u64,
        pending: &mut Pending<'a>,
        progress: &mut dyn FnMut(u64),
    ) -> std::result::Result<u64, ReadError> {
        let want = 2 * self.chunker.max_len();
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        // Bytes of the buffer that were submitted; where the buffer begins in the file; whether the run ends
        // with it.
        let (mut used, mut base, mut end) = (0, start, end);
        loop {
            let have = buffer.len() - used;
            let position = base + buffer.len() as u64;
            if have < self.chunker.max_len() && position < end {
                buffer.drain(..used);
                base += used as u64;
                used = 0;
                let room = (want - have) as u64;
                // Both are at most twice the largest chunk.
                let ask = room.min(end - position) as usize;
                buffer.resize(have + ask, 0);
                let n = read_full(file, &mut buffer[have..], position)?;
                buffer.truncate(have + n);
                progress(n as u64);
                if n < ask {
                    end = position + n as u64;
                }
            }
            let last = base + buffer.len() as u64 >= end;
            match self.chunker.cut(&buffer[used..], last) {
                Some(len) => {
                    pending.submit(self.packs, base + used as u64, buffer[used..used + len].to_vec())?;
                    used += len;
                }
                None if last => break,
                None => {}
            }
        }
        self.buffer = buffer;
        Ok(end)
    }
}

/// Returns the next run of data at or after `at`, below `size`.
fn next_data(file: &OwnedFd, at: u64, size: u64) -> std::result::Result<Option<(u64, u64)>, Errno> {
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) if start < size => start,
        Ok(_) | Err(Errno::NXIO) => return Ok(None),
        // A filesystem that knows no holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((at, size))),
        Err(e) => return Err(e),
    };
    match rustix::fs::seek(file, SeekFrom::Hole(start)) {
        Ok(end) if end > start => Ok(Some((start, end.min(size)))),
        Ok(_) | Err(Errno::NXIO) => Ok(Some((start, size))),
        Err(e) => Err(e),
    }
}

/// Reads until the buffer is full or the file ends.
fn read_full(file: &OwnedFd, buf: &mut [u8], offset: u64) -> std::result::Result<usize, Errno> {
    let mut done = 0;
    while done < buf.len() {
        match rustix::io::pread(file, &mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// Opens a regular file for reading, without following a link, without waiting, and without changing its
/// access time where we may.
pub(super) fn open_file(dir: BorrowedFd<'_>, name: &[u8]) -> std::result::Result<OwnedFd, Errno> {
    use rustix::fs::{Mode, OFlags, openat};
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match openat(dir, name, flags | OFlags::NOATIME, Mode::empty()) {
        // Only the owner of a file may leave its access time alone.
        Err(Errno::PERM) => openat(dir, name, flags, Mode::empty()),
        other => other,
    }
}
