//! Listing a directory tree as a flat set of names in ascending order, a page at a time and without state between pages.

use super::{ErrorKind, Key, Listed, Page, RemoteError, Result};

/// A page has about this many names.
const PAGE: usize = 1000;
/// Directories of a remote are two levels deep; deeper ones are not ours.
const DEPTH_MAX: usize = 4;
/// The most entries of one directory.
const DIR_ENTRIES_MAX: usize = 1 << 20;

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

struct Walk<'a> {
    tree: &'a dyn Tree,
    prefix: &'a str,
    after: &'a str,
    want: usize,
    page: Page,
}

/// Lists one page: see [`super::Remote::list_page`].
pub(super) fn page(tree: &dyn Tree, prefix: &str, after: &str) -> Result<Page> {
    page_of(tree, prefix, after, PAGE)
}

fn page_of(tree: &dyn Tree, prefix: &str, after: &str, want: usize) -> Result<Page> {
    let mut walk = Walk { tree, prefix, after, want, page: Page::default() };
    let start = prefix.rsplit_once('/').map_or("", |(dir, _)| dir);
    match walk.dir(start, 0) {
        Err(e) if e.kind == ErrorKind::NotFound && !start.is_empty() => {}
        other => other?,
    }
    Ok(walk.page)
}

impl Walk<'_> {
    fn dir(&mut self, dir: &str, depth: usize) -> Result<()> {
        let mut entries = self.tree.entries(dir)?;
        if entries.len() > DIR_ENTRIES_MAX {
            let text = format!("{dir}: {} entries in one directory", entries.len());
            return Err(RemoteError::new(ErrorKind::Corrupt, text));
        }
        // What is below a directory sorts as the directory's name with a slash.
        for entry in &mut entries {
            if entry.is_dir {
                entry.name.push('/');
            }
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        for entry in entries {
            let name = if dir.is_empty() { entry.name } else { format!("{dir}/{}", entry.name) };
            // Hidden names are scratch files; other letters are not ours.
            if Key::new(name.trim_end_matches('/')).is_none() {
                continue;
            }
            if entry.is_dir {
                let wanted = name.starts_with(self.prefix) || self.prefix.starts_with(&name);
                let passed = self.after > name.as_str() && !self.after.starts_with(&name);
                if wanted && !passed && depth < DEPTH_MAX {
                    if self.page.items.len() >= self.want {
                        self.page.more = true;
                        return Ok(());
                    }
                    match self.dir(name.trim_end_matches('/'), depth + 1) {
                        // Removed since its name was read.
                        Err(e) if e.kind == ErrorKind::NotFound => {}
                        other => other?,
                    }
                    if self.page.more {
                        return Ok(());
                    }
                }
            } else if name.starts_with(self.prefix) && name.as_str() > self.after {
                if self.page.items.len() >= self.want {
                    self.page.more = true;
                    return Ok(());
                }
                self.page.items.push(Listed { name, len: entry.len });
            }
        }
        Ok(())
    }
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

    fn all(tree: &Names, prefix: &str, want: usize) -> Vec<String> {
        let (mut names, mut after) = (Vec::new(), String::new());
        loop {
            let page = page_of(tree, prefix, &after, want).unwrap();
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
            prop_assert_eq!(all(&tree, prefix, want), expected);
        }
    }

    #[test]
    fn scratch_files_are_not_listed() {
        let names = [".incoming/ab", "packs/ab/.part", "packs/ab/abc", "packs/x y"];
        let tree = Names(names.iter().map(ToString::to_string).collect());
        assert_eq!(all(&tree, "", 10), ["packs/ab/abc"]);
    }
}
