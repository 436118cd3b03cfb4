//! Fourteen days of a hosting server's backups: a daily incremental tree of hard links, a weekly full tarball of each
//! account, the oldest deleted, one mount and one snapshot a day, and old snapshots deleted. Space stays bounded by
//! what is kept, and every kept day is what it was when it was made.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use crate::common::{Rng, Sandbox, require_root, seed, tree_digest};

const DAYS: u32 = 14;
/// Daily trees and snapshots that are kept.
const DAILIES: u32 = 6;
const SNAPSHOTS: usize = 5;

const ACCOUNTS: [&str; 5] = ["alice", "bob", "carol", "dave", "erin"];

/// The accounts outside the vault: mail that doesn't compress, pages and database dumps that do.
struct Server {
    root: PathBuf,
    rng: Rng,
}

impl Server {
    fn new(root: PathBuf, seed: u64) -> Self {
        let mut server = Self { root, rng: Rng::new(seed) };
        for account in ACCOUNTS {
            for dir in ["homedir/mail", "homedir/public_html", "mysql"] {
                fs::create_dir_all(server.path(account, dir)).unwrap();
            }
            for n in 0..40 {
                server.mail(account, &format!("m{n}"));
            }
            for n in 0..60 {
                let page: Vec<String> = (n..n + 300).map(|line| format!("line {line}\n")).collect();
                fs::write(server.path(account, &format!("homedir/public_html/page{n}.html")), page.concat())
                    .unwrap();
            }
            server.rows(account, 0, 20_000);
            symlink("homedir/public_html", server.path(account, "www")).unwrap();
        }
        server
    }

    fn path(&self, account: &str, name: &str) -> PathBuf {
        self.root.join(account).join(name)
    }

