//! A set of byte ranges that shrinks as its parts are taken: what a read still has to find.

/// Ranges `start..end`, ascending, disjoint, never empty.
#[derive(Debug)]
pub(super) struct Gaps(Vec<(u64, u64)>);

impl Gaps {
    /// Returns the set of one range.
    pub(super) fn new(start: u64, end: u64) -> Self {
        Self(if start < end { vec![(start, end)] } else { Vec::new() })
    }

    /// Returns the first and the last byte's bounds of what is left.
    pub(super) fn span(&self) -> Option<(u64, u64)> {
        Some((self.0.first()?.0, self.0.last()?.1))
    }

    /// Returns what is left.
    pub(super) fn ranges(&self) -> &[(u64, u64)] {
        &self.0
    }

    /// Takes `start..end` out and calls `each` for every part of it that was in the set.
    pub(super) fn take(&mut self, start: u64, end: u64, mut each: impl FnMut(u64, u64)) {
        if start >= end {
            return;
        }
        let first = self.0.partition_point(|gap| gap.1 <= start);
        let mut left = Vec::new();
        let mut last = first;
        while let Some(&(from, to)) = self.0.get(last).filter(|gap| gap.0 < end) {
            each(from.max(start), to.min(end));
            if from < start {
                left.push((from, start));
            }
            if end < to {
                left.push((end, to));
            }
            last += 1;
        }
        self.0.splice(first..last, left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_is_there_and_no_more() {
        let mut gaps = Gaps::new(10, 100);
        let mut got = Vec::new();
        gaps.take(0, 20, |a, b| got.push((a, b)));
        gaps.take(50, 60, |a, b| got.push((a, b)));
        gaps.take(15, 70, |a, b| got.push((a, b)));
        assert_eq!(got, [(10, 20), (50, 60), (20, 50), (60, 70)]);
        assert_eq!(gaps.ranges(), [(70, 100)]);
        assert_eq!(gaps.span(), Some((70, 100)));
        gaps.take(90, 200, |a, b| got.push((a, b)));
        gaps.take(0, 90, |_, _| ());
        assert!(gaps.span().is_none());
    }

    #[test]
    fn an_empty_range_is_empty() {
        assert!(Gaps::new(5, 5).span().is_none());
        let mut gaps = Gaps::new(5, 10);
        gaps.take(7, 7, |_, _| panic!("nothing to take"));
        gaps.take(10, 20, |_, _| panic!("nothing to take"));
        assert_eq!(gaps.ranges(), [(5, 10)]);
    }
}
