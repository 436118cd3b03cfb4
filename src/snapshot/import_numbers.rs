//! Inode numbers of what is imported: those of the source wherever possible, so that a directory in which nothing
//! happened is written with the same bytes as the day before, whatever came and went elsewhere.

use std::collections::HashMap;

use crate::store::records::ROOT_INO;

/// Numbers of one device. Four of these ranges stay below 2^40, from where on numbers are for other uses.
const RANGE: u64 = 1 << 38;
/// In the upper half of a device's range are files that may still have changed after they were read, and nothing would
/// show it: the next import must not take them for what they were then.
const UNSETTLED: u64 = RANGE / 2;
/// Devices whose numbers are taken over; one range more is for all that can't be.
const DEVICES_MAX: usize = 3;
/// Numbers that are marked together.
const PAGE: u64 = 1024;
/// Memory for marks: 144 MiB, in a table that is 7/8 full then. Enough for 900 million files whose numbers lie close
/// together, as they do on disks, and for 900,000 that are strewn about; others are counted.
const PAGES_MAX: usize = 7 << 17;

/// Gives each file of an import a number of its own.
#[derive(Debug)]
pub(super) struct Numbers {
    devices: Vec<u64>,
    /// Which are given away: a number comes twice where a file was deleted and another one made during the import, or
    /// where a directory is mounted in two places.
    used: HashMap<u64, [u64; (PAGE / 64) as usize]>,
    counted: u64,
    top: u64,
}

/// Whether a number is a source's own: nobody else there has it, and it is the same the next time. Those that are counted
/// say nothing.
pub(super) fn is_of_source(number: u64) -> bool {
    number < DEVICES_MAX as u64 * RANGE
}

impl Numbers {
    pub(super) fn new() -> Self {
        Numbers { devices: Vec::new(), used: HashMap::new(), counted: 0, top: ROOT_INO }
    }

    /// Returns a number for a file that has `ino` on device `dev`; another one while it is not settled. Each is returned
    /// once.
    pub(super) fn take(&mut self, dev: u64, ino: u64, is_settled: bool) -> u64 {
        let number = self.of_source(dev, ino, is_settled).unwrap_or_else(|| {
            self.counted += 1;
            DEVICES_MAX as u64 * RANGE + self.counted
        });
        self.top = self.top.max(number);
        number
    }

    /// Returns a number above all that were given.
    pub(super) fn end(&self) -> u64 {
        self.top + 1
    }

    fn of_source(&mut self, dev: u64, ino: u64, is_settled: bool) -> Option<u64> {
        // Their 1 is often a root as well, or a list of bad blocks: ours begin after it.
        if !(1..UNSETTLED - ROOT_INO).contains(&ino) {
            return None;
        }
        let device = match self.devices.iter().position(|known| *known == dev) {
            Some(device) => device,
            None if self.devices.len() < DEVICES_MAX => {
                self.devices.push(dev);
                self.devices.len() - 1
            }
            None => return None,
        };
        let half = if is_settled { 0 } else { UNSETTLED };
        let number = device as u64 * RANGE + half + ROOT_INO + ino;
        let (page, bit) = (number / PAGE, number % PAGE);
        if self.used.len() >= PAGES_MAX && !self.used.contains_key(&page) {
            return None;
        }
        let word = &mut self.used.entry(page).or_default()[(bit / 64) as usize];
        let mask = 1 << (bit % 64);
        if *word & mask != 0 {
            return None;
        }
        *word |= mask;
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_file_keeps_its_number_whatever_others_do() {
        let (mut one, mut other) = (Numbers::new(), Numbers::new());
        for ino in [5, 700, 9] {
            one.take(64, ino, true);
        }
        assert_eq!(one.take(64, 12, true), other.take(64, 12, true));
        assert_eq!(one.take(65, 12, true), other.take(65, 12, true));
        let unsettled = one.take(64, 13, false);
        assert_eq!(unsettled, other.take(64, 13, false));
        assert_ne!(unsettled, other.take(64, 13, true));
        // A fourth device, and what is there a second time, is only counted.
        let counted = [(66, 5), (67, 5), (65, 12)].map(|(dev, ino)| one.take(dev, ino, true));
        assert_eq!(counted.map(is_of_source), [true, false, false]);
        assert!(is_of_source(unsettled) && !is_of_source(one.take(64, u64::MAX, true)));
    }

    #[test]
    fn no_number_comes_twice_and_all_are_below_the_limit() {
        let mut numbers = Numbers::new();
        let mut seen = HashSet::from([0, ROOT_INO]);
        for round in 0..3 {
            for dev in 0..5 {
                let (half, whole) =
                    ([UNSETTLED - 3, UNSETTLED - 2, UNSETTLED], [RANGE - 2, RANGE - 1, RANGE]);
                let few = [0, 1, 2, 63, 64, 1023, 1024, 1 << 20, u64::MAX];
                for (ino, is_settled) in
                    [&few[..], &half, &whole].concat().into_iter().flat_map(|ino| [(ino, true), (ino, false)])
                {
                    let number = numbers.take(dev, ino, is_settled);
                    assert!(seen.insert(number), "{number} again, in round {round} for {dev} {ino}");
                    assert!(number < 4 * RANGE && number < numbers.end(), "{number}");
                }
            }
        }
        assert_eq!(numbers.end(), seen.iter().max().unwrap() + 1);
    }

    #[test]
    fn numbers_that_are_strewn_about_take_bounded_memory() {
        let mut numbers = Numbers::new();
        let mut seen = HashSet::new();
        for n in 0..PAGES_MAX as u64 + 1000 {
            assert!(seen.insert(numbers.take(1, 1 + n * PAGE, true)));
        }
        assert_eq!(numbers.used.len(), PAGES_MAX);
    }
}
