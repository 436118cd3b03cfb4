//! What is done to a vault is found, and is called by its name.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::*;
use fsck_strongroom::{Class, FatalError, Options, Report, Select, Unlock, check_source};

fn check(files: &Mem) -> Report {
    check_with(files, &Options::default())
}

fn check_with(files: &Mem, opts: &Options) -> Report {
    check_source(files, Some(Unlock::Root(ROOT)), opts).unwrap()
}

fn keyless(files: &Mem) -> Report {
    check_source(files, None, &Options::default()).unwrap()
}

fn print(report: &Report) -> String {
    report.findings.iter().map(|f| format!("{f}\n")).collect()
}

#[track_caller]
fn assert_class(report: &Report, class: Class, file: &str) {
    assert!(report.of(class).any(|f| f.file == file), "no {class} finding for {file}:\n{}", print(report));
    assert!(!report.is_clean());
}

#[test]
fn a_clean_vault_is_clean() {
    for cipher in [1, 2] {
        let s = sample(cipher);
        for opts in [
            Options::default(),
            Options { quick: true, ..Options::default() },
            Options { jobs: 3, trees: true, ..Options::default() },
            Options { snapshot: Some(Select::Latest), ..Options::default() },
            Options { snapshot: Some(Select::Sequence(1)), ..Options::default() },
        ] {
            let report = check_with(&s.vault.files, &opts);
            assert!(report.is_clean() && report.findings.is_empty(), "{}", print(&report));
            assert_eq!(report.latest, Some(2));
            serde_json::to_string(&report).unwrap();
        }
        let report = keyless(&s.vault.files);
        assert!(report.is_clean() && report.findings.is_empty(), "{}", print(&report));
        assert_eq!(report.snapshots.len(), 2);
        assert_eq!(report.snapshots[1].complete, Some(true));
    }
}

#[test]
fn counts_and_trees() {
    let s = sample(1);
    let report = check_with(&s.vault.files, &Options { trees: true, ..Options::default() });
    let counted = report.snapshots[0].counted.unwrap();
    assert_eq!((counted.files, counted.directories, counted.others), (8, 2, 5));
    assert_eq!(counted.bytes, 5 * 2 + 4 + 10 + (1 << 20) + 500_000 + 6000 + 3);

    let tree: Vec<_> = report.tree(1).collect();
    let paths: Vec<String> = tree.iter().map(|i| String::from_utf8(i.path.clone()).unwrap()).collect();
    assert_eq!(
        paths,
        [
            "",
            "block",
            "char",
            "dir",
            "dir/deep",
            "dir/hard-b",
            "fifo",
            "hard-a",
            "holes",
            "large",
            "link",
            "object",
            "odd\x1b\u{fc}",
            "socket",
            "xattrs"
        ]
    );
    let content = |path: &str| tree[paths.iter().position(|p| p == path).unwrap()].content.unwrap();
    assert_eq!(content("dir/deep"), h(b"deep\0\0\0\0\0\0"));
    assert_eq!(content("holes"), h(&vec![0; 1 << 20]));
    assert_eq!(content("large"), h(&[noise(1, 300_000), vec![7; 200_000]].concat()));
    let mut object = vec![0; 6000];
    object[100..1100].copy_from_slice(&noise(1, 300_000)[5..1005]);
    object[1150..1160].fill(7);
    object[5000..5005].copy_from_slice(b"short");
    assert_eq!(content("object"), h(&object));
    assert_eq!(tree[1].device, (8, 1));
    assert_eq!(tree[10].target, b"dir/deep");
    assert_eq!(tree[14].xattrs.len(), 2);
    assert_eq!(tree[14].atime, (-5, 123_456_789));
}