    fn append(&self, account: &str, name: &str, text: &str) {
        let mut file = File::options().append(true).create(true).open(self.path(account, name)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn mail(&mut self, account: &str, name: &str) {
        let len = 2_000 + self.rng.below(100_000);
        let bytes = self.rng.bytes(len);
        fs::write(self.path(account, &format!("homedir/mail/{name}")), bytes).unwrap();
    }

    fn rows(&self, account: &str, day: u32, count: u32) {
        let rows: Vec<String> =
            (0..count).map(|n| format!("INSERT INTO {account} VALUES ({day}, {n}, 'row');\n")).collect();
        self.append(account, "mysql/dump.sql", &rows.concat());
    }

    /// What a day changes: new mail, mail deleted, a grown database, an edited page.
    fn day(&mut self, sandbox: &Sandbox, day: u32) {
        for account in ACCOUNTS {
            for n in 0..3 {
                self.mail(account, &format!("new{day}-{n}"));
                if day > 9 {
                    let old = format!("homedir/mail/new{}-{n}", day - 9);
                    fs::remove_file(self.path(account, &old)).unwrap();
                }
            }
            fs::remove_file(self.path(account, &format!("homedir/mail/m{}", day * 2))).unwrap();
            self.rows(account, day, 500);
            let page = format!("homedir/public_html/page{}.html", self.rng.below(60));
            self.append(account, &page, "edited\n");
        }
        // rsync sees a change by size or second: each day's changes bear that day's date, not the second of this test.
        sandbox
            .sh(&format!(
                "find accounts -newermt 2026-10-20 -exec touch -h -d '2026-10-{day:02} 03:04:05' {{}} +"
            ))
            .ok();
    }
}

/// The job of a day, as precpbackup, cpbackup and postcpbackup run it.
const JOB: &str = r#"
    cd decrypted
    mkdir -p daily weekly
    link=$([ -d daily/$((DAY - 1)) ] && echo "--link-dest=../$((DAY - 1))" || true)
    rsync -aH --numeric-ids $link ../accounts/ daily/$DAY/
    if [ $((DAY % 7)) = 0 ]; then
        mkdir weekly/$DAY
        for a in ../accounts/*; do tar -C ../accounts -cf weekly/$DAY/cpmove-${a##*/}.tar ${a##*/}; done
        rm -rf weekly/$((DAY - 7))
    fi
    rm -rf daily/$((DAY - KEPT))
"#;

/// Distinct contents, by hash, with their lengths.
type Contents = BTreeMap<[u8; 32], u64>;

/// Distinct contents of the files below a directory whose paths fit.
fn contents(root: &Path, fits: impl Fn(&str) -> bool) -> Contents {
    let mut found = Contents::new();
    let (mut seen, mut stack) = (BTreeSet::new(), vec![root.to_path_buf()]);
    while let Some(path) = stack.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            stack.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if meta.is_file() && fits(path.to_str().unwrap()) && seen.insert(meta.ino()) {
            let bytes = fs::read(&path).unwrap();
            found.insert(*blake3::hash(&bytes).as_bytes(), bytes.len() as u64);
        }
    }
    found
}

/// Bytes that a directory takes on the disk.
fn disk_usage(root: &Path) -> u64 {
    let (mut bytes, mut stack) = (0, vec![root.to_path_buf()]);
    while let Some(path) = stack.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        bytes += meta.blocks() * 512;
        if meta.is_dir() {
            stack.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    bytes
}

/// What a day left.
struct Day {
    /// The snapshot of its unmount.
    seq: u64,
    manifest: Vec<String>,
    /// Distinct contents: what doesn't compress, what does, and tarballs.
    mail: Contents,
    text: Contents,
    tarballs: Contents,
}

/// Bytes of all distinct contents of some days.
fn union<'a>(parts: impl Iterator<Item = &'a Contents>) -> u64 {
    parts.flatten().collect::<BTreeMap<_, _>>().values().copied().sum()
}

#[test]
fn heavy_fourteen_days_of_rotation_stay_bounded_and_right() {
    require_root();
    let seed = seed(0x5eed_0040);
    let sandbox = Sandbox::with_vault();
    let mut days: BTreeMap<u32, Day> = BTreeMap::new();
    let mut sizes = Vec::new();
    let mut server = Server::new(sandbox.path("accounts"), seed);
    for day in 1..=DAYS {
        server.day(&sandbox, day);
        sandbox.mount();
        sandbox.sh(&format!("DAY={day} KEPT={DAILIES}\n{JOB}")).ok();
        let manifest = tree_digest(&sandbox.mountpoint());
        let is_mail = |path: &str| path.contains("/mail/");
        let mail = contents(&sandbox.path("decrypted/daily"), is_mail);
        let text = contents(&sandbox.path("decrypted/daily"), |path| !is_mail(path));
        let tarballs = contents(&sandbox.path("decrypted/weekly"), |_| true);
        sandbox.umount();
        let seq = sandbox.snapshots().iter().filter_map(|s| s["seq"].as_u64()).max().unwrap();
        days.insert(day, Day { seq, manifest, mail, text, tarballs });
        if days.len() > SNAPSHOTS {
            let (_, oldest) = days.pop_first().unwrap();
            sandbox.keyed(&["snapshot", "delete", sandbox.vault_str(), &oldest.seq.to_string()]).ok();
        }
        sandbox.keyed(&["gc", sandbox.vault_str()]).ok();

        // What is kept, once each: mail as it is, pages and dumps much smaller, tarballs partly known already. On top of it
        // garbage, of which gc leaves up to a fifth of a pack, and the live state, whose journal has a fixed size.
        let mail = union(days.values().map(|day| &day.mail));
        let text = union(days.values().map(|day| &day.text));
        let tarballs = union(days.values().map(|day| &day.tarballs));
        let live = disk_usage(&sandbox.vault().join("live"));
        let size = disk_usage(&sandbox.vault()) - live;
        println!(
            "day {day}: {} KiB and the live state's {}, for {} of mail, {} of text, {} of tarballs",
            size >> 10,
            live >> 10,
            mail >> 10,
            text >> 10,
            tarballs >> 10
        );
        let most = mail + mail / 4 + text / 4 + tarballs + (4 << 20);
        assert!(size <= most, "day {day}: the vault takes {size} bytes, at most {most} were expected");
        assert!(size > mail, "day {day}: {size} bytes can't hold {mail} of noise: the measure is wrong");
        assert!(live < 160 << 20, "day {day}: the live state takes {live} bytes");
        sizes.push(size);
    }
    // It has stopped growing: a day of the second week takes no more than the days at the end of the first one, which
    // held as many trees, but for what the accounts have grown and for the second set of tarballs.
    let (first, second) = (sizes[6..9].iter().max().unwrap(), sizes[11..].iter().max().unwrap());
    assert!(*second <= first * 2, "from {first} to {second} bytes: it grows");

    // Every kept day is what it was.
    let seqs: BTreeSet<u64> = sandbox.snapshots().iter().filter_map(|s| s["seq"].as_u64()).collect();
    assert_eq!(seqs, days.values().map(|day| day.seq).collect(), "exactly the kept snapshots are there");
    for (number, day) in &days {
        let out = sandbox.path(&format!("back-{number}"));
        let (target, to) = (format!("{}:/", day.seq), out.to_str().unwrap());
        sandbox.keyed(&["restore", sandbox.vault_str(), &target, "--to", to]).ok();
        assert!(tree_digest(&out) == day.manifest, "day {number} is not what it was");
        fs::remove_dir_all(&out).unwrap();
    }
    sandbox.mount();
    let last = &days[&DAYS].manifest;
    assert!(tree_digest(&sandbox.mountpoint()) == *last, "the working tree is not what it was");
    let listed = sandbox.sh("ls decrypted/daily | sort -n | xargs; ls decrypted/weekly").ok();
    assert_eq!(listed, "9 10 11 12 13 14\n14\n");
    sandbox.sh("diff -r --no-dereference accounts decrypted/daily/14").ok();
    let shared = sandbox.sh("stat -c %h decrypted/daily/14/alice/homedir/mail/m39").ok();
    assert_eq!(shared.trim(), DAILIES.to_string(), "an unchanged file is one inode in all kept days");
    sandbox.umount();
    sandbox.assert_clean();
}
