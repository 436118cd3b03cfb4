//! Listing a directory tree as a flat set of names in ascending order, a page at a time.
//!
//! A listing that goes on where its last page ended goes on in what was read of the directories then: a directory is read
//! once, however many pages it has. Any other page is begun anew, and asks for everything anew.

use std::sync::{Mutex, PoisonError};
use std::vec;

use super::{ErrorKind, Key, Listed, Page, RemoteError, Result};

/// A page has about this many names.
const PAGE: usize = 1000;
/// Directories of a remote are two levels deep; deeper ones are not ours.
const DEPTH_MAX: usize = 4;
/// The most entries of one directory. Names have at most 255 bytes: that is 300 MiB of memory at worst, and 100 MiB where names
/// are those of a vault.
pub(super) const DIR_ENTRIES_MAX: usize = 1 << 20;

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) is_dir: bool,
    pub(super) len: u64,
}

/// Directories that can be listed.
pub(super) trait Tree {
    /// Lists a directory, in any order; a missing one is `NotFound`. The empty path is the root.
    fn entries(&self, dir: &str) -> Result<Vec<Entry>>;
}

/// The error for a directory with more than [`DIR_ENTRIES_MAX`] entries. Nothing there need be wrong: whoever may write there
/// can put names, and only somebody who may delete them can help.
pub(super) fn too_many(dir: &str) -> RemoteError {
    let text = format!(
        "the directory {dir:?} has more than {DIR_ENTRIES_MAX} entries, too many to be read: remove from it what is no part of the \
         vault, with credentials that can delete"
    );
    RemoteError::new(ErrorKind::Unsupported, text)
}

/// Where the last page of a listing ended. What was read stays in memory until the listing comes to its end or another one is
/// begun.
#[derive(Debug, Default)]
pub(super) struct Pages(Mutex<Option<Walk>>);

impl Pages {
    /// Lists one page: see [`super::Remote::list_page`].
    pub(super) fn page(&self, tree: &dyn Tree, prefix: &str, after: &str) -> Result<Page> {
        self.page_of(tree, prefix, after, PAGE)
    }

    fn page_of(&self, tree: &dyn Tree, prefix: &str, after: &str, want: usize) -> Result<Page> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Who begins at the beginning wants to know what is there now.
        let kept = kept.filter(|walk| !after.is_empty() && walk.prefix == prefix && walk.after == after);
        let mut walk = match kept {
            Some(walk) => walk,
            None => Walk::begin(tree, prefix, after)?,
        };
        let page = walk.page(tree, want)?;
        if let Some(last) = page.items.last().filter(|_| page.more) {
            walk.after.clone_from(&last.name);
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(walk);
        }
        Ok(page)
    }
}

/// A listing under way.
#[derive(Debug)]
struct Walk {
    prefix: String,
    /// What was shown last.
    after: String,
    /// The directories above what comes next, from the root.
    levels: Vec<Level>,
}

/// What is left of a directory.
#[derive(Debug)]
struct Level {
    dir: String,
    /// Wanted ones, in order; names of directories end with a slash.
    entries: vec::IntoIter<Entry>,
}

impl Walk {
    fn begin(tree: &dyn Tree, prefix: &str, after: &str) -> Result<Self> {
        let mut walk = Self { prefix: prefix.into(), after: after.into(), levels: Vec::new() };
        let start = prefix.rsplit_once('/').map_or("", |(dir, _)| dir);
        match walk.enter(tree, start) {
            Err(e) if e.kind == ErrorKind::NotFound && !start.is_empty() => {}
            other => other?,
        }
        Ok(walk)
    }

    /// Reads a directory; what is in it comes next.
    fn enter(&mut self, tree: &dyn Tree, dir: &str) -> Result<()> {
        let mut entries = tree.entries(dir)?;
        if entries.len() > DIR_ENTRIES_MAX {
            return Err(too_many(dir));
        }
        // What is below a directory sorts as the directory's name with a slash.
        for entry in &mut entries {
            if entry.is_dir {
                entry.name.push('/');
            }
        }
        entries.retain(|entry| self.is_wanted(&path(dir, entry), entry.is_dir));
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        self.levels.push(Level { dir: dir.into(), entries: entries.into_iter() });
        Ok(())
    }

