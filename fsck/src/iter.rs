//! Goes through a snapshot's tree in path order.

use std::collections::HashSet;

use crate::bytes::Id;
use crate::history::PackSet;
use crate::pack::Unzip;
use crate::store::{Lost, Store, wrong_object};
use crate::tree::{DEPTH_MAX, Entry, Node, Object};

/// What happens on the way through a tree.
pub(crate) enum Event {
    /// An entry; a directory's come before what is in it.
    Entry(Vec<u8>, Entry),
    /// All of a directory has been seen.
    Leave(Vec<u8>, Entry),
    /// Something in the directory at this path can't be read, and is left out.
    Lost(Vec<u8>, Lost),
}

enum Frame {
    Entries(std::vec::IntoIter<Entry>),
    Children(u8, std::vec::IntoIter<(Vec<u8>, Id)>),
    /// Below this stands what is in the directory; the path's length before it.
    Directory(Box<Entry>, Id, usize),
}

/// A walk in path order that holds one object for each level of the tree.
pub(crate) struct TreeIter<'a> {
    store: &'a Store<'a>,
    needs: &'a PackSet,
    unzip: Unzip,
    stack: Vec<Frame>,
    /// Directory objects above this point.
    inside: HashSet<Id>,
    path: Vec<u8>,
    root: Option<Entry>,
    lost: Option<Lost>,
}

impl<'a> TreeIter<'a> {
    pub(crate) fn new(store: &'a Store<'a>, needs: &'a PackSet, root: Entry) -> Self {
        Self {
            store,
            needs,
            unzip: Unzip::default(),
            stack: Vec::new(),
            inside: HashSet::new(),
            path: Vec::new(),
            root: Some(root),
            lost: None,
        }
    }

    fn enter(&mut self, entry: Entry, before: usize) {
        let Node::Directory(id) = entry.node else { return };
        if self.inside.len() >= DEPTH_MAX as usize || !self.inside.insert(id) {
            self.lost = Some(wrong_object(&id, "TREE-5", "directories nested too deep, or in themselves"));
            return;
        }
        self.stack.push(Frame::Directory(Box::new(entry), id, before));
        self.open(&id, None);
    }

    /// Puts a directory object on the stack; `level` is the one that it must have.
    fn open(&mut self, id: &Id, level: Option<u8>) {
        match (self.store.object(id, self.needs, &mut self.unzip), level) {
            (Err(lost), _) => self.lost = Some(lost),
            (Ok((Object::DirLeaf(entries), _)), None | Some(0)) => {
                self.stack.push(Frame::Entries(entries.into_iter()));
            }
            (Ok((Object::DirIndex(found, children), _)), level) if level.is_none_or(|l| l == found) => {
                self.stack.push(Frame::Children(found, children.into_iter()));
            }
            _ => {
                self.lost = Some(wrong_object(id, "TREE-5", "another object stands where a directory must"));
            }
        }
    }

    fn place(&mut self, name: &[u8]) -> usize {
        let before = self.path.len();
        if before > 0 {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
        before
    }
}

impl Iterator for TreeIter<'_> {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        if let Some(root) = self.root.take() {
            self.enter(root.clone(), 0);
            return Some(Event::Entry(Vec::new(), root));
        }
        loop {
            if let Some(lost) = self.lost.take() {
                return Some(Event::Lost(self.path.clone(), lost));
            }
            match self.stack.last_mut()? {
                Frame::Entries(entries) => {
                    let Some(entry) = entries.next() else {
                        self.stack.pop();
                        continue;
                    };
                    let before = self.place(&entry.name);
                    let path = self.path.clone();
                    if matches!(entry.node, Node::Directory(_)) {
                        let depth = self.stack.len();
                        self.enter(entry.clone(), before);
                        if self.stack.len() > depth {
                            return Some(Event::Entry(path, entry));
                        }
                    } else {
                        self.path.truncate(before);
                        return Some(Event::Entry(path, entry));
                    }
                    // A directory that may not be entered.
                    self.path.truncate(before);
                    return self.lost.take().map(|lost| Event::Lost(path, lost));
                }
                Frame::Children(level, children) => {
                    let level = *level;
                    match children.next() {
                        None => {
                            self.stack.pop();
                        }
                        Some((_, child)) => self.open(&child, Some(level - 1)),
                    }
                }
                Frame::Directory(..) => {
                    let Some(Frame::Directory(entry, id, before)) = self.stack.pop() else { continue };
                    self.inside.remove(&id);
                    let path = self.path.clone();
                    self.path.truncate(before);
                    return Some(Event::Leave(path, *entry));
                }
            }
        }
    }
}
