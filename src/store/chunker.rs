//! Cuts content into chunks where the content says so (FastCDC 2020), so that the same bytes at another
//! offset give the same chunks.
//!
//! The gear table is seeded from the vault's keys: where one vault cuts says nothing about where another
//! does, which keeps chunk lengths from being compared with those of known files. Writers of one vault must
//! agree on cut points for deduplication to work, so they are frozen by a golden test; readers don't care.

use std::borrow::Cow;
use std::fmt;

use fastcdc::v2020::{self, Normalization};

use crate::format::ChunkerParams;

/// How strongly lengths are drawn towards the average. Part of what "fastcdc-2020" means in a vault's header.
const NORMALIZATION: Normalization = Normalization::Level1;

/// Finds cut points.
pub struct Chunker {
    min: usize,
    avg: usize,
    max: usize,
    masks: Masks,
    gear: Cow<'static, [u64]>,
    gear_shifted: Cow<'static, [u64]>,
}

/// Which bits of the rolling hash must be zero for a cut: more of them before the average length than after
/// it.
struct Masks {
    strict: u64,
    relaxed: u64,
}

impl Chunker {
    /// Returns a chunker for a vault's parameters and the seed from its keys.
    ///
    /// Lengths that the algorithm can't use (odd ones, or ones outside its range) are moved to the nearest
    /// that it can. The header's decoder refuses them, so that is only a matter of not panicking.
    #[must_use]
    pub fn new(params: &ChunkerParams, seed: u64) -> Self {
        let usable = |value: u32, low: usize, high: usize| (value as usize).clamp(low, high) & !1;
        let min = usable(params.min, v2020::MINIMUM_MIN, v2020::MINIMUM_MAX);
        let avg = usable(params.avg, v2020::AVERAGE_MIN, v2020::AVERAGE_MAX).max(min);
        let max = usable(params.max, v2020::MAXIMUM_MIN, crate::format::CHUNK_MAX).max(avg);
        let (strict, relaxed) = v2020::select_masks(avg, NORMALIZATION);
        let (gear, gear_shifted) = v2020::get_gear_with_seed(seed);
        Chunker { min, avg, max, masks: Masks { strict, relaxed }, gear, gear_shifted }
    }

    /// The longest chunk in bytes: with this much data at hand, [`Chunker::cut`] always answers.
    #[must_use]
    pub fn max_len(&self) -> usize {
        self.max
    }

    /// The shortest chunk in bytes, but for the last one of a file.
    #[must_use]
    pub fn min_len(&self) -> usize {
        self.min
    }

    /// Returns the length of the chunk at the start of `data`, or `None` when that depends on bytes that are
    /// not there yet: `data` is not at the end of the content (`eof`), is shorter than [`Chunker::max_len`], and
    /// its content says nowhere to cut. With no data there is no chunk.
    #[must_use]
    pub fn cut(&self, data: &[u8], eof: bool) -> Option<usize> {
        if data.is_empty() {
            return None;
        }
        let (_, len) = v2020::cut_gear(
            &data[..data.len().min(self.max)],
            self.min,
            self.avg,
            self.max,
            self.masks.strict,
            self.masks.relaxed,
            self.masks.strict << 1,
            self.masks.relaxed << 1,
            &self.gear,
            &self.gear_shifted,
        );
        // Only a cut that the content asks for lies before the end of `data`: positions are tried in order, and whether
        // one is a cut depends on nothing behind it.
        let decided = eof || data.len() >= self.max || len < data.len();
        decided.then_some(len)
    }
}

impl fmt::Debug for Chunker {
    /// Leaves the seeded table out: it is derived from a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chunker")
            .field("min", &self.min)
            .field("avg", &self.avg)
            .field("max", &self.max)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const DEFAULT: ChunkerParams = ChunkerParams { min: 512 << 10, avg: 1 << 20, max: 4 << 20 };
    const SMALL: ChunkerParams = ChunkerParams { min: 1 << 10, avg: 4 << 10, max: 16 << 10 };

    /// The first `len` bytes of BLAKE3's output for `label`: data that anyone can make again.
    fn data(label: &str, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new().update(label.as_bytes()).finalize_xof().fill(&mut out);
        out
    }

    fn cuts(chunker: &Chunker, mut data: &[u8]) -> Vec<usize> {
        let mut lens = Vec::new();
        while let Some(len) = chunker.cut(data, true) {
            lens.push(len);
            data = &data[len..];
        }
        lens
    }

