//! Promise C1 against the real daemon: everything it does to the vault's directory while programs work on the kernel
//! mount is recorded by strace, from outside. Of many moments in that record, images are rebuilt that a power cut could
//! have left, and opened: what had been synced by then is there.
//!
//! The record is complete: replayed to its end it gives exactly the files that the daemon left.

mod power;
mod trace;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use strongroom::disk::{Disk, RealDisk};
use strongroom::format::Cipher;
use strongroom::snapshot::chain::{Chain, present_packs};
use strongroom::store::config::EngineConfig;
use strongroom::store::live::LiveConfig;

use self::power::{Cut, Lie, Model};
use self::trace::{CALLS, Event, Op};
use crate::common::ledger::{Found, Ledger, Note, Writer};
use crate::common::{Rng, Sandbox, kill_9, require_fuse, require_root, seed};
use crate::whole::view::{Dump, damage, difference, dump_fs, fsck};
use crate::whole::{Host, keyfile, panic_text};

/// The directories that are recorded.
const PARTS: [&str; 2] = ["encrypted", "state"];
const WRITERS: usize = 2;
/// Steps of each writer in each of the three sessions.
const STEPS: usize = 40;
/// Images that are tried at most; all calls that sync come first.
const IMAGES: usize = 420;

/// What the record says besides changes of files.
#[derive(Clone, Debug)]
enum Marked {
    /// A writer's note.
    Note(usize, Note),
    /// A snapshot is about to be made, or was made.
    SnapshotBegins,
    SnapshotDone,
}

/// A shell under strace. Its children, the daemon among them, are recorded too.
struct Recorder {
    strace: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    marked: Vec<Marked>,
}

