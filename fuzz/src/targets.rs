//! The bodies of the targets. Each takes hostile bytes and panics if a decoder of the engine
//!
//! - accepts what its encoder would not write, or loses something between decoding and encoding,
//! - or disagrees with `fsck.strongroom`, which was written from docs/format.md alone.
//!
//! A panic, a hang and an allocation beyond what the input justifies are found by the fuzzer itself: `fuzz/run` limits
//! time and address space.

use std::path::PathBuf;

use fsck_strongroom as fsck;
use fsck_strongroom::chain::ChainKind;
use strongroom::crypto::RecoveryKey;
use strongroom::disk::SimDisk;
use strongroom::env::Time;
use strongroom::format::chain::{self, PublicPart, SealedPart};
use strongroom::format::{
    BLOCK_LEN, ChainFile, Codec, Footer, Header, Origin, PACK_HEADER_LEN, PackHeader, SnapshotId, Trailer,
    TreeObject, VaultId, fuzz, pack,
};
use strongroom::mount::control::{Answer, Request};
use strongroom::mount::options::{MountOptions, parse_duration};
use strongroom::mount::{mountinfo, status};
use strongroom::snapshot::select::{Candidate, select};
use strongroom::store::highwater::{HighWater, HighWaterStore};
use strongroom::store::{self, codec};

/// A target's name, which is that of its file in `fuzz_targets/`, and its body.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const ALL: [Target; 19] = [
    ("header", header),
    ("pack_header", pack_header),
    ("footer", footer),
    ("trailer", trailer),
    ("tree", tree),
    ("chain", chain_file),
    ("sealed_part", sealed_part),
    ("recovery_key", recovery_key),
    ("codec", codec_body),
    ("names", names),
    ("rows", strongroom::store::fuzz::fuzz_rows),
    ("journal", strongroom::store::fuzz::fuzz_journal),
    ("block_log", strongroom::store::fuzz::fuzz_block_log),
    ("acl", strongroom::fs::fuzz_acl),
    ("highwater", highwater),
    ("control", control),
    ("mount_options", mount_options),
    ("mountinfo", mountinfo_lines),
    ("selection", selection),
];

/// Both decoders accept, or both refuse.
#[track_caller]
fn agree<A, B, E: std::fmt::Debug, F: std::fmt::Debug>(engine: Result<A, E>, checker: Result<B, F>) {
    match (engine, checker) {
        (Ok(_), Ok(_)) | (Err(_), Err(_)) => {}
        (Ok(_), Err(fault)) => panic!("only the engine accepts it; the checker: {fault:?}"),
        (Err(error), Ok(_)) => panic!("only the checker accepts it; the engine: {error:?}"),
    }
}

/// The vault's header. The checker may refuse what only writers need, so it is compared one way.
pub fn header(data: &[u8]) {
    fuzz::fuzz_header(data);
    let engine = Header::parse(data);
    let checker = fsck::header::parse(data);
    if let Ok(parsed) = &engine {
        let header = checker.as_ref().unwrap_or_else(|e| panic!("only the engine accepts it: {e:?}"));
        assert_eq!(parsed.header.generation, header.generation);
        assert_eq!(parsed.header.vault_id.as_bytes(), &header.vault_id);
        assert_eq!(parsed.header.slots.len(), header.slots.len());
    }
    choice(data);
    // What the chunker was is no concern of a reader: the one thing that the checker does not look at.
    if let (Err(error), Ok(_)) = (&engine, &checker) {
        assert!(error.to_string().contains("chunker"), "only the checker accepts it: {error}");
    }
}

/// Which of two copies of the header counts: the input, cut in two, and beside a sound one.
fn choice(data: &[u8]) {
    let (first, second) = data.split_at(data.len() / 2);
    for (first, second) in [(first, second), (data, data), (data, first)] {
        let disk = SimDisk::new(1);
        disk.raw_write(store::header::HEADER_PATH, first);
        disk.raw_write(store::header::HEADER_BACKUP_PATH, second);
        let sound: Vec<_> = [first, second].iter().filter_map(|copy| Header::parse(copy).ok()).collect();
        match store::header::load(&disk) {
            Ok(loaded) => {
                assert!(sound.contains(&loaded.parsed));
                assert!(sound.iter().all(|copy| copy.header.generation <= loaded.parsed.header.generation));
            }
            Err(_) => assert!(sound.len() != 1, "the sound copy is used"),
        }
    }
}