    #[test]
    fn cut_points_are_frozen() {
        let small = data("small", 64 << 10);
        let large = data("large", 8 << 20);
        let seen = [
            cuts(&Chunker::new(&SMALL, 0), &small),
            cuts(&Chunker::new(&SMALL, 0x0123_4567_89ab_cdef), &small),
            cuts(&Chunker::new(&DEFAULT, 0x0123_4567_89ab_cdef), &large),
        ];
        let frozen: [&[usize]; 3] = [
            &[11632, 8170, 2426, 4636, 4167, 6008, 7340, 3317, 2092, 4281, 4343, 7124],
            &[4500, 8497, 3599, 4149, 5395, 3230, 7099, 2127, 9641, 5285, 7789, 4225],
            &[1308380, 1080583, 1809510, 938445, 1831377, 1053472, 366841],
        ];
        assert_eq!(
            seen.each_ref().map(Vec::as_slice),
            frozen,
            "changing this breaks dedup with older vaults"
        );
    }

    #[test]
    fn lengths_stay_within_bounds_and_cover_everything() {
        let chunker = Chunker::new(&SMALL, 7);
        for content in [data("bounds", 300_001), vec![0; 100_000], vec![b'x'; 16 << 10]] {
            let lens = cuts(&chunker, &content);
            assert_eq!(lens.iter().sum::<usize>(), content.len());
            let (last, others) = lens.split_last().unwrap();
            assert!(others.iter().all(|&l| (chunker.min_len()..=chunker.max_len()).contains(&l)), "{lens:?}");
            assert!((1..=chunker.max_len()).contains(last));
        }
    }

    #[test]
    fn it_asks_for_more_until_the_answer_cannot_change() {
        let chunker = Chunker::new(&SMALL, 7);
        let content = data("more", 40_000);
        assert_eq!(chunker.cut(&[], true), None);
        assert_eq!(chunker.cut(&[], false), None);
        assert_eq!(chunker.cut(&[7; 100_000][..chunker.max_len() - 1], false), None);
        let len = chunker.cut(&content[..chunker.max_len()], false).unwrap();
        assert_eq!(chunker.cut(&content, false), Some(len));
        assert_eq!(chunker.cut(&content, true), Some(len));
        assert_eq!(chunker.cut(&content[..10], true), Some(10));
        assert_eq!(chunker.cut(&content[..10], false), None);
    }

    #[test]
    fn a_cut_in_too_little_data_is_the_one_that_all_of_it_gives() {
        let content = data("early", 300_000);
        for seed in 0..6 {
            let chunker = Chunker::new(&SMALL, seed);
            let (mut at, mut early) = (0, 0);
            while at + chunker.max_len() <= content.len() {
                let rest = &content[at..];
                let len = chunker.cut(rest, false).unwrap();
                for have in
                    (1..chunker.max_len()).step_by(211).chain([len - 1, len, len + 1, len + 2, len + 3])
                {
                    match chunker.cut(&rest[..have], false) {
                        Some(cut) => {
                            assert_eq!(cut, len, "{have} bytes of the chunk at {at}");
                            early += 1;
                        }
                        None => {
                            assert!(have < (len + 3).min(chunker.max_len()), "{have}: {len} was to be seen")
                        }
                    }
                }
                at += len;
            }
            assert!(early > 20, "{early}");
        }
    }

    #[test]
    fn an_insertion_changes_few_chunks() {
        let chunker = Chunker::new(&SMALL, 7);
        let before = data("insertion", 400_000);
        let mut after = before.clone();
        after.splice(1000..1000, *b"inserted");
        let pieces = |content: &[u8]| {
            let mut at = 0;
            let lens = cuts(&chunker, content);
            lens.iter()
                .map(|l| {
                    at += l;
                    content[at - l..at].to_vec()
                })
                .collect::<Vec<_>>()
        };
        let old: std::collections::HashSet<_> = pieces(&before).into_iter().collect();
        let new = pieces(&after).into_iter().filter(|p| !old.contains(p)).count();
        assert!(new <= 3, "{new} new chunks");
    }

    #[test]
    fn the_seed_moves_the_cuts() {
        let content = data("seed", 200_000);
        assert_ne!(cuts(&Chunker::new(&SMALL, 1), &content), cuts(&Chunker::new(&SMALL, 2), &content));
    }

    #[test]
    fn unusable_parameters_do_not_panic() {
        let content = data("odd", 100_000);
        for (min, avg, max) in [(0, 0, 0), (1, 1, 1), (u32::MAX, u32::MAX, u32::MAX), (1025, 999, 3)] {
            let chunker = Chunker::new(&ChunkerParams { min, avg, max }, 3);
            assert_eq!(cuts(&chunker, &content).iter().sum::<usize>(), content.len());
        }
    }
}
