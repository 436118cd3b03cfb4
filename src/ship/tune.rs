//! How many packs go at a time: found by measuring while they go.
//!
//! More streams help where each of them waits: for answers from far away, or for its share of a link. Elsewhere they only
//! take memory, and beyond some number an endpoint pushes back. [`Tuner`] climbs: it grows while throughput grows, tries
//! whether fewer do as well, steps back at once when it is pushed back, and looks again now and then, since links change.
//! It is pure: it is told what moved, and says how many.

use std::time::Duration;

use crate::remote::Location;

/// Growing has to give so much more to be worth it.
const GAIN: f64 = 1.08;
/// Fewer streams that give at least this share of the throughput are preferred.
const AS_GOOD: f64 = 0.95;
/// Less than this share of what was usual: the link is another one now.
const COLLAPSE: f64 = 0.5;
/// Samples until other numbers are tried again: at first, and at most.
const HOLD: u32 = 8;
const HOLD_MAX: u32 = 64;
/// Samples after being pushed back without growing.
const CALM: u32 = 4;
/// Samples without being pushed back until that is forgotten.
const FORGIVE: u32 = 200;

/// A measurement covers at least this time,
const WINDOW: Duration = Duration::from_secs(1);
/// and as many packs as there are at a time, unless it takes this long.
const WINDOW_MAX: Duration = Duration::from_secs(10);

/// Memory that one pack under way may take: buffers of ours, of the protocol, and what is read back at a time.
const MEMORY_DIR: u64 = 4 << 20;
const MEMORY_S3: u64 = 12 << 20;
/// A process `ssh` for each.
const MEMORY_SFTP: u64 = 24 << 20;

/// How many packs may be under way at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Where to begin.
    pub first: usize,
    /// The most.
    pub max: usize,
}

impl Bounds {
    /// What suits a remote, on a machine where so many bytes of memory are available; a quarter of them may be taken.
    #[must_use]
    pub fn of(location: &Location, memory: u64) -> Self {
        let (first, max, each) = match location {
            // Disks have few heads.
            Location::Dir { .. } => (2, 8, MEMORY_DIR),
            // Connections of their own: servers refuse many at a time (MaxStartups).
            Location::Sftp { .. } => (4, 16, MEMORY_SFTP),
            // Requests of which each holds a thread of the server, and it writes to a disk.
            Location::Webdav { .. } => (4, 16, MEMORY_S3),
            Location::S3 { .. } | Location::Azblob { .. } | Location::Gcs { .. } => (8, 64, MEMORY_S3),
        };
        let room = usize::try_from(memory / 4 / each).unwrap_or(usize::MAX);
        let max = max.min(room).max(1);
        Self { first: first.min(max), max }
    }
}

/// What moved in a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Bytes that were sent.
    pub bytes: u64,
    /// In this time.
    pub time: Duration,
    /// Requests that the endpoint refused or left unanswered because it has too much to do.
    pub pushed_back: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// Nothing is known yet.
    Start,
    /// More are tried than did best; `grew`: that helped before.
    Up { grew: bool },
    /// Fewer are tried than did best.
    Down,
    /// So many samples more before anything is tried.
    Hold(u32),
}

/// Decides how many packs are under way.
#[derive(Clone, Debug)]
pub struct Tuner {
    max: usize,
    /// The most that were not pushed back.
    ceiling: usize,
    jobs: usize,
    /// The number that did best, and its bytes a second.
    best: Option<(usize, f64)>,
    phase: Phase,
    hold: u32,
    calm_samples: u32,
}

