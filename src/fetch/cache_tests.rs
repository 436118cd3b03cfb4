#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;
use crate::env::{SystemEnv, TestEnv};
use crate::remote::{Checksum, Features, Meta, Page, Put, Source};

/// Packs of this length whose bytes tell where they stand.
const LEN: u64 = 40 << 20;

fn byte(pack: u8, at: u64) -> u8 {
    (at.wrapping_mul(2_654_435_761) >> 24) as u8 ^ pack
}

/// A remote that has every pack, and answers only while it is open.
#[derive(Debug, Default)]
struct Fake {
    fetched: AtomicU64,
    requests: AtomicU64,
    closed: Mutex<Closed>,
    opened: Condvar,
    fails: AtomicBool,
    /// A clock that each request moves on by so much.
    slow: Option<(Arc<TestEnv>, Duration)>,
}

#[derive(Debug, Default)]
struct Closed {
    all: bool,
    /// The requests of one pack only.
    one: Option<u8>,
}

impl Fake {
    fn set_closed(&self, closed: bool) {
        self.closed.lock().unwrap().all = closed;
        self.opened.notify_all();
    }

    fn set_closed_for(&self, pack: Option<u8>) {
        self.closed.lock().unwrap().one = pack;
        self.opened.notify_all();
    }
}

impl Remote for Fake {
    fn url(&self) -> String {
        "fake".into()
    }

    fn put_if_absent(&self, _: &Key, _: &Arc<dyn Source>, _: &Checksum) -> crate::remote::Result<Put> {
        panic!("nothing is written")
    }

    fn replace(&self, _: &Key, _: &Checksum, _: &Arc<dyn Source>, _: &Checksum) -> crate::remote::Result<()> {
        panic!("nothing is written")
    }

    fn get(&self, key: &Key, range: Range<u64>) -> crate::remote::Result<Vec<u8>> {
        self.requests.fetch_add(1, Ordering::SeqCst);
        let name = crate::format::pack::parse_pack_path(key.as_str()).unwrap();
        let mut closed = self.closed.lock().unwrap();
        while closed.all || closed.one == Some(name.0[0]) {
            closed = self.opened.wait(closed).unwrap();
        }
        drop(closed);
        if let Some((clock, by)) = &self.slow {
            clock.advance(*by);
        }
        if self.fails.load(Ordering::SeqCst) {
            return Err(RemoteError::new(ErrorKind::Denied, format!("{key}: not for you")));
        }
        self.fetched.fetch_add(range.end - range.start, Ordering::SeqCst);
        Ok(range.map(|at| byte(name.0[0], at)).collect())
    }

    fn head(&self, _: &Key) -> crate::remote::Result<Meta> {
        panic!("lengths are known")
    }

    fn list_page(&self, _: &str, _: &str) -> crate::remote::Result<Page> {
        panic!("names are known")
    }

    fn delete(&self, _: &Key) -> crate::remote::Result<()> {
        panic!("nothing is deleted")
    }

    fn features(&self) -> crate::remote::Result<Features> {
        panic!("nobody asks")
    }
}

fn cache(fake: &Arc<Fake>, bytes_max: u64, patience: Duration) -> PackCache {
    cache_with(fake, bytes_max, Waits { jobs: 4, patience, env: Arc::new(SystemEnv) })
}

fn cache_with(fake: &Arc<Fake>, bytes_max: u64, waits: Waits) -> PackCache {
    let dir = tempfile::tempdir().unwrap();
    // The file has no name, so it outlives its directory.
    let scratch = Scratch::create(dir.path(), Arc::new(SystemEnv), 0).unwrap();
    PackCache::new(Arc::clone(fake) as Arc<dyn Remote>, scratch, bytes_max, true, waits).unwrap()
}

const LONG: Duration = Duration::from_secs(600);

/// Reads a range and checks every byte.
fn read(cache: &PackCache, pack: u8, range: Range<u64>) -> io::Result<()> {
    let mut buf = vec![0; usize::try_from(range.end - range.start).unwrap()];
    cache.read(&PackName([pack; 32]), &mut buf, range.start, &range)?;
    for (at, got) in range.zip(buf) {
        assert_eq!(got, byte(pack, at), "pack {pack}, byte {at}");
    }
    Ok(())
}

