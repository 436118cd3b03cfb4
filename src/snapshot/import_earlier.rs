//! What earlier imports stored: a file that has not changed since is not read again.
//!
//! A file is taken for the one that was stored if it has the same path, inode number, length, and times of its last change
//! and of the last change of its attributes. These are what borg and restic compare by default. Of these the last time is
//! what counts: a kernel sets it with each change of a file's bytes, and no program can set it to another one. Two things
//! are left:
//!
//! - A clock that ticks slowly gives two changes the same time. So a file that changed a moment before it was examined
//!   ([`is_settled`]), or by its time is yet to change, gets an inode number in the snapshot that it has at no other time,
//!   and is read again by the next import.
//! - Who writes into a page of a shared mapping that is already dirty changes bytes without a new time. The kernel does
//!   not tell; every program that compares times misses it until the page is next written to after a writeback.
//!
//! Only snapshots of this host that the owner signed count, and their trees are read with all the checks of a restore.
//! Content is taken over chunk by chunk, each of which must be one that new data would be left out for if it were put again
//! ([`Packs::contains`]): where one is not the file is read.

use std::time::Duration;

use rustix::fs::Stat;

use crate::env::Time;
use crate::format::{ChunkId, Content, Entry, FileType, Origin, Signer};
use crate::store::engine::Engine;
use crate::store::error::Result;
use crate::store::packs::Packs;

use super::chain::{Chain, open_sealed};
use super::import_numbers::is_of_source;
use super::import_stat::{ctime_of, entry_of};
use super::tree::TreeReader;
use super::write::ContentWriter;

/// Imports that are looked into for a source, newest first: each source may be imported by a job of its own.
const IMPORTS_MAX: usize = 64;
/// What one directory was at different times, newest first: an import of `/srv/www` shows of `/srv` nothing else, and comes
/// between those of `/srv`.
pub(super) type Dirs = Vec<ChunkId>;
/// How many of these are compared with ...
const DIRS_MAX: usize = 4;
/// ... and in how many imports they are looked for: where nothing changes, all have the same.
const DIRS_EXAMINED: usize = 16;
/// No shorter than a tick of a clock that filesystems take their times from (HZ is at least 100) ...
const TICK: Duration = Duration::from_millis(20);
/// ... and of those whose times have no fractions of a second (FAT: two seconds).
const COARSE_TICK: Duration = Duration::from_secs(2);

/// Earlier imports of this host.
#[derive(Debug)]
pub(super) struct Earlier<'a> {
    packs: &'a Packs,
    tree: TreeReader<'a>,
    /// Newest first.
    roots: Vec<Entry>,
}

impl<'a> Earlier<'a> {
    /// Looks for the imports of `host`. One that can't be read is none.
    pub(super) fn new(engine: &'a Engine, chain: &Chain, host: &str) -> Self {
        let (disk, keys) = (engine.ctx.disk.as_ref(), &engine.ctx.keys);
        let imports = chain.snapshots().rev().filter(|info| info.origin == Origin::Import);
        // A host that may only add says nothing about what it did not send.
        let own = imports.filter(|info| info.signer == Signer::Owner);
        let roots = own.filter_map(|info| match open_sealed(disk, keys, info) {
            Ok(sealed) if sealed.host == host => sealed.root.map(|root| root.entry),
            Ok(_) => None,
            Err(error) => {
                tracing::debug!(seq = info.seq, %error, "an earlier import can't be read");
                None
            }
        });
        let roots = roots.take(IMPORTS_MAX).collect();
        Earlier { packs: &engine.packs, tree: TreeReader::new(engine.packs.as_ref()), roots }
    }

    /// The directory at `path` in the newest imports that have it.
    pub(super) fn source(&self, path: &[Vec<u8>]) -> Dirs {
        let path = path.join(&b'/');
        dirs(self.roots.iter().filter_map(|root| self.tree.resolve(root, &path).ok()))
    }

    /// What stood there under a name, newest first.
    fn entries(&self, dirs: &Dirs, name: &[u8]) -> impl Iterator<Item = Entry> {
        // What can't be read is not known.
        dirs.iter().filter_map(move |dir| self.tree.lookup(dir, name).ok().flatten())
    }

