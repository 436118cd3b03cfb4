//! Rescue: collects or writes out the content of a snapshot.

use crate::check::Options;
use crate::history::PackSet;
use crate::iter::{Event, TreeIter};
use crate::report::TreeItem;
use crate::store::{Contents, Store};
use crate::tree::{Entry, Node};

/// All entries of a tree with hashes of their content.
pub(crate) fn collect(
    store: &Store<'_>,
    needs: &PackSet,
    root: &Entry,
    contents: &mut Contents<'_>,
    opts: &Options,
) -> Vec<TreeItem> {
    let mut items: Vec<TreeItem> = Vec::new();
    for event in TreeIter::new(store, needs, root.clone()) {
        if opts.cancelled() {
            break;
        }
        match event {
            Event::Leave(..) => {}
            Event::Lost(path, _) => {
                // The directory came before what was lost in it.
                if let Some(item) = items.iter_mut().rev().find(|i| i.path == path) {
                    item.damaged = true;
                }
            }
            Event::Entry(path, entry) => items.push(item(path, entry, contents, opts.hash_bytes_max)),
        }
    }
    items
}

fn item(path: Vec<u8>, entry: Entry, contents: &mut Contents<'_>, hash_bytes_max: u64) -> TreeItem {
    let mut item = TreeItem {
        path,
        kind: entry.node.kind(),
        ino: entry.ino,
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        atime: entry.atime,
        mtime: entry.mtime,
        ctime: entry.ctime,
        nlink: entry.nlink,
        xattrs: entry.xattrs,
        size: 0,
        target: Vec::new(),
        device: (0, 0),
        content: None,
        damaged: false,
    };
    match entry.node {
        Node::File(size, content) => {
            item.size = size;
            if size <= hash_bytes_max {
                item.content = contents.hash(size, &content);
                item.damaged = item.content.is_none();
            }
        }
        Node::Symlink(target) => item.target = target,
        Node::CharDevice(major, minor) | Node::BlockDevice(major, minor) => item.device = (major, minor),
        Node::Directory(_) | Node::Fifo | Node::Socket => {}
    }
    item
}