impl Tuner {
    /// A tuner that knows nothing yet.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        let max = bounds.max.max(1);
        Self {
            max,
            ceiling: max,
            jobs: bounds.first.clamp(1, max),
            best: None,
            phase: Phase::Start,
            hold: HOLD,
            calm_samples: 0,
        }
    }

    /// Packs that may be under way now.
    #[must_use]
    pub fn jobs(&self) -> usize {
        self.jobs
    }

    /// The number that did best so far, while another one may be on trial.
    #[must_use]
    pub fn settled(&self) -> usize {
        self.best.map_or(self.jobs, |(jobs, _)| jobs)
    }

    /// Takes a measurement that was made with [`Tuner::jobs`] packs under way, and says how many from now on.
    pub fn sample(&mut self, sample: Sample) -> usize {
        if sample.pushed_back > 0 {
            self.step_back();
            return self.jobs;
        }
        self.calm_samples = self.calm_samples.saturating_add(1);
        if self.calm_samples >= FORGIVE {
            self.ceiling = self.max;
        }
        let seconds = sample.time.as_secs_f64();
        if seconds > 0.0 {
            self.judge(sample.bytes as f64 / seconds);
        }
        self.jobs
    }

    fn step_back(&mut self) {
        // Half-way to what was good.
        let good = self.best.map_or(self.jobs / 2, |(jobs, _)| jobs).min(self.jobs);
        self.ceiling = (self.jobs - 1).saturating_sub((self.jobs - good) / 2).max(1);
        self.jobs = (self.jobs / 2).max(1);
        self.calm_samples = 0;
        // What was measured before was measured at another time.
        self.best = None;
        self.phase = Phase::Hold(CALM);
    }

    fn judge(&mut self, rate: f64) {
        let (best_jobs, best_rate) = *self.best.get_or_insert((self.jobs, rate));
        match self.phase {
            Phase::Start => {
                self.best = Some((self.jobs, rate));
                self.climb(false);
            }
            Phase::Up { .. } if rate > best_rate * GAIN => {
                self.best = Some((self.jobs, rate));
                self.climb(true);
            }
            Phase::Up { grew } => {
                self.jobs = best_jobs;
                // Where growing helped, fewer are known to be worse.
                if grew { self.rest() } else { self.descend() }
            }
            Phase::Down if rate >= best_rate * AS_GOOD => {
                // Compared with the best of all, or many small losses would add up.
                self.best = Some((self.jobs, rate.max(best_rate)));
                self.descend();
            }
            Phase::Down => {
                self.jobs = best_jobs;
                self.rest();
            }
            Phase::Hold(_) if rate < best_rate * COLLAPSE => {
                self.best = None;
                self.hold = HOLD;
                self.phase = Phase::Start;
            }
            Phase::Hold(left) => {
                self.best = Some((self.jobs, best_rate * 0.7 + rate * 0.3));
                if left > 1 { self.phase = Phase::Hold(left - 1) } else { self.climb(false) }
            }
        }
    }

    /// Tries half as many more; what would be a small step after that is part of this one, or it could not be measured.
    fn climb(&mut self, grew: bool) {
        let next = self.jobs + (self.jobs / 2).max(1);
        let next = if next + next / 4 >= self.ceiling { self.ceiling } else { next };
        if next > self.jobs {
            (self.jobs, self.phase) = (next, Phase::Up { grew });
        } else if grew {
            self.rest();
        } else {
            self.descend();
        }
    }

    /// Tries a third less.
    fn descend(&mut self) {
        let next = self.jobs - (self.jobs / 3).max(1).min(self.jobs - 1);
        if next < self.jobs {
            (self.jobs, self.phase) = (next, Phase::Down);
        } else {
            self.rest();
        }
    }

    fn rest(&mut self) {
        self.phase = Phase::Hold(self.hold);
        self.hold = (self.hold * 2).min(HOLD_MAX);
    }
}

/// Cuts what flows into measurements.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Meter {
    since: Duration,
    bytes: u64,
    pushed_back: u64,
    ended: usize,
}

impl Meter {
    /// Begins at this time.
    pub(super) fn new(now: Duration, pushed_back: u64) -> Self {
        Self { since: now, pushed_back, ..Self::default() }
    }

