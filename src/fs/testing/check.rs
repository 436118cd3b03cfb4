//! Rules that the rows of the working tree obey at any time, and more that hold when nothing is open.

use std::collections::{BTreeMap, BTreeSet};

use crate::format::tree::FileType;
use crate::store::engine::Engine;
use crate::store::live::{Table, Value};
use crate::store::packs::ChunkSource;
use crate::store::records::{
    DirentRow, ExtentRow, InodeRow, ROOT_INO, decode_u64, parse_dirent_key, parse_extent_key,
    parse_inode_key, parse_links_key, parse_xattr_key, settings,
};

fn rows(engine: &Engine, table: Table) -> Vec<(Vec<u8>, Value)> {
    let mut all: Vec<(Vec<u8>, Value)> = Vec::new();
    loop {
        let mut from = all.last().map_or(Vec::new(), |(key, _)| key.clone());
        if !all.is_empty() {
            from.push(0);
        }
        let page = engine.live.range(table, &from, None, 1000).unwrap();
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}

/// Checks all rows. Orphans are allowed if `open` says that files may be open.
pub(crate) fn check_rows(engine: &Engine, open: bool) {
    let inodes: BTreeMap<u64, InodeRow> = rows(engine, Table::Inodes)
        .iter()
        .map(|(key, value)| (parse_inode_key(key).unwrap(), InodeRow::decode(value).unwrap()))
        .collect();
    let next_ino =
        engine.live.get(Table::Settings, settings::NEXT_INO).unwrap().map(|v| decode_u64(&v).unwrap());
    let mut holders: BTreeMap<u64, Vec<(u64, Vec<u8>)>> = BTreeMap::new();
    let mut subdirs: BTreeMap<u64, u32> = BTreeMap::new();
    for (key, value) in rows(engine, Table::Dirents) {
        let (dir, name) = parse_dirent_key(&key).unwrap();
        let dirent = DirentRow::decode(&value).unwrap();
        let row = inodes
            .get(&dirent.ino)
            .unwrap_or_else(|| panic!("a name for {}, which does not exist", dirent.ino));
        assert_eq!(row.kind, dirent.kind);
        assert_eq!(inodes.get(&dir).map(|row| row.kind), Some(FileType::Dir), "a name in {dir}");
        assert!(next_ino.is_some_and(|next| dirent.ino < next), "{} was never handed out", dirent.ino);
        holders.entry(dirent.ino).or_default().push((dir, name.to_vec()));
        if dirent.kind == FileType::Dir {
            *subdirs.entry(dir).or_default() += 1;
        }
    }
    let orphans: BTreeSet<u64> =
        rows(engine, Table::Orphans).iter().map(|(key, _)| parse_inode_key(key).unwrap()).collect();
    assert!(open || orphans.is_empty(), "orphans are left: {orphans:?}");
    let mut links: BTreeMap<u64, Vec<(u64, Vec<u8>)>> = BTreeMap::new();
    for (key, _) in rows(engine, Table::Links) {
        let (ino, dir, name) = parse_links_key(&key).unwrap();
        links.entry(ino).or_default().push((dir, name.to_vec()));
    }
    for (ino, row) in &inodes {
        let names = holders.remove(ino).unwrap_or_default();
        if *ino == ROOT_INO {
            assert!(names.is_empty(), "the root has a name");
        }
        match row.kind {
            FileType::Dir => {
                assert_eq!(row.nlink, 2 + subdirs.get(ino).copied().unwrap_or(0), "links of directory {ino}");
                if *ino != ROOT_INO {
                    assert_eq!(
                        names.iter().map(|name| name.0).collect::<Vec<_>>(),
                        [row.parent],
                        "directory {ino}"
                    );
                }
            }
            _ => {
                assert_eq!(row.nlink as usize, names.len(), "links of {ino}");
                assert_eq!(row.nlink == 0, orphans.contains(ino), "{ino} is an orphan or not");
                check_links(*ino, row, &names, links.remove(ino).unwrap_or_default());
            }
        }
    }
    assert!(links.is_empty(), "back references of inodes that do not exist: {links:?}");
    let mut with_xattrs: BTreeSet<u64> = BTreeSet::new();
    for (key, _) in rows(engine, Table::Xattrs) {
        with_xattrs.insert(parse_xattr_key(&key).unwrap().0);
    }
    let flagged: BTreeSet<u64> =
        inodes.iter().filter(|(_, row)| row.has_xattrs).map(|(ino, _)| *ino).collect();
    assert_eq!(flagged, with_xattrs, "inodes with attributes");
    for table in [Table::DirtyDirs, Table::Trees] {
        for (key, _) in rows(engine, table) {
            let dir = parse_inode_key(&key).unwrap();
            assert_eq!(inodes.get(&dir).map(|row| row.kind), Some(FileType::Dir), "{table:?} of {dir}");
        }
    }
    check_extents(engine, &inodes, &orphans);
}

/// One back reference for each name of a hard-linked inode; one may have no name.
fn check_links(ino: u64, row: &InodeRow, names: &[(u64, Vec<u8>)], links: Vec<(u64, Vec<u8>)>) {
    if row.nlink <= 1 {
        assert!(links.is_empty(), "back references of {ino}, which has {} names", row.nlink);
        if let Some((dir, _)) = names.first() {
            assert_eq!(row.parent, *dir, "parent of {ino}");
        }
        return;
    }
    let mut left = names.to_vec();
    for link in links.iter().filter(|link| !link.1.is_empty()) {
        let at = left.iter().position(|name| name == link);
        left.remove(at.unwrap_or_else(|| panic!("{ino} has no name {link:?}")));
    }
    for marker in links.iter().filter(|link| link.1.is_empty()) {
        let at = left.iter().position(|name| name.0 == marker.0);
        left.remove(at.unwrap_or_else(|| panic!("{ino} has no other name in {}", marker.0)));
    }
    assert!(left.is_empty(), "{ino} has names without back references: {left:?}");
}

fn check_extents(engine: &Engine, inodes: &BTreeMap<u64, InodeRow>, orphans: &BTreeSet<u64>) {
    let mut blocks: BTreeMap<u64, u64> = BTreeMap::new();
    let mut before = (0, 0);
    for (key, value) in rows(engine, Table::Extents) {
        let (ino, off) = parse_extent_key(&key).unwrap();
        let extent = ExtentRow::decode(&value).unwrap();
        let row = inodes.get(&ino).unwrap_or_else(|| panic!("extents of {ino}, which does not exist"));
        if orphans.contains(&ino) {
            continue;
        }
        assert_eq!(row.kind, FileType::File, "extents of {ino}");
        assert!(before.0 != ino || before.1 <= off, "extents of {ino} overlap at {off}");
        let end = off + extent.len();
        assert!(end <= row.size, "an extent of {ino} ends at {end}, its size is {}", row.size);
        before = (ino, end);
        *blocks.entry(ino).or_default() += extent.len();
        if let ExtentRow::Chunk { len, chunk, chunk_offset } = extent {
            let mut buf = vec![0; len as usize];
            engine
                .packs
                .read_at(&chunk, chunk_offset, &mut buf)
                .unwrap_or_else(|error| panic!("{ino}: {error}"));
        }
    }
    for (ino, row) in inodes.iter().filter(|(ino, _)| !orphans.contains(ino)) {
        assert_eq!(row.blocks, blocks.get(ino).copied().unwrap_or(0), "allocated bytes of {ino}");
    }
}