impl Recorder {
    fn start(sandbox: &Sandbox) -> Self {
        let mut strace = sandbox
            .command("strace")
            .args(["-f", "--seccomp-bpf", "-xx", "-y", "-s", "33554432", "-o", &sandbox.str("trace")])
            .args(["-e", &format!("trace={}", CALLS.replace([' ', '\n'], "")), "-e", "signal=none", "bash"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("strace is needed by this test: install Debian's strace");
        let (stdin, stdout) = (strace.stdin.take().unwrap(), BufReader::new(strace.stdout.take().unwrap()));
        Self { strace, stdin, stdout, marked: Vec::new() }
    }

    /// Runs a command in the shell, and returns the first line that it prints.
    fn say(&mut self, command: &str) -> String {
        writeln!(self.stdin, "{command}").unwrap();
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim_end().to_string()
    }

    /// Puts a mark into the record. It stands before everything that is done after this has returned, and after
    /// everything that had been answered before it was called.
    fn mark(&mut self, what: Marked) {
        let line = format!("mark {}", self.marked.len());
        self.marked.push(what);
        assert_eq!(self.say(&format!("echo {line}")), line, "the recorded shell");
    }

    /// Mounts in the recorded shell.
    fn mount(&mut self, sandbox: &Sandbox) {
        let command = format!(
            "{} mount {} {} --keyfile {} --log {} > mount.out 2>&1; echo mounted $?",
            env!("CARGO_BIN_EXE_strongroom"),
            sandbox.vault_str(),
            sandbox.str("decrypted"),
            sandbox.str("key"),
            sandbox.str("daemon.log"),
        );
        let said = self.say(&command);
        assert_eq!(said, "mounted 0", "{}", fs::read_to_string(sandbox.path("mount.out")).unwrap());
    }

    /// Lets the shell end, and strace with it.
    fn finish(mut self) -> Vec<Marked> {
        drop(self.stdin);
        assert!(self.strace.wait().unwrap().success(), "strace failed");
        self.marked
    }
}

/// Sizes for opening images: the journal as the daemon made it, and no threads.
fn config() -> EngineConfig {
    EngineConfig {
        workers: 1,
        background: false,
        cache_bytes: 4 << 20,
        reserve_bytes: 64 << 10,
        live: LiveConfig { segment_bytes: 256 << 10, background: false, ..LiveConfig::default() },
        ..EngineConfig::default()
    }
}

/// The vault and state directory below `root`, to be opened in this process.
fn host(root: &Path, seed: u64) -> (Host, Arc<dyn Disk>) {
    let vault: Arc<dyn Disk> = Arc::new(RealDisk::open(&root.join(PARTS[0])).unwrap());
    let state = Arc::new(RealDisk::open(&root.join(PARTS[1])).unwrap());
    (Host { cfg: config(), ..Host::new(Arc::clone(&vault), state, seed) }, vault)
}

/// Makes a vault that has its live state. The journal's unused space is made a hole, so that images take little room.
fn prepare(sandbox: &Sandbox) {
    fs::create_dir(sandbox.vault()).unwrap();
    let root = sandbox.path("");
    let (host, _) = host(&root, 0x0BAD_5EED);
    host.create(Cipher::ChaCha20Poly1305).unwrap();
    let session = host.open(0).unwrap();
    session.fs.shutdown().unwrap();
    let mut closed = Ok(());
    session.engine.close_with(|result| closed = result);
    closed.unwrap();
    drop(session);
    for segment in ["a", "b"] {
        let file =
            fs::File::options().write(true).open(sandbox.vault().join("live/journal").join(segment)).unwrap();
        assert!(file.metadata().unwrap().len() < LiveConfig::default().segment_bytes);
        // The daemon would fill it up.
        file.set_len(LiveConfig::default().segment_bytes).unwrap();
    }
    sandbox.private_file("key", &keyfile(0));
}

/// What was recorded.
struct Record {
    base: Model,
    events: Vec<Event>,
    marked: Vec<Marked>,
}

/// Records three sessions: one is unmounted, one killed when everything was synced, and one recovers from that.
fn record(sandbox: &Sandbox, seed: u64) -> Record {
    prepare(sandbox);
    let root = sandbox.path("").canonicalize().unwrap();
    let base = Model::load(&root, &PARTS);
    let recorder = Arc::new(Mutex::new(Recorder::start(sandbox)));
    let mut rng = Rng::new(seed);
    let mut writers: Vec<Writer> = (0..WRITERS)
        .map(|number| {
            let recorder = Arc::clone(&recorder);
            let dir = sandbox.mountpoint().join(format!("writer-{number}"));
            let tell = move |note: &Note| recorder.lock().unwrap().mark(Marked::Note(number, note.clone()));
            let mut writer = Writer::told(dir, rng.next(), tell);
            writer.large_percent = 4;
            writer
        })
        .collect();
    for session in 0..3 {
        recorder.lock().unwrap().mount(sandbox);
        std::thread::scope(|scope| {
            for writer in &mut writers {
                scope.spawn(|| {
                    if session == 0 {
                        fs::create_dir(&writer.dir).unwrap();
                        writer.sync_dir().unwrap();
                    }
                    for _ in 0..STEPS {
                        writer.step().unwrap();
                    }
                });
            }
            if session != 1 {
                recorder.lock().unwrap().mark(Marked::SnapshotBegins);
                sandbox
                    .run(["snapshot", "create", sandbox.vault_str(), "--keyfile", &sandbox.str("key")])
                    .ok();
                recorder.lock().unwrap().mark(Marked::SnapshotDone);
            } else {
                sandbox.run(["gc", sandbox.vault_str(), "--keyfile", &sandbox.str("key")]).ok();
            }
        });
        if session == 1 {
            for writer in &mut writers {
                writer.settle_all().unwrap();
            }
            sandbox.sh("sync -f decrypted").ok();
            kill_9(sandbox.daemon_pid());
            sandbox.sh("umount -l decrypted").ok();
        } else {
            recorder.lock().unwrap().mark(Marked::SnapshotBegins);
            sandbox.umount();
            recorder.lock().unwrap().mark(Marked::SnapshotDone);
        }
    }
    drop(writers);
    let recorder = Arc::into_inner(recorder).unwrap().into_inner().unwrap();
    let marked = recorder.finish();
    let events = trace::read(&sandbox.path("trace"), &root, &PARTS).unwrap();
    Record { base, events, marked }
}

/// One image: after so many events had returned, what of the rest is left.
#[derive(Clone, Debug)]
struct Try {
    applied: usize,
    cut: Cut,
}

/// What must be true at a moment.
struct Promised {
    ledgers: Vec<Ledger>,
    /// Writers whose directory was synced.
    made: Vec<bool>,
    /// Snapshots that must be there, and that may be.
    snapshots: (usize, usize),
}

impl Promised {
    /// `line`: the last line of the record that was written.
    fn at(record: &Record, line: usize) -> Self {
        let mut promised =
            Self { ledgers: vec![Ledger::default(); WRITERS], made: vec![false; WRITERS], snapshots: (0, 0) };
        for event in &record.events {
            let Op::Mark(number) = event.op else { continue };
            if event.begin > line {
                continue;
            }
            match &record.marked[usize::try_from(number).unwrap()] {
                Marked::Note(writer, note) => {
                    promised.ledgers[*writer].apply(note);
                    promised.made[*writer] |= matches!(note, Note::Settled(_));
                }
                Marked::SnapshotBegins => promised.snapshots.1 += 1,
                Marked::SnapshotDone => promised.snapshots.0 += 1,
            }
        }
        promised
    }

    fn check(&self, tree: &Dump) -> Result<(), String> {
        let mut found: BTreeMap<usize, Found> = BTreeMap::new();
        for (path, item) in tree {
            let path = String::from_utf8(path.clone()).map_err(|e| e.to_string())?;
            let Some(path) = path.strip_prefix("writer-") else { continue };
            let (number, name) = path.split_once('/').map_or((path, None), |(n, name)| (n, Some(name)));
            let files = found.entry(number.parse().map_err(|_| path)?).or_default();
            if let Some(name) = name {
                files.insert(name.to_string(), item.content.to_vec());
            }
        }
        for number in 0..WRITERS {
            match found.get(&number) {
                None if self.made[number] => return Err(format!("writer {number}'s directory is not there")),
                None => {}
                Some(files) => {
                    self.ledgers[number].check(files).map_err(|e| format!("writer {number}: {e}"))?;
                }
            }
        }
        Ok(())
    }
}

/// Rebuilds one image in `scratch` and opens it.
fn check(record: &Record, model: &Model, attempt: &Try, scratch: &Path, go_on: bool) -> Result<(), String> {
    // The last line that was seen; a call that began before it and returned after it is in flight.
    let line = record.events[attempt.applied - 1].end;
    let flying: Vec<&Event> =
        record.events[attempt.applied..].iter().filter(|event| event.begin < line).collect();
    drop(fs::remove_dir_all(scratch));
    model.store(scratch, attempt.cut, &flying);
    let promised = Promised::at(record, line);
    let (host, disk) = host(scratch, attempt.applied as u64);

    let report = fsck(disk.as_ref()).map_err(|e| format!("fsck: {e}"))?;
    if let Some(damage) = damage(&report) {
        return Err(format!("fsck of the image:\n{damage}"));
    }
    let unlocked = host.unlock(0).map_err(|e| format!("unlocking: {e}"))?;
    let chain = Chain::load(disk.as_ref(), &unlocked.header).map_err(|e| format!("the chain: {e}"))?;
    let present = present_packs(disk.as_ref()).map_err(|e| format!("packs: {e}"))?;
    if !chain.problems().is_empty() {
        return Err(format!("the chain: {:?}", chain.problems()));
    }
    let complete = chain.snapshots().filter(|info| chain.is_complete(info.seq, &present)).count();
    let (must, may) = promised.snapshots;
    if complete < must || complete > may || complete != chain.snapshots().count() {
        return Err(format!("{complete} complete snapshots, expected {must} to {may}"));
    }
    drop(unlocked);

    let session = host.open(0).map_err(|e| format!("opening: {e}"))?;
    let tree = dump_fs(&session.fs).map_err(|e| format!("reading: {e}"))?;
    promised.check(&tree)?;
    if go_on {
        session.unmount().map_err(|e| format!("unmounting: {e}"))?;
        let session = host.open(0).map_err(|e| format!("opening again: {e}"))?;
        let again = dump_fs(&session.fs).map_err(|e| format!("reading again: {e}"))?;
        if let Some(text) = difference(&again, &tree) {
            return Err(format!("a remount changed the tree:\n{text}"));
        }
        drop(session);
        let report = fsck(disk.as_ref()).map_err(|e| format!("fsck after a remount: {e}"))?;
        if let Some(damage) = damage(&report) {
            return Err(format!("fsck after a remount:\n{damage}"));
        }
    }
    Ok(())
}

/// Where to cut: around every sync, and anywhere else.
fn attempts(record: &Record, rng: &mut Rng) -> Vec<Try> {
    let syncs: BTreeSet<usize> = (1..record.events.len())
        .filter(|&n| matches!(record.events[n].op, Op::Sync(_)))
        // Before it returned, and after.
        .flat_map(|n| [n, n + 1])
        .filter(|&n| n > 0)
        .collect();
    let others: Vec<usize> = (1..=record.events.len()).filter(|n| !syncs.contains(n)).collect();
    let mut places: Vec<usize> = syncs.into_iter().collect();
    // Too many: a part of them, another one with each seed.
    while places.len() > IMAGES * 4 / 5 {
        places.swap_remove(rng.below(places.len()));
    }
    while places.len() < IMAGES {
        places.push(others[rng.below(others.len())]);
    }
    places.sort_unstable();
    places
        .into_iter()
        .map(|applied| {
            let cut = match rng.below(5) {
                0 => Cut::Drop,
                1 => Cut::Keep,
                _ => Cut::Torn(rng.next()),
            };
            Try { applied, cut }
        })
        .collect()
}

/// Tries images in two threads, in order; returns the failures.
fn try_all(record: &Record, attempts: &[Try], lie: Lie, go_on_percent: usize) -> Vec<(Try, String)> {
    let mut model = record.base.clone();
    model.lie = lie;
    let next = Mutex::new((0, 0, model));
    let turn = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                // In memory, where there is one: an image is synced many times while it is opened.
                let shm = Path::new("/dev/shm");
                let place = if shm.is_dir() { shm.to_path_buf() } else { std::env::temp_dir() };
                let scratch = tempfile::Builder::new().prefix("strongroom-image-").tempdir_in(place).unwrap();
                let image: PathBuf = scratch.path().join("image");
                loop {
                    let (attempt, model) = {
                        let mut at = next.lock().unwrap();
                        let Some(attempt) = attempts.get(at.0) else { return };
                        at.0 += 1;
                        while at.1 < attempt.applied {
                            let event = &record.events[at.1];
                            at.2.apply(event).unwrap_or_else(|e| panic!("line {}: {e}", event.begin));
                            at.1 += 1;
                        }
                        (attempt, at.2.clone())
                    };
                    let go_on = turn.fetch_add(1, Ordering::Relaxed) * go_on_percent % 100 < go_on_percent;
                    let result =
                        catch_unwind(AssertUnwindSafe(|| check(record, &model, attempt, &image, go_on)));
                    let result = result.unwrap_or_else(|p| Err(format!("panic: {}", panic_text(p.as_ref()))));
                    if let Err(text) = result {
                        failures.lock().unwrap().push((attempt.clone(), text));
                    }
                }
            });
        }
    });
    failures.into_inner().unwrap()
}