/// The clear header of a pack.
pub fn pack_header(data: &[u8]) {
    fuzz::fuzz_pack_header(data);
    agree(PackHeader::parse(data), fsck::pack::parse_header(data));
}

/// A footer: where it stands, and its plaintext.
pub fn footer(data: &[u8]) {
    fuzz::fuzz_footer(data);
    let compare = |offset: u64, bytes: &[u8]| {
        agree(Footer::parse(bytes, offset), fsck::pack::parse_footer(bytes, offset));
    };
    if let Some((at, rest)) = data.split_first_chunk::<8>() {
        compare(u64::from_le_bytes(*at), rest);
    }
    compare(PACK_HEADER_LEN as u64, data);
}

/// A trailer's plaintext.
pub fn trailer(data: &[u8]) {
    fuzz::fuzz_trailer(data);
    agree(Trailer::parse(data), fsck::pack::parse_trailer(data));
}

/// A tree object.
pub fn tree(data: &[u8]) {
    fuzz::fuzz_tree(data);
    agree(TreeObject::parse(data), fsck::tree::parse_object(data));
}

/// A chain file, and its public part alone.
pub fn chain_file(data: &[u8]) {
    fuzz::fuzz_chain(data);
    agree(ChainFile::parse(data), fsck::chain::parse(data));
    let kinds = [ChainKind::Snapshot, ChainKind::Removal];
    let checker = kinds.iter().any(|kind| fsck::chain::parse_public(data, *kind).is_ok());
    assert_eq!(PublicPart::parse(data).is_ok(), checker, "engine and checker, of a public part");
}

/// The plaintext of a chain file's sealed part.
pub fn sealed_part(data: &[u8]) {
    fuzz::fuzz_sealed_part(data);
    for (origin, kind) in [(Origin::WorkingTree, ChainKind::Snapshot), (Origin::Removal, ChainKind::Removal)]
    {
        agree(SealedPart::parse(data, origin), fsck::chain::parse_sealed(data, kind));
    }
}

/// A recovery key as it is typed.
pub fn recovery_key(data: &[u8]) {
    strongroom::crypto::recovery::fuzz_recovery_key(data);
    if let Ok(text) = std::str::from_utf8(data) {
        let engine = RecoveryKey::parse(text);
        let checker = fsck::keys::recovery_key(text);
        assert_eq!(engine.is_ok(), checker.is_ok(), "engine and checker");
    }
}

/// A block's body: the codec, three bytes of the block's length, the body.
pub fn codec_body(data: &[u8]) {
    let Some(([first, len @ ..], body)) = data.split_first_chunk::<4>() else { return };
    let codec = [Codec::Raw, Codec::Lz4, Codec::Zstd][usize::from(first % 3)];
    let len = u32::from_le_bytes([len[0], len[1], len[2], 0]) as usize % (BLOCK_LEN + 1);
    let (mut ours, mut theirs) = (vec![0; len], vec![0; len]);
    let engine = codec::decode(codec, body, &mut ours);
    let checker = fsck::pack::Unzip::default().block(codec as u8, body, &mut theirs);
    let good = engine.is_ok();
    agree(engine, checker);
    assert!(!good || ours == theirs, "two readings of one body");
    // What we compress, both read.
    if let Some(block) = body.get(..body.len().min(BLOCK_LEN)).filter(|b| !b.is_empty()) {
        for effort in [strongroom::store::Effort::Fast, strongroom::store::Effort::Thorough] {
            let mut out = Vec::new();
            let codec = codec::encode(block, effort, 3, &mut out);
            assert!(out.len() <= block.len());
            let mut back = vec![0; block.len()];
            assert!(codec::decode(codec, &out, &mut back).is_ok() && back == block);
            back.fill(0);
            let read = fsck::pack::Unzip::default().block(codec as u8, &out, &mut back);
            assert!(read.is_ok() && back == block);
        }
    }
}

