//! Written bytes of one file that are not on their way to a pack yet: segments by offset, never overlapping.
//!
//! Segments may touch. Appending to one is the common case and costs one copy; data that arrives out of order (the
//! kernel's writeback) makes segments of its own, joined when a run of them is cut into chunks.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::gaps::Gaps;
use crate::store::pool::{Buf, Pool};

/// A segment that grows gets room for this much more at a time once it is larger, not for twice its size.
const GROWTH_MAX: usize = 2 << 20;

/// A segment that becomes longer than this moves into a buffer of the pool, if it gets one: it belongs to a stream.
const POOLED_FROM: usize = 1 << 20;

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct DirtyMap {
    segments: BTreeMap<u64, Buf>,
    bytes: u64,
    pool: Option<Arc<Pool>>,
}

impl DirtyMap {
    /// Returns an empty map whose long segments stand in buffers of `pool`.
    pub(super) fn with_pool(pool: &Arc<Pool>) -> Self {
        Self { pool: Some(Arc::clone(pool)), ..Self::default() }
    }

    /// Returns how many bytes it holds.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns whether it holds nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Returns the end of its last byte.
    pub(super) fn end(&self) -> u64 {
        self.segments.last_key_value().map_or(0, |(off, seg)| off + seg.len() as u64)
    }

    /// Puts `data` at `off` over what was there. Returns by how many bytes the map grew.
    pub(super) fn insert(&mut self, off: u64, data: &[u8]) -> u64 {
        let before = self.bytes;
        let end = off + data.len() as u64;
        if let Some((&at, seg)) = self.segments.range_mut(..=off).next_back() {
            let (seg_end, skip) = (at + seg.len() as u64, (off - at) as usize);
            if end <= seg_end {
                seg[skip..skip + data.len()].copy_from_slice(data);
                return 0;
            }
            if off <= seg_end {
                let inside = (seg_end - off) as usize;
                seg[skip..].copy_from_slice(&data[..inside]);
                self.remove(seg_end, end);
                self.append(at, &data[inside..]);
                return self.bytes - before;
            }
        }
        self.remove(off, end);
        self.bytes += data.len() as u64;
        match self.segments.remove(&end) {
            // A short successor is joined, so that small writes that come in descending order stay few segments.
            Some(next) if next.len() <= data.len() => {
                let mut joined = Vec::with_capacity(data.len() + next.len());
                joined.extend_from_slice(data);
                joined.extend_from_slice(&next);
                self.segments.insert(off, joined.into());
            }
            Some(next) => {
                self.segments.insert(end, next);
                self.segments.insert(off, data.to_vec().into());
            }
            None => {
                self.segments.insert(off, data.to_vec().into());
            }
        }
        self.bytes - before
    }

    fn append(&mut self, at: u64, data: &[u8]) {
        if let Some(seg) = self.segments.get_mut(&at) {
            let room = seg.capacity() - seg.len();
            let needed = seg.len() + data.len();
            if room < data.len() {
                let fits = !seg.is_pooled() && needed > POOLED_FROM;
                let pooled = self.pool.as_ref().filter(|pool| fits && needed <= pool.buf_len());
                if let Some(mut buf) = pooled.and_then(Pool::take) {
                    buf.extend_from_slice(seg);
                    *seg = buf;
                } else {
                    let more = data.len().max(seg.len().min(GROWTH_MAX));
                    seg.reserve_exact(more);
                }
            }
            seg.extend_from_slice(data);
            self.bytes += data.len() as u64;
        }
    }

    /// Puts what is left of a stream back where nothing is; it goes on growing there.
    pub(super) fn put_back_tail(&mut self, off: u64, data: &[u8]) {
        let pooled = self.pool.as_ref().filter(|pool| data.len() <= pool.buf_len()).and_then(Pool::take);
        match pooled {
            Some(mut buf) if !data.is_empty() => {
                buf.extend_from_slice(data);
                self.put_back(off, buf);
            }
            _ => self.put_back(off, data.to_vec()),
        }
    }

    /// Puts a whole segment where nothing is.
    pub(super) fn put_back(&mut self, off: u64, data: impl Into<Buf>) {
        let data = data.into();
        if !data.is_empty() {
            self.bytes += data.len() as u64;
            let old = self.segments.insert(off, data);
            debug_assert!(old.is_none(), "segments never overlap");
        }
    }

    /// Takes all bytes in `start..end` out. Returns how many there were.
    pub(super) fn remove(&mut self, start: u64, end: u64) -> u64 {
        if start >= end {
            return 0;
        }
        let before = self.bytes;
        if let Some((&at, seg)) = self.segments.range_mut(..start).next_back() {
            let seg_end = at + seg.len() as u64;
            if seg_end > start {
                let tail = if seg_end > end { seg[(end - at) as usize..].to_vec() } else { Vec::new() };
                seg.truncate((start - at) as usize);
                self.bytes -= seg_end - start;
                self.put_back(end, tail);
            }
        }
        while let Some((&at, _)) = self.segments.range(start..end).next() {
            if let Some(mut seg) = self.segments.remove(&at) {
                self.bytes -= seg.len() as u64;
                if at + seg.len() as u64 > end {
                    seg.drain(..(end - at) as usize);
                    self.put_back(end, seg);
                }
            }
        }
        before - self.bytes
    }