#[test]
fn many_readers_fetch_each_byte_once() {
    let fake = Arc::new(Fake::default());
    let cache = cache(&fake, 1 << 30, LONG);
    fake.set_closed(true);
    std::thread::scope(|scope| {
        for n in 0..8_u64 {
            let cache = &cache;
            // They overlap, and begin everywhere.
            scope.spawn(move || read(cache, 1, n * 1_000_003..LEN / 2 + n * 77_777).unwrap());
        }
        // Nobody gets anything before all of them wait, or nearly all: it makes no difference to what is checked.
        std::thread::yield_now();
        fake.set_closed(false);
    });
    read(&cache, 1, 0..LEN / 2).unwrap();
    assert_eq!(fake.fetched.load(Ordering::SeqCst), LEN / 2 + 7 * 77_777);
}

#[test]
fn what_is_planned_is_fetched_once_and_in_large_pieces() {
    let fake = Arc::new(Fake::default());
    let cache = cache(&fake, 1 << 30, LONG);
    cache.plan(&PackName([2; 32]), 100..LEN);
    assert!(cache.has(&PackName([2; 32]), &(100..LEN)) && !cache.has(&PackName([2; 32]), &(99..LEN)));
    for at in (100..LEN - 10_000).step_by(3_333_333) {
        read(&cache, 2, at..at + 10_000).unwrap();
    }
    read(&cache, 2, LEN - 5..LEN).unwrap();
    read(&cache, 2, 100..LEN).unwrap();
    assert_eq!(fake.fetched.load(Ordering::SeqCst), LEN - 100);
    assert_eq!(fake.requests.load(Ordering::SeqCst), (LEN - 100).div_ceil(PIECE));
}

#[test]
fn the_cache_keeps_to_its_size_and_forgets_the_oldest() {
    let fake = Arc::new(Fake::default());
    let max = 16 << 20;
    let cache = cache(&fake, max, LONG);
    read(&cache, 1, 0..1 << 20).unwrap();
    for pack in 2..5 {
        for at in (0..LEN).step_by(1 << 20) {
            read(&cache, pack, at..at + (1 << 20)).unwrap();
            // Used again and again, so it stays.
            read(&cache, 1, 500..600).unwrap();
        }
    }
    assert!(cache.peak() <= max && cache.peak() > max / 2, "{}", cache.peak());
    assert_eq!(fake.fetched.load(Ordering::SeqCst), (1 << 20) + 3 * LEN);
    // What was forgotten comes again, whole.
    read(&cache, 2, 0..LEN).unwrap();
}

#[test]
fn what_was_planned_stays_until_it_was_read() {
    let fake = Arc::new(Fake::default());
    let cache = cache(&fake, 32 << 20, LONG);
    cache.plan(&PackName([1; 32]), 0..16 << 20);
    read(&cache, 1, 0..10).unwrap();
    // Twice what the cache holds, each part used after the plan was fetched.
    for at in (0..LEN).step_by(1 << 20) {
        read(&cache, 2, at..at + (1 << 20)).unwrap();
        read(&cache, 3, at..at + (1 << 20)).unwrap();
    }
    read(&cache, 1, 0..16 << 20).unwrap();
    assert_eq!(fake.fetched.load(Ordering::SeqCst), (16 << 20) + 2 * LEN);
    // Now it has been.
    for at in (0..LEN).step_by(1 << 20) {
        read(&cache, 4, at..at + (1 << 20)).unwrap();
    }
    assert!(!cache.has(&PackName([1; 32]), &(0..1)));
}

/// Many threads that read at random, in a cache that holds little: every byte is right.
#[test]
fn nothing_is_mixed_up_under_pressure() {
    let fake = Arc::new(Fake::default());
    let cache = cache(&fake, 6 << 20, LONG);
    std::thread::scope(|scope| {
        for n in 0..6_u64 {
            let cache = &cache;
            scope.spawn(move || {
                let mut x = n + 1;
                for _ in 0..60 {
                    x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let (at, len) = ((x >> 20) % (LEN - 600_000), 1 + (x >> 8) % 500_000);
                    let pack = u8::try_from((x >> 50) % 3).unwrap();
                    if x.is_multiple_of(5) {
                        cache.plan(&PackName([pack; 32]), at..at + len);
                    }
                    read(cache, pack, at..at + len).unwrap();
                }
            });
        }
    });
}