    /// A pack has ended. `bytes` and `pushed_back` count from the beginning; `jobs` are under way. Gives a measurement when
    /// there is enough for one.
    pub(super) fn ended(
        &mut self,
        now: Duration,
        bytes: u64,
        pushed_back: u64,
        jobs: usize,
    ) -> Option<Sample> {
        self.ended += 1;
        let time = now.saturating_sub(self.since);
        let pushed = pushed_back.saturating_sub(self.pushed_back);
        let enough = time >= WINDOW && (self.ended >= jobs || time >= WINDOW_MAX);
        if !enough && pushed == 0 {
            return None;
        }
        let sample = Sample { bytes: bytes.saturating_sub(self.bytes), time, pushed_back: pushed };
        *self = Self { since: now, bytes, pushed_back, ended: 0 };
        Some(sample)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S3: Bounds = Bounds { first: 8, max: 64 };

    /// Runs a tuner on a simulated link: streams to bytes a second and requests pushed back. Returns the numbers it chose.
    fn run(
        tuner: &mut Tuner,
        samples: usize,
        link: &mut dyn FnMut(usize, usize) -> (f64, u64),
    ) -> Vec<usize> {
        let mut chosen = Vec::new();
        for n in 0..samples {
            let (rate, pushed_back) = link(n, tuner.jobs());
            let sample = Sample { bytes: rate as u64, time: Duration::from_secs(1), pushed_back };
            chosen.push(tuner.sample(sample));
        }
        chosen
    }

    /// A share of samples in which the number lies in a range.
    fn share(chosen: &[usize], range: std::ops::RangeInclusive<usize>) -> f64 {
        chosen.iter().filter(|n| range.contains(n)).count() as f64 / chosen.len() as f64
    }

    /// Noise that is the same in each run: factors between 1 - width and 1 + width.
    fn noise(width: f64) -> impl FnMut() -> f64 {
        let mut state = 88_172_645_463_325_252_u64;
        move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            1.0 + width * ((state % 2001) as f64 / 1000.0 - 1.0)
        }
    }

    #[test]
    fn one_stream_that_fills_the_link_is_enough() {
        let mut tuner = Tuner::new(S3);
        let chosen = run(&mut tuner, 20, &mut |_, _| (100e6, 0));
        assert_eq!(chosen[..6], [12, 6, 4, 3, 2, 1], "up, no gain, then down as far as it goes");
        assert_eq!(tuner.settled(), 1);
    }

    #[test]
    fn where_each_stream_waits_there_are_as_many_as_may_be() {
        let mut tuner = Tuner::new(S3);
        let chosen = run(&mut tuner, 50, &mut |_, jobs| (2e6 * jobs as f64, 0));
        assert_eq!(chosen[..5], [12, 18, 27, 40, 64]);
        assert_eq!((tuner.settled(), chosen.iter().max()), (64, Some(&64)));
        assert!(share(&chosen[6..], 64..=64) > 0.8, "{chosen:?}");
    }

    #[test]
    fn a_link_with_a_knee_is_filled_and_not_much_more() {
        // Each stream gives 5, all together at most 100: 20 fill it.
        let mut tuner = Tuner::new(S3);
        let chosen = run(&mut tuner, 300, &mut |_, jobs| ((5e6 * jobs as f64).min(100e6), 0));
        assert!((18..=27).contains(&tuner.settled()), "{chosen:?}");
        assert!(share(&chosen[5..], 18..=40) > 0.9, "{chosen:?}");
    }

    #[test]
    fn more_streams_that_harm_are_taken_back() {
        // A disk with one head: each further stream costs a fifth.
        let mut tuner = Tuner::new(Bounds { first: 2, max: 8 });
        let chosen = run(&mut tuner, 60, &mut |_, jobs| (100e6 * 0.8_f64.powi(jobs as i32 - 1), 0));
        assert_eq!(tuner.settled(), 1, "{chosen:?}");
        assert!(share(&chosen[3..], 1..=1) > 0.85, "{chosen:?}");
    }

    #[test]
    fn an_endpoint_that_pushes_back_is_obeyed_at_once_and_rarely_annoyed() {
        for limit in [1, 3, 10, 30] {
            let mut tuner = Tuner::new(S3);
            let mut pushed = 0;
            let mut link = |_: usize, jobs: usize| {
                let over = jobs > limit;
                pushed += usize::from(over);
                (4e6 * jobs.min(limit) as f64, u64::from(over) * 5)
            };
            let chosen = run(&mut tuner, 200, &mut link);
            assert!(pushed <= 20, "limit {limit}: pushed back {pushed} times: {chosen:?}");
            assert!(share(&chosen[20..], 1..=limit) > 0.9, "limit {limit}: {chosen:?}");
            assert!(tuner.settled() * 2 >= limit, "limit {limit} is used: {chosen:?}");
        }
        // At once: the next number is half of what was too much.
        let mut tuner = Tuner::new(S3);
        tuner.sample(Sample { bytes: 0, time: Duration::ZERO, pushed_back: 1 });
        assert_eq!(tuner.jobs(), 4);
        for _ in 0..10 {
            tuner.sample(Sample { bytes: 0, time: Duration::ZERO, pushed_back: 1 });
        }
        assert_eq!(tuner.jobs(), 1, "never none");
    }