    /// Calls `each` with every segment that overlaps `start..end`, ascending.
    pub(super) fn overlapping(&self, start: u64, end: u64, mut each: impl FnMut(u64, &[u8])) {
        let first = self
            .segments
            .range(..=start)
            .next_back()
            .filter(|(at, seg)| **at + seg.len() as u64 > start)
            .map_or(start, |(at, _)| *at);
        if first < end {
            for (at, seg) in self.segments.range(first..end) {
                each(*at, seg);
            }
        }
    }

    /// Takes the bytes of `gaps` that it holds out of `gaps` and into `buf`, whose first byte is the file's `base`.
    pub(super) fn read(&self, gaps: &mut Gaps, base: u64, buf: &mut [u8]) {
        let Some((start, end)) = gaps.span() else { return };
        self.overlapping(start, end, |at, seg| {
            gaps.take(at, at + seg.len() as u64, |from, to| {
                buf[(from - base) as usize..(to - base) as usize]
                    .copy_from_slice(&seg[(from - at) as usize..(to - at) as usize]);
            });
        });
    }

    /// Returns the runs of touching segments: start and length.
    pub(super) fn runs(&self) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for (&at, seg) in &self.segments {
            match runs.last_mut() {
                Some(run) if run.0 + run.1 == at => run.1 += seg.len() as u64,
                _ => runs.push((at, seg.len() as u64)),
            }
        }
        runs
    }

    /// Returns the length of the segment that starts at `off`, 0 if none does.
    pub(super) fn segment_len(&self, off: u64) -> u64 {
        self.segments.get(&off).map_or(0, |seg| seg.len() as u64)
    }

    /// Takes a run out, as one piece. `start` and `len` come from [`DirtyMap::runs`].
    pub(super) fn take_run(&mut self, start: u64, len: u64) -> Buf {
        let mut data = self.segments.remove(&start).unwrap_or_default();
        self.bytes -= data.len() as u64;
        if (data.len() as u64) < len {
            let missing = len as usize - data.len();
            data.reserve_exact(missing);
            while (data.len() as u64) < len
                && let Some(next) = self.segments.remove(&(start + data.len() as u64))
            {
                self.bytes -= next.len() as u64;
                data.extend_from_slice(&next);
            }
        }
        data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(map: &DirtyMap, len: u64) -> Vec<u8> {
        let mut buf = vec![b'.'; len as usize];
        map.read(&mut Gaps::new(0, len), 0, &mut buf);
        buf
    }

    #[test]
    fn agrees_with_a_flat_array() {
        let mut state = 7u64;
        let mut next = |n: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % n
        };
        for _ in 0..200 {
            let (mut map, mut flat) = (DirtyMap::default(), vec![b'.'; 64]);
            for step in 0..40u8 {
                let (off, len) = (next(50), next(14) + 1);
                let range = off as usize..(off + len).min(64) as usize;
                let old = flat[range.clone()].iter().filter(|b| **b != b'.').count() as u64;
                match next(5) {
                    0 => {
                        assert_eq!(map.remove(off, off + range.len() as u64), old);
                        flat[range].fill(b'.');
                    }
                    _ => {
                        let data = vec![b'A' + step; range.len()];
                        assert_eq!(map.insert(off, &data), data.len() as u64 - old);
                        flat[range].copy_from_slice(&data);
                    }
                }
                assert_eq!(content(&map, 64), flat);
                assert_eq!(map.bytes(), flat.iter().filter(|b| **b != b'.').count() as u64);
                assert_eq!(map.runs().iter().map(|run| run.1).sum::<u64>(), map.bytes());
            }
            let mut seen = vec![b'.'; 64];
            for (start, len) in map.runs() {
                let data = map.take_run(start, len);
                assert_eq!(data.len() as u64, len);
                seen[start as usize..(start + len) as usize].copy_from_slice(&data);
            }
            assert_eq!((seen, map.bytes(), map.is_empty()), (flat, 0, true));
        }
    }

    #[test]
    fn appending_makes_one_segment() {
        let mut map = DirtyMap::default();
        for i in 0..100u64 {
            map.insert(i * 10, &[i as u8; 10]);
        }
        assert_eq!((map.segment_len(0), map.end(), map.runs()), (1000, 1000, vec![(0, 1000)]));
    }

    #[test]
    fn a_long_segment_moves_into_a_buffer_of_the_pool_and_stays_whole() {
        let pool = Pool::new(4 << 20, 1);
        let mut map = DirtyMap::with_pool(&pool);
        let part = |n: u64| vec![n as u8 + 1; 1 << 19];
        for n in 0..10 {
            map.insert(n << 19, &part(n));
            assert_eq!(pool.take().is_none(), n >= 2, "{n}: it has the only buffer from 1 MiB on");
        }
        let whole: Vec<u8> = (0..10).flat_map(part).collect();
        let run = map.take_run(0, 10 << 19);
        assert_eq!(**run, whole);
        drop(run);
        map.put_back_tail(7, &whole[..1000]);
        assert!(pool.take().is_none());
        assert_eq!((map.segment_len(7), map.bytes()), (1000, 1000));
        map.remove(0, u64::MAX);
        assert!(pool.take().is_some());
    }
}