#[test]
fn a_remote_that_stalls_is_given_up_and_taken_up_again() {
    let fake = Arc::new(Fake::default());
    let cache = cache(&fake, 1 << 30, Duration::from_millis(200));
    fake.set_closed(true);
    for _ in 0..3 {
        let error = read(&cache, 3, 0..1000).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let cause = super::super::remote_cause(&error).unwrap();
        assert_eq!(cause.kind, ErrorKind::Timeout);
        assert!(cause.message.contains("packs/03/0303"), "{cause}");
    }
    assert_eq!(fake.requests.load(Ordering::SeqCst), 1, "the request that is under way is waited for again");
    assert!(cache.0.lock().hopeless);
    fake.set_closed(false);
    while read(&cache, 3, 0..1000).is_err() {}
    assert!(!cache.0.lock().hopeless, "something came");
    assert_eq!(fake.fetched.load(Ordering::SeqCst), 1000);
}

/// A cache whose clock is moved on by each request that is answered, by most of the patience.
fn slow(jobs: usize) -> (Arc<Fake>, PackCache, Arc<TestEnv>) {
    let (env, patience) = (Arc::new(TestEnv::new(1)), Duration::from_millis(50));
    let slow = Some((Arc::clone(&env), Duration::from_millis(40)));
    let fake = Arc::new(Fake { slow, ..Fake::default() });
    let waits = Waits { jobs, patience, env: Arc::clone(&env) as Arc<dyn Env> };
    let cache = cache_with(&fake, 1 << 30, waits);
    (fake, cache, env)
}

/// A NAS behind a slow line: what is wanted comes last, long after the patience, and all the time something came.
#[test]
fn only_silence_ends_a_wait() {
    let (fake, cache, env) = slow(1);
    let end = 20 * PIECE_MIN;
    let mut last = [0; 10];
    cache.read(&PackName([1; 32]), &mut last, end - 10, &(0..end)).unwrap();
    assert_eq!(last.to_vec(), (end - 10..end).map(|at| byte(1, at)).collect::<Vec<u8>>());
    assert_eq!(fake.requests.load(Ordering::SeqCst), 20);
    assert_eq!(env.monotonic(), Duration::from_millis(800), "sixteen times as long as nothing may come");
    assert!(!cache.0.lock().hopeless);
}

/// A request that is never answered has an end for who waits for it, and the others go on.
#[test]
fn one_request_that_hangs_is_given_up_while_others_are_answered() {
    let (fake, cache, _) = slow(2);
    fake.set_closed_for(Some(9));
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| read(&cache, 9, 0..1000));
        let mut at = 0;
        while !waits.is_finished() {
            read(&cache, 1, at..at + 1).unwrap();
            at += 1;
        }
        let error = waits.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let cause = super::super::remote_cause(&error).unwrap();
        assert!(
            cause.message.contains("packs/09/0909") && cause.message.contains("other requests"),
            "{cause}"
        );
    });
    assert!(!cache.0.lock().hopeless, "the remote is there");
    fake.set_closed_for(None);
    while read(&cache, 9, 0..1000).is_err() {}
}

/// All threads share what a line carries, so their pieces end at about the same time: within the patience, on any line that
/// is not slower than half a Mbit a second, whatever is tried first.
#[test]
fn pieces_fit_the_line() {
    for (patience, jobs) in [(60, 4), (60, 16), (10, 4), (1200, 16)].map(|(s, j)| (Duration::from_secs(s), j))
    {
        for line in [LINE, 250_000, 1 << 20, 100 << 20] {
            let mut piece = first_piece(jobs, patience);
            let mut took = Duration::ZERO;
            for _ in 0..20 {
                took = Duration::from_millis(jobs as u64 * piece * 1000 / line);
                // In ten seconds four of the shortest ones come on the slowest line; not more.
                assert!(took <= patience || piece == PIECE_MIN, "{took:?} for {piece} bytes at {line} B/s");
                for _ in 0..jobs {
                    piece = next_piece(piece, piece, took, patience);
                }
                assert!((PIECE_MIN..=PIECE).contains(&piece));
            }
            assert!(took <= patience / 4 || piece == PIECE_MIN, "{took:?} at {line} B/s, {patience:?}");
            assert!(line < 100 << 20 || piece == PIECE, "{piece} at {line} B/s");
        }
    }
    let minute = Duration::from_secs(60);
    assert_eq!(first_piece(4, Duration::from_secs(1200)), PIECE);
    assert_eq!(first_piece(4, minute), 960 << 10);
    assert_eq!(next_piece(PIECE, PIECE, minute / 2, minute), PIECE / 2);
    assert_eq!(next_piece(PIECE / 2, PIECE, minute / 2, minute), PIECE / 2, "it was known already");
    assert_eq!(
        next_piece(1 << 20, 100, Duration::ZERO, minute),
        1 << 20,
        "short ones say nothing of longer ones"
    );
    assert_eq!(next_piece(PIECE, 100, minute, minute), PIECE, "neither do those that take long");
}