    /// The directory that stood there under a name.
    pub(super) fn directory(&self, above: &Dirs, name: &[u8]) -> Dirs {
        dirs(self.entries(above, name))
    }

    /// Whether a file will not have to be read, as far as `stat` shows. For those who only want to read ahead.
    pub(super) fn is_likely(&self, dirs: &Dirs, name: &[u8], stat: &Stat) -> bool {
        self.entries(dirs, name)
            .any(|before| is_same(&before, &entry_of(Vec::new(), FileType::File, before.ino, stat, false)))
    }

    /// The content of a file that is what it was; `None`: it has to be read.
    ///
    /// # Errors
    /// When the vault fails.
    pub(super) fn content(&self, dirs: &Dirs, now: &Entry) -> Result<Option<Content>> {
        let Some(before) = self.entries(dirs, &now.name).find(|before| is_same(before, now)) else {
            return Ok(None);
        };
        if !matches!(before.content, Content::Extents(_) | Content::ExtentTree(_)) {
            return Ok(Some(before.content));
        }
        // Written as when it is read: the objects are there, or come back.
        let mut writer = ContentWriter::new(self.packs);
        let Ok(mut extents) = self.tree.extents(&before.content, before.size, 0) else { return Ok(None) };
        loop {
            match extents.next_extent() {
                Ok(Some(extent)) if self.packs.contains(&extent.chunk)? => writer.push(extent)?,
                Ok(None) => return Ok(Some(writer.finish()?)),
                Ok(Some(_)) | Err(_) => return Ok(None),
            }
        }
    }
}

/// The different directories among some entries, newest first.
fn dirs(entries: impl Iterator<Item = Entry>) -> Dirs {
    let mut dirs = Dirs::new();
    for entry in entries.take(DIRS_EXAMINED) {
        if let Content::Dir(dir) = entry.content
            && !dirs.contains(&dir)
        {
            dirs.push(dir);
        }
        if dirs.len() == DIRS_MAX {
            break;
        }
    }
    dirs
}

/// Whether a file is what it was.
fn is_same(before: &Entry, now: &Entry) -> bool {
    let of = |entry: &Entry| (entry.kind, entry.ino, entry.size, entry.mtime, entry.ctime);
    now.kind == FileType::File && is_of_source(now.ino) && of(before) == of(now)
}

/// Whether what changes in a file from `now` on gives it another time than it has. In the future are files whose times
/// another machine's clock made, or this one's before it was set back: nothing is known of these.
pub(super) fn is_settled(stat: &Stat, now: Time) -> bool {
    let changed = ctime_of(stat);
    let tick = if changed.nanos == 0 { COARSE_TICK } else { TICK };
    nanos(now) - nanos(changed) >= i128::try_from(tick.as_nanos()).unwrap_or(i128::MAX)
}

fn nanos(time: Time) -> i128 {
    i128::from(time.secs) * 1_000_000_000 + i128::from(time.nanos)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_moment_is_as_long_as_the_clock_ticks() {
        let dir = tempfile::tempdir().unwrap();
        let mut stat = rustix::fs::stat(dir.path()).unwrap();
        let mut is_settled_after = |nanos: u32, millis: i64| {
            (stat.st_ctime, stat.st_ctime_nsec) = (1_700_000_000, nanos as _);
            let now = i64::from(nanos) + millis * 1_000_000;
            let (secs, nanos) = (now.div_euclid(1_000_000_000), now.rem_euclid(1_000_000_000));
            is_settled(&stat, Time { secs: 1_700_000_000 + secs, nanos: nanos as u32 })
        };
        assert_eq!(
            [0, 19, 20, 86_400_000].map(|after| is_settled_after(5, after)),
            [false, false, true, true]
        );
        assert_eq!([0, 1999, 2000].map(|after| is_settled_after(0, after)), [false, false, true]);
        assert_eq!([-1, -86_400_000].map(|after| is_settled_after(5, after)), [false, false]);
        stat.st_ctime = i64::MIN as _;
        assert!(is_settled(&stat, Time { secs: i64::MAX, nanos: 0 }));
    }
}
