#![allow(clippy::unwrap_used)]
use super::super::error::FetchError;
use super::*;
use crate::format::samples;

fn version(bytes: Vec<u8>, age: usize) -> Version {
    Version { id: age.to_string(), bytes, latest: age == 0, age }
}

/// A copy of which these versions were read.
fn copy(list: Vec<Version>) -> CopyRead {
    Ok(Versions { list, left_out: 0 })
}

fn header(generation: u64) -> Vec<u8> {
    let mut header = samples::header();
    header.generation = generation;
    header.encode(|_| [7; 32])
}

fn refused(kind: ErrorKind) -> CopyRead {
    Err(RemoteError::new(kind, "refused"))
}

/// One copy may be archived, or under another's key: then the other one counts, and it is said.
#[test]
fn a_copy_that_can_not_be_read_leaves_the_other_one() {
    let good = || copy(vec![version(header(3), 0)]);
    for kind in [ErrorKind::Archived, ErrorKind::Denied, ErrorKind::Misconfigured, ErrorKind::Unsupported] {
        for (copies, path) in
            [([refused(kind), good()], "vault.json"), ([good(), refused(kind)], "vault.json.bak")]
        {
            let found = RemoteHeader::choose(copies).unwrap();
            assert_eq!(found.header().generation, 3);
            let warning = found.loaded.warning.unwrap();
            assert!(warning.starts_with(&format!("{path} can't be read there")), "{warning}");
        }
        // Nothing else is there, or nothing that will do: what is wrong is said.
        let others: [fn() -> CopyRead; 3] = [
            || refused(ErrorKind::NotFound),
            || copy(vec![version(b"{}".to_vec(), 0)]),
            || refused(ErrorKind::Archived),
        ];
        for other in others {
            let error = RemoteHeader::choose([refused(kind), other()]).unwrap_err();
            assert!(matches!(&error, FetchError::Remote(e) if e.kind == kind), "{error}");
        }
        let error = RemoteHeader::choose([other_trouble(), good()]).unwrap_err();
        assert!(matches!(&error, FetchError::Remote(e) if e.kind == ErrorKind::Timeout), "{error}");
    }
}

fn other_trouble() -> CopyRead {
    refused(ErrorKind::Timeout)
}

/// How old a header is is known by the oldest version that has its bytes; what is here is older than all that is there.
#[test]
fn headers_know_how_old_they_are() {
    let first = copy(vec![version(header(9), 2), version(header(8), 1), version(header(7), 0)]);
    let rubbish = || version(b"{}".to_vec(), 8);
    let second = copy(vec![rubbish(), version(header(9), 1), rubbish(), version(header(7), 5)]);
    let found = RemoteHeader::choose([first, second]).unwrap();
    let ages = |list: &RemoteHeader| -> Vec<(u64, usize)> {
        list.candidates.iter().map(|one| (one.parsed.header.generation, one.age)).collect()
    };
    assert_eq!(ages(&found), [(9, 1), (8, 1), (7, 0)]);
    let ours = Header::parse(&header(8)).unwrap();
    assert_eq!(ages(&found.beside(&ours)), [(9, 2), (8, 0), (7, 1)]);
}
