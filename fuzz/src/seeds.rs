//! What the fuzzer starts from: the golden vectors, and samples of what has none.

use std::path::{Path, PathBuf};
use std::{fs, io};

use strongroom::format::fuzz::vector_body;
use strongroom::mount::control::{Answer, Request};
use strongroom::mount::{Failure, status::Status};
use strongroom::store::fuzz::{block_log_seeds, journal_seeds, row_seeds};
use strongroom::store::highwater::HighWater;

/// The vectors of the repository.
#[must_use]
pub fn vectors_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors")
}

/// Returns all seeds of a target.
///
/// # Errors
/// When the golden vectors can't be read.
pub fn of(target: &str) -> io::Result<Vec<Vec<u8>>> {
    let strings = |list: &[&str]| list.iter().map(|text| text.as_bytes().to_vec()).collect();
    Ok(match target {
        "codec" => codec_seeds()?,
        "names" => {
            let hex = "ab".repeat(32);
            vec![
                format!("0000000007-{hex}").into_bytes(),
                format!("packs/ab/{hex}").into_bytes(),
                format!("packs/ac/{hex}").into_bytes(),
            ]
        }
        "rows" => row_seeds(),
        "journal" => journal_seeds(),
        "block_log" => block_log_seeds(),
        "acl" => acl_seeds(),
        "highwater" => vec![highwater_seed()?],
        "control" => control_seeds()?,
        "mount_options" => strings(&[
            "ro,allow_other,nodev,nosuid,noexec,noatime,fsname=vault,x-systemd.automount,_netdev",
            "passfile=/root/enc.txt,keyfile=/k,credential=c,snapshot=latest,idle=1h30m,snapshot_every=2d",
            "dirty_mib=64,cache_mib=8,log=journal,nonempty,accept_rollback,subtype=strongroom,comment=",
            "1h 30min",
        ]),
        "mountinfo" => strings(&[
            "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n",
            "21 1 0:44 / /decrypted rw,nodev - fuse.strongroom /encrypted rw,user_id=0\n",
        ]),
        "selection" => strings(&[
            "latest",
            "5",
            "0505050505",
            "2 days ago",
            "yesterday",
            "2026-11-20",
            "2026-11-20 02:00",
            "2026-11-20T02:00:00.5Z",
            "2026-11-20 02:00:00+01:00",
        ]),
        kind => vectors(&kind.replace('_', "-"))?,
    })
}

/// The bodies of all vectors of a kind; a footer with the place where it stands before it, as its target takes it.
fn vectors(kind: &str) -> io::Result<Vec<Vec<u8>>> {
    let mut seeds = Vec::new();
    for entry in fs::read_dir(vectors_dir())? {
        let bytes = fs::read(entry?.path())?;
        let body = vector_body(&bytes);
        let head = String::from_utf8_lossy(&bytes[..bytes.len() - body.len()]).into_owned();
        let value = |key: &str| head.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
        if value("kind") != Some(kind) {
            continue;
        }
        let mut seed = Vec::new();
        if let Some(Ok(offset)) = value("footer-offset").map(str::parse::<u64>) {
            seed.extend(offset.to_le_bytes());
        }
        seed.extend(body);
        seeds.push(seed);
    }
    Ok(seeds)
}

fn codec_seeds() -> io::Result<Vec<Vec<u8>>> {
    let block = b"strongroom ".repeat(40);
    let len = (block.len() as u32).to_le_bytes();
    let seed = |codec: u8, body: &[u8]| [&[codec, len[0], len[1], len[2]], body].concat();
    let zstd = zstd::bulk::compress(&block, 3)?;
    let lz4 = lz4_flex::block::compress(&block);
    // A skippable frame of no bytes: the format has none.
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0][..], &zstd].concat();
    Ok(vec![
        seed(0, &block),
        seed(1, &lz4),
        seed(2, &zstd),
        seed(2, &skippable),
        seed(2, &[&zstd[..], &zstd].concat()),
    ])
}

fn acl_seeds() -> Vec<Vec<u8>> {
    let list = |entries: &[(u16, u16, u32)]| {
        let mut out = 2u32.to_le_bytes().to_vec();
        for (tag, perm, id) in entries {
            out.extend(tag.to_le_bytes());
            out.extend(perm.to_le_bytes());
            out.extend(id.to_le_bytes());
        }
        out
    };
    let none = u32::MAX;
    vec![
        list(&[(1, 6, none), (4, 4, none), (0x20, 0, none)]),
        list(&[
            (1, 7, none),
            (2, 5, 7),
            (2, 4, 9),
            (4, 4, none),
            (8, 7, 3),
            (0x10, 7, none),
            (0x20, 1, none),
        ]),
    ]
}

fn highwater_seed() -> io::Result<Vec<u8>> {
    let mark = HighWater {
        vault_id: "07".repeat(16),
        path: "/srv/vault".into(),
        header_generation: 3,
        seq: 9,
        id: "ab".repeat(32),
        live_generation: 77,
        live_dirty: true,
    };
    Ok(serde_json::to_vec_pretty(&mark)?)
}

fn control_seeds() -> io::Result<Vec<Vec<u8>>> {
    let requests = [
        Request::Ping,
        Request::Status,
        Request::SnapshotCreate { tags: vec!["nightly".into()], force: true },
        Request::SnapshotDelete { snapshots: vec!["3".into(), "latest".into()], force: false },
        Request::Gc { dry_run: true, dead_percent: None },
        Request::Sync,
        Request::Unmount { lazy: true },
    ];
    let answer = |ok, error, progress: Option<&str>| Answer {
        ok,
        result: serde_json::json!({"seq": 3, "names": ["a", null, 1.455_555_555_555_555_5e82]}),
        error,
        progress: progress.map(Into::into),
    };
    let answers = [
        answer(Some(true), None, None),
        answer(Some(false), Some(Failure::new(16, "another process holds it")), None),
        answer(None, None, Some("working")),
    ];
    let mut seeds = Vec::new();
    for request in &requests {
        seeds.push(serde_json::to_vec(request)?);
    }
    for answer in &answers {
        seeds.push(serde_json::to_vec(answer)?);
    }
    seeds.push(serde_json::to_vec(&Status::starting(Path::new("/decrypted"), false, 1_795_226_400))?);
    Ok(seeds)
}