    fn is_wanted(&self, name: &str, is_dir: bool) -> bool {
        // Hidden names are scratch files; other letters are not ours.
        if Key::new(name.trim_end_matches('/')).is_none() {
            return false;
        }
        if !is_dir {
            return name.starts_with(&self.prefix) && name > self.after.as_str();
        }
        let leads = name.starts_with(&self.prefix) || self.prefix.starts_with(name);
        let passed = self.after.as_str() > name && !self.after.starts_with(name);
        leads && !passed && self.levels.len() < DEPTH_MAX
    }

    fn page(&mut self, tree: &dyn Tree, want: usize) -> Result<Page> {
        let mut page = Page::default();
        while let Some(level) = self.levels.last_mut() {
            if page.items.len() >= want && !level.entries.as_slice().is_empty() {
                page.more = true;
                return Ok(page);
            }
            let Some(entry) = level.entries.next() else {
                self.levels.pop();
                continue;
            };
            let name = path(&level.dir, &entry);
            if !entry.is_dir {
                page.items.push(Listed { name, len: entry.len });
                continue;
            }
            match self.enter(tree, name.trim_end_matches('/')) {
                // Removed since its name was read.
                Err(e) if e.kind == ErrorKind::NotFound => {}
                other => other?,
            }
        }
        Ok(page)
    }
}

