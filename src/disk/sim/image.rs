//! Contents of a simulated file, in pages that images share, and what a power cut makes of a write.

use std::collections::BTreeMap;
use std::sync::Arc;

pub(super) const PAGE: usize = 4096;
const SECTOR: usize = 512;

#[derive(Clone, Default)]
pub(super) struct Image {
    pub(super) len: u64,
    pub(super) pages: BTreeMap<u64, Slot>,
}

#[derive(Clone)]
pub(super) enum Slot {
    Reserved,
    Data(Arc<[u8; PAGE]>),
}

impl Image {
    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        let mut image = Self::default();
        image.write(bytes, 0);
        image
    }

    pub(super) fn read(&self, buf: &mut [u8], off: u64) -> usize {
        let left = usize::try_from(self.len.saturating_sub(off)).unwrap_or(usize::MAX);
        let n = buf.len().min(left);
        for (page, at, range) in page_ranges(off, n) {
            let out = &mut buf[range];
            match self.pages.get(&page) {
                Some(Slot::Data(data)) => out.copy_from_slice(&data[at..at + out.len()]),
                Some(Slot::Reserved) | None => out.fill(0),
            }
        }
        n
    }

    pub(super) fn write(&mut self, data: &[u8], off: u64) {
        for (page, at, range) in page_ranges(off, data.len()) {
            let bytes = &data[range];
            let slot = self.pages.entry(page).or_insert(Slot::Reserved);
            if let Slot::Reserved = slot {
                *slot = Slot::Data(Arc::new([0; PAGE]));
            }
            if let Slot::Data(old) = slot {
                Arc::make_mut(old)[at..at + bytes.len()].copy_from_slice(bytes);
            }
        }
        if !data.is_empty() {
            self.len = self.len.max(off + data.len() as u64);
        }
    }

    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            drop(self.pages.split_off(&len.div_ceil(PAGE as u64)));
            let at = (len % PAGE as u64) as usize;
            if at != 0
                && let Some(Slot::Data(last)) = self.pages.get_mut(&(len / PAGE as u64))
            {
                Arc::make_mut(last)[at..].fill(0);
            }
        }
        self.len = len;
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out =
            vec![0; usize::try_from(self.len).expect("a simulated file that is read whole fits in memory")];
        self.read(&mut out, 0);
        out
    }

    pub(super) fn drop_reservations(&mut self) {
        self.pages.retain(|_, slot| matches!(slot, Slot::Data(_)));
    }
}

/// Cuts a range of a file into (page number, offset in the page, range of the caller's buffer).
pub(super) fn page_ranges(
    off: u64,
    len: usize,
) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let pos = off + done as u64;
        let at = (pos % PAGE as u64) as usize;
        let n = (PAGE - at).min(len - done);
        let range = done..done + n;
        done += n;
        Some((pos / PAGE as u64, at, range))
    })
}

/// Applies a write as far as a power cut lets it: whole, not at all, a prefix of bytes, or some of its sectors.
pub(super) fn torn_write(image: &mut Image, off: u64, data: &[u8], rng: &mut Rng) {
    match rng.below(6) {
        0 | 1 => image.write(data, off),
        2 | 3 => {}
        4 => {
            let cut = rng.below(data.len() as u64 + 1) as usize;
            image.write(&data[..cut], off);
        }
        _ => {
            let mut done = 0;
            while done < data.len() {
                let pos = off + done as u64;
                let n = (SECTOR - (pos % SECTOR as u64) as usize).min(data.len() - done);
                if rng.below(2) == 0 {
                    image.write(&data[done..done + n], pos);
                }
                done += n;
            }
        }
    }
}

/// SplitMix64: small, seedable, good enough to choose what a power cut destroys.
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
}