#[test]
fn every_way_to_unlock_works_and_no_other() {
    let s = sample(1);
    let open = |key| check_source(&s.vault.files, Some(key), &Options::default());
    assert!(open(Unlock::Passphrase(PASSPHRASE.to_vec())).unwrap().unlocked);
    assert!(open(Unlock::Keyfile(KEYFILE.to_vec())).unwrap().unlocked);
    let wrong = |key| match open(key) {
        Err(FatalError::Unlock(why)) => why.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(wrong(Unlock::Passphrase(b"correct horse battery stapl".to_vec())).contains("wrong passphrase"));
    assert!(wrong(Unlock::Passphrase(Vec::new())).contains("wrong passphrase"));
    assert!(wrong(Unlock::Keyfile(vec![0x5a; 63])).contains("wrong key file"));
    assert!(wrong(Unlock::Keyfile(vec![0x5a; 31])).contains("32 to"));
    assert!(wrong(Unlock::Recovery("SR1-0000000".into())).contains("too short"));
    assert!(wrong(Unlock::Root([1; 32])).contains("wrong root secret"));
}

/// Flips one bit in each region of a file and tells which findings came.
fn flips(files: &Mem, path: &str, at: &[usize], class: Class) {
    for &at in at {
        let mut files = files.clone();
        files.flip(path, at);
        let report = check(&files);
        assert_class(&report, class, path);
        if path.starts_with("packs") {
            assert_class(&keyless(&files), Class::Damaged, path);
        }
    }
}

#[test]
fn a_flipped_bit_is_found_in_every_region() {
    let s = sample(1);
    let files = &s.vault.files;
    for pack in &s.packs {
        let len = files.0[&pack.path].len();
        // Magic, kind, cipher, reserved, vault id, uid, ciphertext (both halves), first frame, padding, trailer.
        let at = [0, 8, 9, 12, 20, 40, 50, 1150, 1170, len - 70, len - 64, len - 1];
        flips(files, &pack.path, &at, Class::Damaged);
    }
    for (path, _) in &s.snapshots {
        let len = files.0[path].len();
        let at: Vec<usize> =
            (0..24).chain((24..len).step_by(61)).chain([len - 65, len - 64, len - 1]).collect();
        flips(files, path, &at, Class::Damaged);
        let mut files = files.clone();
        files.flip(path, 100);
        assert_class(&keyless(&files), Class::Damaged, path);
    }
    let len = files.0["vault.json"].len();
    for path in ["vault.json", "vault.json.bak"] {
        let at: Vec<usize> = (0..len).step_by(97).chain([len - 1, len - 70, len - 150]).collect();
        flips(files, path, &at, Class::Damaged);
    }
}

#[test]
fn damage_reaches_the_paths_that_use_it() {
    let s = sample(1);
    let mut files = s.vault.files.clone();
    // The first frame of the first data pack: of the chunk that "large", "object" and, in snapshot 2, "old" use.
    files.flip(&s.packs[0].path, 1200);
    let report = check(&files);
    let paths: Vec<_> =
        report.of(Class::Affected).map(|f| (f.snapshot.unwrap(), f.path.clone().unwrap())).collect();
    assert_eq!(
        paths,
        [(1, "large".to_owned()), (1, "object".to_owned()), (2, "old".to_owned())],
        "{}",
        print(&report)
    );
    assert!(report.of(Class::Affected).all(|f| f.file == s.packs[0].path && f.chunk.is_some()));
    assert_eq!(report.packs.chunks_damaged, 1);
    assert_eq!(report.snapshots[0].paths_affected, 2);
    let report = check_with(&files, &Options { trees: true, ..Options::default() });
    let damaged: Vec<_> = report.tree(2).filter(|i| i.damaged).map(|i| i.path.clone()).collect();
    assert_eq!(damaged, [b"old".to_vec()]);
}

#[test]
fn truncation_and_extension_are_found() {
    let s = sample(1);
    for path in s.vault.files.paths("") {
        let len = s.vault.files.0[&path].len();
        for cut in [0, 1, 8, 63, 64, 1167, 1168, 1232, 4000, len - 1] {
            let mut files = s.vault.files.clone();
            files.0.get_mut(&path).unwrap().truncate(cut.min(len - 1));
            let report = check(&files);
            assert_class(&report, Class::Damaged, &path);
        }
        let mut files = s.vault.files.clone();
        files.0.get_mut(&path).unwrap().push(0);
        assert_class(&check(&files), Class::Damaged, &path);
    }
}

#[test]
fn swapped_packs_are_damaged_and_still_readable() {
    let s = sample(1);
    let mut files = s.vault.files.clone();
    let (a, b) = (files.0[&s.packs[0].path].clone(), files.0[&s.packs[2].path].clone());
    files.0.insert(s.packs[0].path.clone(), b);
    files.0.insert(s.packs[2].path.clone(), a);
    for report in [check(&files), keyless(&files)] {
        assert_class(&report, Class::Damaged, &s.packs[0].path);
        assert_class(&report, Class::Damaged, &s.packs[2].path);
    }
}

#[test]
fn a_missing_old_pack_is_missing_and_a_missing_new_one_incomplete() {
    let s = sample(1);
    for n in [0, 1] {
        let mut files = s.vault.files.clone();
        files.0.remove(&s.packs[n].path);
        for report in [check(&files), keyless(&files)] {
            assert_class(&report, Class::Missing, &s.packs[n].path);
            assert_eq!(report.latest, None);
        }
    }
    for n in [2, 3] {
        let mut files = s.vault.files.clone();
        files.0.remove(&s.packs[n].path);
        for report in [check(&files), keyless(&files)] {
            assert_class(&report, Class::Incomplete, &s.snapshots[1].0);
            assert_eq!(report.latest, Some(1));
            assert!(!report.damage, "{}", print(&report));
        }
    }
}

#[test]
fn a_pack_that_only_older_snapshots_need_is_missing() {
    let mut s = sample(1);
    let empty = dir_leaf(&[]);
    let pack = s.vault.pack(2, &[&empty]);
    let id = s.vault.tree_id(&empty);
    let root = Entry::new("", 2, 1, id.to_vec()).encode();
    let old: Vec<Id> = s.packs.iter().map(|p| p.name).collect();
    s.vault.link(&Link::snapshot(list(false, &[pack.name], &old), root));
    assert!(check(&s.vault.files).is_clean());
    let mut files = s.vault.files.clone();
    files.0.remove(&s.packs[2].path);
    let report = check(&files);
    assert_class(&report, Class::Missing, &s.packs[2].path);
    assert_eq!(report.latest, Some(3));
    assert!(report.findings.iter().any(|f| f.path.as_deref() == Some("new") && f.snapshot == Some(2)));
}

#[test]
fn deleted_chain_files_break_the_chain_but_the_newest() {
    let s = sample(1);
    let mut files = s.vault.files.clone();
    files.0.remove(&s.snapshots[0].0);
    for report in [check(&files), keyless(&files)] {
        assert_class(&report, Class::Chain, &s.snapshots[0].0);
    }
    let mut files = s.vault.files.clone();
    files.0.remove(&s.snapshots[1].0);
    let report = check(&files);
    assert!(report.is_clean(), "{}", print(&report));
    assert_eq!(report.of(Class::Unreferenced).count(), 2);
    let mark = Options { high_water: Some((2, s.snapshots[1].1)), ..Options::default() };
    assert_class(&check_with(&files, &mark), Class::Chain, &s.snapshots[1].0);
    assert!(check_with(&s.vault.files, &mark).is_clean());
}

#[test]
fn header_copies() {
    let mut s = sample(1);
    for path in ["vault.json", "vault.json.bak"] {
        let mut files = s.vault.files.clone();
        files.0.remove(path);
        assert_class(&check(&files), Class::Missing, path);
    }
    let mut files = s.vault.files.clone();
    files.flip("vault.json", 500);
    files.flip("vault.json.bak", 600);
    let report = check(&files);
    assert_class(&report, Class::Damaged, "vault.json");
    assert_class(&report, Class::Damaged, "vault.json.bak");
    assert!(!report.unlocked);

    let newer = s.vault.header(1, &Tweak { version: 2, ..Tweak::default() });
    let mut files = s.vault.files.clone();
    files.0.insert("vault.json".into(), newer.clone());
    files.0.insert("vault.json.bak".into(), newer);
    assert_eq!(check_source(&files, None, &Options::default()).err(), Some(FatalError::Newer(2)));
    let nothing = Mem([("README".to_owned(), Vec::new())].into());
    assert!(matches!(check_source(&nothing, None, &Options::default()), Err(FatalError::NotAVault(_))));

    // A newer generation wins, an older one is no damage.
    let next = s.vault.header(2, &Tweak::default());
    let mut files = s.vault.files.clone();
    files.0.insert("vault.json.bak".into(), next);
    let report = check(&files);
    assert!(report.is_clean() && report.generation == 2, "{}", print(&report));

    // A sound checksum with a mac over something else.
    let other = Tweak { chunk_min: 1, maced: Some("x".into()), ..Tweak::default() };
    let forged = s.vault.header(9, &other);
    let mut files = s.vault.files.clone();
    files.0.insert("vault.json".into(), forged);
    let report = check(&files);
    assert_class(&report, Class::Forged, "vault.json");
    assert_eq!(report.generation, 1);

    for (tweak, rule) in [
        (Tweak { m_kib: 7, ..Tweak::default() }, "HDR-4"),
        (Tweak { m_kib: 4_194_305, ..Tweak::default() }, "HDR-4"),
        (Tweak { extra: ",\n  \"more\": 1".into(), ..Tweak::default() }, "HDR-5"),
        (Tweak { extra: ",\n  \"kem\": \"x-wing\"".into(), ..Tweak::default() }, "HDR-5"),
        (Tweak { extra: " ".into(), ..Tweak::default() }, "HDR-5"),
    ] {
        let bad = s.vault.header(9, &tweak);
        let mut files = s.vault.files.clone();
        files.0.insert("vault.json".into(), bad);
        let report = check(&files);
        assert_class(&report, Class::Malformed, "vault.json");
        assert!(report.of(Class::Malformed).all(|f| f.rule == rule), "{}", print(&report));
    }
}

#[test]
fn foreign_names_are_told_and_harmless() {
    let s = sample(1);
    let mut files = s.vault.files.clone();
    for name in ["notes.txt", "packs/zz/x", "packs/ab/.tmp", "snapshots/tmp", "live/journal"] {
        files.0.insert(name.into(), b"x".to_vec());
    }
    let report = check(&files);
    assert!(report.is_clean(), "{}", print(&report));
    assert_eq!(report.of(Class::Foreign).count(), 4);
}

#[test]
fn removal_and_replacement() {
    let mut s = sample(1);
    let pred = [0; 32];
    let own = list(true, &[s.packs[0].name, s.packs[1].name], &[]);
    // Snapshot 1 goes; what 2 needs of its packs moves into two new ones.
    let (a, b, c) = (noise(1, 300_000), vec![7u8; 200_000], b"short".to_vec());
    let data = s.vault.pack(1, &[&c, &a, &b]);
    let sub = {
        let ic = s.vault.data_id(&c);
        let mut linked = Entry::new("hard-b", 1, 20, extents(5, &[extent(0, 5, &ic, 0)]));
        linked.nlink = 2;
        dir_leaf(&[linked, Entry::new("deep", 1, 22, inline(10, b"deep"))])
    };
    let tree = s.vault.pack(2, &[&sub]);
    let (old, new) = ([s.packs[0].name, s.packs[1].name], [data.name, tree.name]);
    s.vault.link(&Link::removal(
        list(false, &new, &old),
        vec![removed(1, s.snapshots[0].1, pred, &own)],
        old.to_vec(),
        new.to_vec(),
    ));
    let before = check(&s.vault.files);
    assert!(before.is_clean(), "{}", print(&before));
    assert_eq!(before.of(Class::Unreferenced).count(), 3, "{}", print(&before));

    let mut files = s.vault.files.clone();
    for path in [&s.packs[0].path, &s.packs[1].path, &s.snapshots[0].0] {
        files.0.remove(path);
    }
    for report in [check(&files), keyless(&files)] {
        assert!(report.is_clean() && report.findings.is_empty(), "{}", print(&report));
        assert_eq!(report.snapshots.len(), 1);
        assert_eq!(report.snapshots[0].packs, 4);
    }
    files.0.remove(&tree.path);
    assert_class(&check(&files), Class::Missing, &tree.path);
}

#[test]
fn forged_chain_files() {
    let s = sample(1);
    let root = Entry::new("", 2, 1, vec![1; 32]).encode();
    let next = Link::snapshot(list(false, &[], &[]), root);
    let with = |change: fn(&mut Link)| {
        let mut s = sample(1);
        let mut link = next.clone();
        change(&mut link);
        let (path, _) = s.vault.link(&link);
        (path, check(&s.vault.files))
    };
    let (path, report) = with(|l| l.foreign_key = true);
    assert_class(&report, Class::Forged, &path);
    assert_eq!(report.latest, Some(2));
    let (path, report) = with(|l| (l.kind, l.root, l.signer) = (2, None, 1));
    assert_class(&report, Class::Malformed, &path);
    let (path, report) = with(|l| l.retired = vec![[1; 32]]);
    assert_class(&report, Class::Malformed, &path);
    let (_, report) = with(|l| l.predecessor = Some([7; 32]));
    assert!(report.has(Class::Chain), "{}", print(&report));
    let (_, report) = with(|l| l.sequence = Some(5));
    assert!(report.findings.iter().any(|f| f.rule == "SNAP-3"), "{}", print(&report));
    let (_, report) = with(|l| l.sequence = Some(2));
    assert!(report.findings.iter().any(|f| f.rule == "SNAP-1"), "{}", print(&report));
    let (path, report) = with(|l| l.list = list(false, &[], &[[5; 32]]));
    assert_class(&report, Class::Malformed, &path);
    // A proper chain file, renamed to another sequence.
    let mut files = s.vault.files.clone();
    let bytes = files.0.remove(&s.snapshots[1].0).unwrap();
    let path = format!("snapshots/0000000003-{}", hex(&s.snapshots[1].1));
    files.0.insert(path.clone(), bytes);
    assert_class(&check(&files), Class::Malformed, &path);
}

#[test]
fn packs_with_wrong_insides() {
    let mut v = Vault::new(1);
    let dir = dir_leaf(&[]);
    let id = v.tree_id(&dir);
    let root = Entry::new("", 2, 1, id.to_vec()).encode();
    let mut try_pack = |chunks: &[(Id, &[u8])], kind: u8, tweak: PackTweak| {
        let mut fresh = Vault::new(1);
        let bytes = v.pack_bytes(kind, chunks, &tweak);
        let pack = fresh.put_pack(bytes);
        fresh.link(&Link::snapshot(list(true, &[pack.name], &[]), root.clone()));
        (pack.path, check(&fresh.files))
    };
    let (_, report) = try_pack(&[(id, &dir)], 2, PackTweak::default());
    assert!(report.is_clean() && report.findings.is_empty(), "{}", print(&report));
    let (path, report) = try_pack(&[([3; 32], &dir), (id, &dir)], 2, PackTweak::default());
    assert_class(&report, Class::Damaged, &path);
    let (path, report) = try_pack(&[(id, &dir)], 2, PackTweak { bad_padding: true, ..PackTweak::default() });
    assert_class(&report, Class::Malformed, &path);
    let (_, report) = try_pack(&[(id, &dir)], 1, PackTweak::default());
    assert!(report.has(Class::Missing), "a tree object in a data pack: {}", print(&report));
    let (_, report) = try_pack(&[(id, &dir)], 2, PackTweak { length: 4097, ..PackTweak::default() });
    assert!(report.is_clean() && report.of(Class::Note).any(|f| f.rule == "PACK-8"));
    let (_, report) =
        try_pack(&[(id, &dir)], 2, PackTweak { first_frame: 0xffff_ffff, ..PackTweak::default() });
    assert!(report.is_clean());
}

#[test]
fn trees_that_break_rules() {
    // A vault whose root directory is objects[0]; the others may be named by it.
    let check_tree = |objects: &dyn Fn(&Vault) -> Vec<Vec<u8>>| {
        let mut v = Vault::new(1);
        let objects = objects(&v);
        let chunk = vec![1u8; 100];
        let data = v.pack(1, &[&chunk]);
        let tree = v.pack(2, &objects.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let id = v.tree_id(&objects[0]);
        let root = Entry::new("", 2, 1, id.to_vec()).encode();
        v.link(&Link::snapshot(list(true, &[data.name, tree.name], &[]), root));
        check(&v.files)
    };
    let rules = |report: &Report| report.findings.iter().map(|f| f.rule).collect::<Vec<_>>();
    let chunk = |v: &Vault| v.data_id(&[1u8; 100]);

    let report = check_tree(&|v| {
        vec![dir_leaf(&[Entry::new("f", 1, 2, extents(90, &[extent(0, 90, &chunk(v), 11)]))])]
    });
    assert_eq!(rules(&report), ["TREE-4"], "{}", print(&report));
    assert_eq!(report.findings[0].path.as_deref(), Some("f"));

    let report =
        check_tree(&|_| vec![dir_leaf(&[Entry::new("f", 1, 2, extents(9, &[extent(0, 9, &[9; 32], 0)]))])]);
    assert!(report.has(Class::Missing));

    let report = check_tree(&|v| {
        let leaf = extent_leaf(0, &[extent(0, 90, &chunk(v), 0)]);
        vec![dir_leaf(&[Entry::new("f", 1, 2, object(89, &v.tree_id(&leaf)))]), leaf]
    });
    assert_eq!(rules(&report), ["TREE-4"]);

    let report = check_tree(&|v| {
        let (a, b) =
            (extent_leaf(0, &[extent(0, 90, &chunk(v), 0)]), extent_leaf(80, &[extent(0, 9, &chunk(v), 0)]));
        let index = extent_index(1, &[(0, v.tree_id(&a)), (80, v.tree_id(&b))]);
        vec![dir_leaf(&[Entry::new("f", 1, 2, object(100, &v.tree_id(&index)))]), index, a, b]
    });
    assert_eq!(rules(&report), ["TREE-4"]);

    let report = check_tree(&|v| {
        let leaf = extent_leaf(0, &[extent(0, 90, &chunk(v), 0)]);
        let index = extent_index(2, &[(0, v.tree_id(&leaf))]);
        vec![dir_leaf(&[Entry::new("f", 1, 2, object(100, &v.tree_id(&index)))]), index, leaf]
    });
    assert_eq!(rules(&report), ["TREE-5"]);

    // Names outside of the range that the index gives them; a wrong level; an object of the wrong kind.
    let leaves =
        || (dir_leaf(&[Entry::new("a", 4, 2, vec![]), Entry::new("m", 4, 3, vec![])]), dir_leaf(&[]));
    let report = check_tree(&|v| {
        let (a, b) = leaves();
        vec![dir_index(1, &[("a", v.tree_id(&a)), ("k", v.tree_id(&b))]), a, b]
    });
    assert_eq!(rules(&report), ["TREE-2"]);
    let report = check_tree(&|v| {
        let (a, _) = leaves();
        vec![dir_index(2, &[("a", v.tree_id(&a))]), a]
    });
    assert_eq!(rules(&report), ["TREE-5"]);
    let report = check_tree(&|v| vec![extent_leaf(0, &[extent(0, 90, &chunk(v), 0)])]);
    assert!(report.damage);

    let report = check_tree(&|_| {
        let mut a = Entry::new("a", 1, 2, inline(1, b"a"));
        a.nlink = 2;
        let mut b = a.clone();
        (b.name, b.mode) = (b"b".to_vec(), 0o600);
        vec![dir_leaf(&[a, b])]
    });
    assert_eq!(rules(&report), ["TREE-7"]);
}

#[test]
fn deep_trees_and_shared_directories() {
    let build = |depth: u64| {
        let mut v = Vault::new(1);
        let mut objects = vec![dir_leaf(&[])];
        for n in 0..depth {
            let below = v.tree_id(&objects[n as usize]);
            // Each directory stands under two names: a walk without a memory would take 2^depth steps.
            let (mut a, b) = (Entry::new("a", 2, 1, below.to_vec()), Entry::new("b", 2, 1, below.to_vec()));
            a.mode = 0o700 + n % 8;
            objects.push(dir_leaf(&[a, b]));
        }
        let id = v.tree_id(&objects[depth as usize]);
        let pack = v.pack(2, &objects.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let root = Entry::new("", 2, 1, id.to_vec()).encode();
        v.link(&Link::snapshot(list(true, &[pack.name], &[]), root));
        check_with(&v.files, &Options { trees: true, ..Options::default() })
    };
    let report = build(4096);
    assert!(report.is_clean(), "{}", print(&report));
    let report = build(4097);
    assert!(report.findings.iter().any(|f| f.rule == "TREE-5"));
}

#[test]
fn a_chunk_in_an_unnamed_pack_is_told() {
    let mut v = Vault::new(1);
    let dir = dir_leaf(&[]);
    let (named, unnamed) = (v.pack(1, &[b"x"]), v.pack(2, &[&dir]));
    let id = v.tree_id(&dir);
    v.link(&Link::snapshot(list(true, &[named.name], &[]), Entry::new("", 2, 1, id.to_vec()).encode()));
    let report = check(&v.files);
    assert_class(&report, Class::Malformed, &unnamed.path);
    assert_class(&report, Class::Unreferenced, &unnamed.path);
}

#[test]
fn a_second_copy_of_a_chunk_saves_the_files() {
    let mut s = sample(1);
    let a = noise(1, 300_000);
    let copy = s.vault.pack(1, &[&a]);
    let empty = s.vault.tree_id(&dir_leaf(&[]));
    let tree = s.vault.pack(2, &[&dir_leaf(&[])]);
    let root = Entry::new("", 2, 1, empty.to_vec()).encode();
    s.vault.link(&Link::snapshot(list(false, &[copy.name, tree.name], &[]), root));
    let mut files = s.vault.files.clone();
    files.flip(&s.packs[0].path, 1200);
    // Snapshots 1 and 2 don't name the copy: the files are affected there.
    assert_eq!(check(&files).of(Class::Affected).count(), 3);
}

#[test]
fn garbage_never_panics() {
    let s = sample(1);
    for round in 0..40u8 {
        let mut files = s.vault.files.clone();
        for (n, (_, bytes)) in files.0.iter_mut().enumerate() {
            let seed = [round, n as u8];
            let mut noise = [0u8; 8];
            blake3::Hasher::new().update(&seed).finalize_xof().fill(&mut noise);
            if noise[0] < 100 {
                let at = u32::from_le_bytes(noise[1..5].try_into().unwrap()) as usize % bytes.len();
                bytes[at] = noise[5];
                if noise[6] < 60 {
                    bytes.truncate(at);
                }
            }
        }
        let changed = files.0 != s.vault.files.0;
        match check_source(&files, Some(Unlock::Root(ROOT)), &Options { trees: true, ..Options::default() }) {
            Ok(report) => assert_eq!(report.is_clean(), !changed, "round {round}: {}", print(&report)),
            Err(_) => assert!(changed),
        }
    }
}