fn path(dir: &str, entry: &Entry) -> String {
    if dir.is_empty() { entry.name.clone() } else { format!("{dir}/{}", entry.name) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    /// A tree made of the names of its files.
    struct Names(BTreeSet<String>);

    impl Tree for Names {
        fn entries(&self, dir: &str) -> Result<Vec<Entry>> {
            let start = if dir.is_empty() { String::new() } else { format!("{dir}/") };
            let below = self.0.iter().filter_map(|name| name.strip_prefix(&start));
            let mut found: BTreeMap<String, bool> = BTreeMap::new();
            for rest in below {
                let (name, is_dir) = rest.split_once('/').map_or((rest, false), |(name, _)| (name, true));
                found.insert(name.to_string(), is_dir);
            }
            if found.is_empty() && !dir.is_empty() {
                return Err(RemoteError::new(ErrorKind::NotFound, "no such directory"));
            }
            Ok(found.into_iter().rev().map(|(name, is_dir)| Entry { name, is_dir, len: 1 }).collect())
        }
    }

    /// All names. `anew`: each page is the first one that is asked for.
    fn all(tree: &dyn Tree, prefix: &str, want: usize, anew: bool) -> Vec<String> {
        let (mut names, mut after) = (Vec::new(), String::new());
        let mut pages = Pages::default();
        loop {
            let page = pages.page_of(tree, prefix, &after, want).unwrap();
            if anew {
                pages = Pages::default();
            }
            assert!(page.items.len() <= want);
            names.extend(page.items.into_iter().map(|item| item.name));
            if !page.more {
                return names;
            }
            after.clone_from(names.last().unwrap());
        }
    }

    proptest! {
        #[test]
        fn pages_of_any_size_show_every_name_once_and_in_order(
            files in prop::collection::btree_set("[ab.-]{1,2}(/[ab-]{1,2}){0,2}", 0..20),
            prefix in prop::sample::select(vec!["", "a", "a/", "a/b", "ab/", "x/"]),
            want in 1_usize..5,
        ) {
            // A name is a file or a directory, not both.
            let dirs: BTreeSet<String> =
                files.iter().flat_map(|f| f.match_indices('/').map(|(i, _)| f[..i].to_string()).collect::<Vec<_>>()).collect();
            let tree = Names(files.into_iter().filter(|f| !dirs.contains(f)).collect());
            let expected: Vec<String> =
                tree.0.iter().filter(|f| f.starts_with(prefix) && Key::new(f).is_some()).cloned().collect();
            prop_assert_eq!(&all(&tree, prefix, want, false), &expected);
            prop_assert_eq!(&all(&tree, prefix, want, true), &expected);
        }
    }

    #[test]
    fn scratch_files_are_not_listed() {
        let names = [".incoming/ab", "packs/ab/.part", "packs/ab/abc", "packs/x y"];
        let tree = Names(names.iter().map(ToString::to_string).collect());
        assert_eq!(all(&tree, "", 10, false), ["packs/ab/abc"]);
    }

    /// Counts how often a directory is read.
    struct Counted(Mutex<Names>, Mutex<usize>);

    impl Tree for Counted {
        fn entries(&self, dir: &str) -> Result<Vec<Entry>> {
            *self.1.lock().unwrap() += 1;
            self.0.lock().unwrap().entries(dir)
        }
    }

    impl Counted {
        fn new(names: impl Iterator<Item = String>) -> Self {
            Self(Mutex::new(Names(names.collect())), Mutex::new(0))
        }

        /// How often it was asked since the last time.
        fn asked(&self) -> usize {
            std::mem::take(&mut *self.1.lock().unwrap())
        }
    }

    #[test]
    fn a_directory_is_read_once_for_all_its_pages() {
        let tree = Counted::new((0..1000).map(|n| format!("snapshots/{n:04}")));
        assert_eq!(all(&tree, "snapshots/", 10, false).len(), 1000);
        assert_eq!(tree.asked(), 1);
        assert_eq!(all(&tree, "", 10, false).len(), 1000);
        assert_eq!(tree.asked(), 2, "the root, and what is in it");
    }

    /// What was written or deleted since is seen by every listing that is not the rest of one.
    #[test]
    fn what_is_begun_anew_is_asked_for_anew() {
        let tree = Counted::new((0..10).map(|n| format!("a/{n}")));
        let pages = Pages::default();
        let page = |prefix: &str, after: &str| {
            let page = pages.page_of(&tree, prefix, after, 4).unwrap();
            let names: Vec<String> = page.items.into_iter().map(|item| item.name).collect();
            (names.join(" "), page.more, tree.asked())
        };
        assert_eq!(page("a/", ""), ("a/0 a/1 a/2 a/3".into(), true, 1));
        tree.0.lock().unwrap().0.insert("a/00".into());
        tree.0.lock().unwrap().0.remove("a/4");
        assert_eq!(page("a/", "a/3"), ("a/4 a/5 a/6 a/7".into(), true, 0), "the rest of a listing");
        assert_eq!(page("a/", "a/3"), ("a/5 a/6 a/7 a/8".into(), true, 1), "not where it ended");
        assert_eq!(page("a/", ""), ("a/0 a/00 a/1 a/2".into(), true, 1), "from the beginning");
        assert_eq!(page("a", "a/2").2, 2, "another prefix");
        assert_eq!(page("a/", ""), ("a/0 a/00 a/1 a/2".into(), true, 1));
        assert_eq!(page("a/", "a/2").2, 0);
        assert_eq!(page("a/", "a/7"), ("a/8 a/9".into(), false, 0));
        assert_eq!(page("a/", "a/9"), (String::new(), false, 1), "nothing is kept of what has ended");
    }

    #[test]
    fn too_many_entries_say_what_to_do() {
        struct Endless;
        impl Tree for Endless {
            fn entries(&self, _: &str) -> Result<Vec<Entry>> {
                Ok(vec![Entry { name: "x".into(), is_dir: false, len: 1 }; DIR_ENTRIES_MAX + 1])
            }
        }
        let error = Pages::default().page(&Endless, "snapshots/", "").unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsupported);
        assert!(error.message.contains("remove from it what is no part of the vault"), "{error}");
    }
}