/// Names of files in a vault.
pub fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let engine = chain::parse_name(text);
    let checker = fsck::chain::parse_name(text);
    assert_eq!(engine.map(|(seq, id)| (seq, *id.as_bytes())), checker);
    if let Some((seq, id)) = engine {
        assert_eq!(chain::name(seq, &id), text);
    }
    if let Some(name) = pack::parse_pack_path(text) {
        assert_eq!(pack::pack_path(&name), text);
    }
}

/// The high-water mark in the host's state directory.
pub fn highwater(data: &[u8]) {
    const VAULT: VaultId = VaultId([7; 16]);
    let disk = SimDisk::new(1);
    disk.raw_write(&format!("highwater-{}.json", VAULT.to_hex()), data);
    let store = HighWaterStore::new(std::sync::Arc::new(disk), &VAULT);
    if let Ok(mark) = store.load() {
        // A file that is there never passes for a vault that was never seen.
        let mark: HighWater = mark.expect("the file is there");
        store.store(&mark).expect("a disk that works");
        assert_eq!(store.load().expect("what was just written"), Some(mark));
    }
}

/// Messages on the control socket, both ways, and the status file beside it.
pub fn control(data: &[u8]) {
    same_again::<Request>(data);
    same_again::<Answer>(data);
    same_again::<status::Status>(data);
}

fn same_again<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq>(data: &[u8]) {
    if let Ok(message) = serde_json::from_slice::<T>(data) {
        let text = serde_json::to_vec(&message).expect("what was read can be written");
        let again = serde_json::from_slice::<T>(&text).expect("what was written can be read");
        assert!(again == message, "{}", String::from_utf8_lossy(&text));
    }
}

/// `-o` lists and durations.
pub fn mount_options(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(options) = MountOptions::parse(&[text]) {
        let split: Vec<&str> = text.split(',').collect();
        assert!(MountOptions::parse(&split).is_ok_and(|again| again == options), "one list or many");
        let fsname = options.fsname.as_deref().unwrap_or("vault");
        assert!(!fsname.contains(','));
        let list = options.fusermount_list(fsname, true);
        assert_eq!(list.matches("fsname=").count(), 1 + fsname.matches("fsname=").count(), "{list}");
        assert!(options.vault.snapshot.is_none() || options.read_only, "a snapshot is read-only");
    }
    if let Some(duration) = parse_duration(text) {
        assert_eq!(parse_duration(&format!("{}s", duration.as_secs())), Some(duration));
    }
}

/// `/proc/self/mountinfo`: as a whole, and with the input for the name of a mountpoint.
pub fn mountinfo_lines(data: &[u8]) {
    use std::os::unix::ffi::OsStrExt;
    let lines = mountinfo::parse(data);
    assert!(lines.len() <= data.split(|b| *b == b'\n').count());
    let shown: usize = lines.iter().map(|line| line.mountpoint.as_os_str().len()).sum();
    assert!(shown <= data.len());
    if data.contains(&0) {
        return;
    }
    let mut line = b"30 1 0:26 / ".to_vec();
    for &byte in data {
        // The kernel's own escapes (seq_path, show_type).
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => line.extend(format!("\\{byte:03o}").bytes()),
            _ => line.push(byte),
        }
    }
    line.extend(b" rw,nosuid shared:1 - fuse.strongroom vault rw\n");
    let found = mountinfo::parse(&line);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].mountpoint, PathBuf::from(std::ffi::OsStr::from_bytes(data)));
    assert!(found[0].is_ours());
}

/// What people type for a snapshot.
pub fn selection(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let at = |secs| Time { secs, nanos: 5 };
    let candidates = [(3, 0), (4, i64::MAX), (5, 1_795_226_400), (9, i64::MIN)]
        .map(|(seq, secs)| Candidate { seq, id: SnapshotId([seq as u8; 32]), time: at(secs) });
    for zone in [jiff::tz::TimeZone::UTC, jiff::tz::TimeZone::fixed(jiff::tz::offset(-11))] {
        let found = select(text, &candidates, &|seq| seq != 5, at(1_795_226_500), &zone);
        if let Ok(found) = found {
            assert!(candidates.iter().any(|c| c.seq == found.seq));
            assert!(found.incomplete.iter().all(|seq| *seq == 5));
        }
    }
}