    #[test]
    fn noise_does_not_lead_it_astray() {
        let mut factor = noise(0.2);
        let mut tuner = Tuner::new(S3);
        let chosen = run(&mut tuner, 500, &mut |_, jobs| ((5e6 * jobs as f64).min(100e6) * factor(), 0));
        // Throughput that is lost against a link that is always full.
        let lost: f64 = chosen.iter().map(|jobs| 1.0 - (*jobs as f64 / 20.0).min(1.0)).sum();
        assert!(lost / (chosen.len() as f64) < 0.15, "{lost}: {chosen:?}");
    }

    #[test]
    fn a_link_that_changes_is_measured_again() {
        let mut tuner = Tuner::new(S3);
        run(&mut tuner, 30, &mut |_, _| (100e6, 0));
        assert_eq!(tuner.settled(), 1);
        // Now each stream waits: a tenth of it goes through one.
        let chosen = run(&mut tuner, 40, &mut |_, jobs| (10e6 * jobs as f64, 0));
        assert!(tuner.settled() > 20, "{chosen:?}");
    }

    #[test]
    fn bounds_are_kept_whatever_is_measured() {
        let mut factor = noise(1.0);
        for bounds in
            [S3, Bounds { first: 1, max: 1 }, Bounds { first: 9, max: 3 }, Bounds { first: 0, max: 0 }]
        {
            let mut tuner = Tuner::new(bounds);
            let chosen = run(&mut tuner, 500, &mut |n, _| (factor() * 1e6, u64::from(n % 7 == 3)));
            assert!(chosen.iter().all(|n| (1..=bounds.max.max(1)).contains(n)), "{bounds:?}: {chosen:?}");
        }
        let mut tuner = Tuner::new(S3);
        tuner.sample(Sample { bytes: 5, time: Duration::ZERO, pushed_back: 0 });
        assert_eq!(tuner.jobs(), 8, "nothing was measured");
    }

    #[test]
    fn memory_and_kind_bound_it() {
        let dir = Location::Dir { path: "/x".into() };
        let s3 = Location::S3 { bucket: "b".into(), prefix: String::new() };
        let sftp = Location::Sftp { user: None, host: "h".into(), port: None, path: "/x".into() };
        let of = |location: &Location, memory: u64| {
            let bounds = Bounds::of(location, memory);
            (bounds.first, bounds.max)
        };
        assert_eq!([&dir, &sftp, &s3].map(|l| of(l, 64 << 30)), [(2, 8), (4, 16), (8, 64)]);
        assert_eq!([&dir, &sftp, &s3].map(|l| of(l, 512 << 20)), [(2, 8), (4, 5), (8, 10)]);
        assert_eq!([&dir, &sftp, &s3].map(|l| of(l, 0)), [(1, 1); 3]);
    }

    #[test]
    fn a_measurement_covers_enough_to_be_one() {
        let at = Duration::from_millis;
        let mut meter = Meter::new(at(500), 7);
        assert_eq!(meter.ended(at(600), 10, 7, 2), None, "too short");
        assert_eq!(meter.ended(at(900), 20, 7, 2), None);
        let sample = meter.ended(at(1500), 30, 7, 2);
        assert_eq!(sample, Some(Sample { bytes: 30, time: at(1000), pushed_back: 0 }));
        assert_eq!(meter.ended(at(3500), 50, 7, 2), None, "one pack of two");
        assert_eq!(meter.ended(at(3600), 70, 7, 2).map(|s| (s.bytes, s.time)), Some((40, at(2100))));
        assert_eq!(
            meter.ended(at(13_600), 71, 7, 50).map(|s| s.bytes),
            Some(1),
            "a slow link is measured too"
        );
        assert_eq!(
            meter.ended(at(13_601), 72, 9, 50).map(|s| s.pushed_back),
            Some(2),
            "trouble is told at once"
        );
    }
}