#[test]
fn heavy_recorded_writes_cut_anywhere_keep_what_was_synced() {
    require_fuse();
    require_root();
    let seed = seed(0x5eed_0050);
    let sandbox = Sandbox::new();
    let start = std::time::Instant::now();
    let record = record(&sandbox, seed);
    let count = |wanted: fn(&Op) -> bool| record.events.iter().filter(|event| wanted(&event.op)).count();
    let syncs = count(|op| matches!(op, Op::Sync(_)));
    println!(
        "{} changes, {syncs} syncs, {} renames, {} notes, after {:?}",
        record.events.len(),
        count(|op| matches!(op, Op::Rename(..))),
        record.marked.len(),
        start.elapsed()
    );
    assert_eq!(count(|op| matches!(op, Op::Mark(_))), record.marked.len(), "every mark is in the record");
    assert!(syncs > 100, "only {syncs} syncs: that was no load");

    // Nothing was overlooked, however it was written.
    let mut model = record.base.clone();
    for event in &record.events {
        model.apply(event).unwrap_or_else(|e| panic!("line {}: {e}: {event:?}", event.begin));
    }
    let files = model.compare(&sandbox.path("").canonicalize().unwrap(), &PARTS).unwrap();
    assert!(files > 6, "{files}");

    let attempts = attempts(&record, &mut Rng::new(seed ^ 0xc0de));
    let failures = try_all(&record, &attempts, Lie::None, 15);
    println!("{} images after {:?}", attempts.len(), start.elapsed());
    let text: Vec<String> =
        failures.iter().take(5).map(|(attempt, text)| format!("{attempt:?}: {text}")).collect();
    assert!(failures.is_empty(), "{} of {} images:\n{}", failures.len(), attempts.len(), text.join("\n\n"));

    // And a disk that does not sync is found out: this test can fail.
    let late: Vec<Try> =
        (2..=4).map(|part| Try { applied: record.events.len() * part / 4, cut: Cut::Drop }).collect();
    for lie in [Lie::Files, Lie::Directories] {
        assert_eq!(
            try_all(&record, &late, lie, 0).len(),
            late.len(),
            "a disk that lies about {lie:?} was not noticed"
        );
    }
}