#[test]
fn a_failure_is_told_to_all_who_wait_and_not_kept() {
    let fake = Arc::new(Fake::default());
    let cache = cache(&fake, 1 << 30, LONG);
    fake.fails.store(true, Ordering::SeqCst);
    fake.set_closed(true);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..5).map(|_| scope.spawn(|| read(&cache, 4, 0..1000))).collect();
        fake.set_closed(false);
        for reader in readers {
            let error = reader.join().unwrap().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            assert!(error.to_string().contains("not for you"));
        }
    });
    fake.fails.store(false, Ordering::SeqCst);
    read(&cache, 4, 0..1000).unwrap();
}

/// Waits until so many requests were made: they are made by other threads.
fn wait_for_requests(fake: &Fake, requests: u64) {
    while fake.requests.load(Ordering::SeqCst) < requests {
        std::thread::yield_now();
    }
}

#[test]
fn what_was_planned_and_is_not_wanted_makes_room() {
    let fake = Arc::new(Fake::default());
    let cache = cache(&fake, 16 << 20, LONG);
    let (pack, other) = (PackName([1; 32]), PackName([2; 32]));
    // More than there is room for: the rest waits until something was read.
    cache.plan(&pack, 0..LEN);
    wait_for_requests(&fake, 4);
    cache.plan(&other, 0..1000);
    assert!(cache.has(&pack, &(0..LEN)));
    cache.unplan(&pack, &(0..LEN));
    assert!(!cache.has(&pack, &(LEN - 1..LEN)), "what was not begun is not fetched");
    // The other plan has room now, though nothing of the first one was read.
    read(&cache, 2, 0..1000).unwrap();
    let state = cache.0.lock();
    assert!(state.later.is_empty() && state.unread.is_empty(), "{} are pinned", state.unread.len());
    drop(state);
    assert!(fake.fetched.load(Ordering::SeqCst) < 24 << 20);
    // Whoever waits for what was planned gets it, whatever becomes of the plan.
    fake.set_closed(true);
    cache.plan(&pack, 30 << 20..31 << 20);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(&cache, 1, 30 << 20..31 << 20));
        cache.unplan(&pack, &(0..LEN));
        fake.set_closed(false);
        reader.join().unwrap().unwrap();
    });
}

#[test]
fn plans_are_dropped_with_the_remote() {
    let fake = Arc::new(Fake::default());
    let cache = cache(&fake, 1 << 30, Duration::from_millis(50));
    fake.set_closed(true);
    cache.plan(&PackName([1; 32]), 0..LEN);
    read(&cache, 2, 0..1000).unwrap_err();
    assert!(cache.0.lock().later.is_empty(), "nobody tries what nobody waits for");
    cache.plan(&PackName([3; 32]), 0..1000);
    assert!(!cache.has(&PackName([3; 32]), &(0..1)), "nothing new is planned");
    fake.set_closed(false);
    while read(&cache, 2, 0..1000).is_err() {}
    cache.plan(&PackName([3; 32]), 0..1000);
    assert!(cache.has(&PackName([3; 32]), &(0..1000)), "now there is hope");
    while read(&cache, 1, 0..LEN).is_err() {}
}

/// When room must be made for somebody who waits, what will be read last goes first, and not what is just being read.
#[test]
fn what_will_be_read_last_is_given_up_first() {
    let fake = Arc::new(Fake::default());
    let cache = cache(&fake, 16 << 20, LONG);
    let pack = PackName([1; 32]);
    cache.plan(&pack, 0..16 << 20);
    wait_for_requests(&fake, 4);
    // The first piece is in the middle of being read.
    for at in 0..3 {
        read(&cache, 1, at << 20..(at + 1) << 20).unwrap();
        read(&cache, 1, 8 << 20..9 << 20).unwrap();
    }
    read(&cache, 1, 15 << 20..16 << 20).unwrap();
    read(&cache, 2, 0..1000).unwrap();
    assert!(cache.has(&pack, &(0..12 << 20)) && !cache.has(&pack, &(12 << 20..16 << 20)));
}
