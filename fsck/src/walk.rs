//! Verifies the trees of snapshots: TREE-1 to TREE-7, and that all chunks are there.
//!
//! Each tree object is decoded once for all snapshots as long as nothing is wrong with it, so many snapshots of a
//! large tree cost little more than one. What was once found sound stays so for a snapshot that names all packs that
//! were used to find it; otherwise it is looked at again. Nothing here is recursive in the depth of the tree.

use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::rc::Rc;

use crate::bytes::Id;
use crate::history::PackSet;
use crate::pack::{KIND_DATA, Unzip};
use crate::report::{Class, Counts, Fault, Finding, fault, malformed};
use crate::store::{Lost, Store, wrong_object};
use crate::tree::{Content, DEPTH_MAX, Entry, Extent, LEVEL_MAX, Node, Object};

/// Causes kept for each extent object; more are counted.
const CAUSES_MAX: usize = 8;

/// What is known of all below a tree object.
#[derive(Debug, Clone, Copy, Default)]
struct Below {
    counts: Counts,
    /// How many directories nest below.
    height: u32,
    /// Paths that can't be restored as they were.
    affected: u64,
    /// Whether files with several links are among it.
    links: bool,
    ino_max: u64,
}

impl Below {
    fn add(&mut self, other: &Self) {
        self.counts.add(&other.counts);
        self.height = self.height.max(other.height);
        self.affected = self.affected.saturating_add(other.affected);
        self.links |= other.links;
        self.ino_max = self.ino_max.max(other.ino_max);
    }
}

/// What is known of a directory object: also its level and first and last name, for the object above it.
#[derive(Clone)]
struct Known {
    below: Below,
    level: u8,
    names: Option<Box<(Vec<u8>, Vec<u8>)>>,
}

/// What is known of an extent object.
#[derive(Default)]
struct Span {
    level: u8,
    first: u64,
    last_start: u64,
    end: u64,
    causes: Vec<Lost>,
    more: u64,
}

impl Span {
    fn lose(&mut self, lost: Lost) {
        if self.causes.len() < CAUSES_MAX {
            self.causes.push(lost);
        } else {
            self.more += 1;
        }
    }
}

enum Kid {
    /// A directory object one level down: its range of names and level.
    Object(Id, u8, Vec<u8>, Option<Vec<u8>>),
    /// A directory in the directory.
    Directory(Id, Vec<u8>),
}

struct Frame {
    id: Id,
    level: u8,
    kids: std::vec::IntoIter<Kid>,
    below: Below,
    names: Option<Box<(Vec<u8>, Vec<u8>)>>,
    /// Length of the path without this directory's name; none for an object within a directory.
    before: Option<usize>,
    depth: u32,
}

/// Verifies one snapshot after the other.
pub(crate) struct Walker<'a> {
    store: &'a Store<'a>,
    unzip: Unzip,
    /// Directory objects below which all is well, found with the packs in `used`.
    sound: HashMap<Id, Known>,
    spans: HashMap<Id, Rc<Span>>,
    used: PackSet,
}

/// The outcome for one snapshot.
pub(crate) struct Walked {
    pub(crate) counts: Counts,
    pub(crate) affected: u64,
    pub(crate) ino_max: u64,
    pub(crate) finished: bool,
}

/// What belongs to one snapshot's walk only.
struct Walk<'w> {
    sequence: u64,
    needs: &'w PackSet,
    report: &'w mut dyn FnMut(Finding),
    path: Vec<u8>,
    stack: Vec<Frame>,
    inside: HashSet<Id>,
    /// Objects with damage or with links that were seen in this snapshot.
    seen: HashMap<Id, Known>,
    /// Attributes and content of files with several links, hashed, by inode number.
    links: HashMap<u64, [u8; 16]>,
}

impl Walk<'_> {
    fn tell(&mut self, name: &[u8], lost: &Lost) {
        let mut path = self.path.clone();
        if !name.is_empty() {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
        }
        let finding = Finding::new(lost.pack.clone().unwrap_or_default(), lost.fault.clone());
        (self.report)(finding.in_snapshot(self.sequence).at(&path).of_chunk(&lost.chunk));
    }

    fn tell_fault(&mut self, name: &[u8], fault: Fault) {
        let path = if self.path.is_empty() || name.is_empty() {
            [&self.path[..], name].concat()
        } else {
            [&self.path[..], b"/", name].concat()
        };
        (self.report)(Finding::new("", fault).in_snapshot(self.sequence).at(&path));
    }
}

impl<'a> Walker<'a> {
    pub(crate) fn new(store: &'a Store<'a>) -> Self {
        Self {
            store,
            unzip: Unzip::default(),
            sound: HashMap::new(),
            spans: HashMap::new(),
            used: PackSet::default(),
        }
    }

    /// Verifies the tree below `root`; `stop` is asked now and then.
    pub(crate) fn snapshot(
        &mut self,
        sequence: u64,
        root: &Entry,
        needs: &PackSet,
        report: &mut dyn FnMut(Finding),
        stop: &dyn Fn() -> bool,
    ) -> Walked {
        if !self.used.is_subset(needs) {
            self.sound.clear();
            self.spans.clear();
            self.used = PackSet::default();
        }
        let mut walk = Walk {
            sequence,
            needs,
            report,
            path: Vec::new(),
            stack: Vec::new(),
            inside: HashSet::new(),
            seen: HashMap::new(),
            links: HashMap::new(),
        };
        let mut total = Below { ino_max: root.ino, ..Below::default() };
        total.counts.directories = 1;
        if let Node::Directory(id) = root.node
            && let Some(below) = self.enter(&mut walk, id, Enter::Directory(b""))
        {
            total.add(&below);
        }
        let mut finished = true;
        while !walk.stack.is_empty() {
            if stop() {
                finished = false;
                break;
            }
            if let Some(below) = self.step(&mut walk) {
                match walk.stack.last_mut() {
                    Some(above) => above.below.add(&below),
                    None => total.add(&below),
                }
            }
        }
        Walked { counts: total.counts, affected: total.affected, ino_max: total.ino_max, finished }
    }

    /// Goes on with the topmost object: into its next child, or out of it. What is returned belongs to the object
    /// that is topmost afterwards.
    fn step(&mut self, walk: &mut Walk<'_>) -> Option<Below> {
        let frame = walk.stack.last_mut()?;
        match frame.kids.next() {
            Some(Kid::Object(id, level, lo, hi)) => {
                self.enter(walk, id, Enter::Within { level, lo: &lo, hi: hi.as_deref() })
            }
            Some(Kid::Directory(id, name)) => self.enter(walk, id, Enter::Directory(&name)),
            None => {
                let mut frame = walk.stack.pop()?;
                walk.inside.remove(&frame.id);
                if let Some(before) = frame.before {
                    walk.path.truncate(before);
                    frame.below.height += 1;
                }
                let known =
                    Known { below: height_within(&frame), level: frame.level, names: frame.names.take() };
                if frame.below.affected == 0 && !frame.below.links {
                    self.sound.insert(frame.id, known);
                } else {
                    walk.seen.insert(frame.id, known);
                }
                Some(frame.below)
            }
        }
    }

    /// Enters a directory object. Puts it on the stack, or returns what is known of it or that it is lost.
    fn enter(&mut self, walk: &mut Walk<'_>, id: Id, how: Enter<'_>) -> Option<Below> {
        let (name, level) = match how {
            Enter::Directory(name) => (name, None),
            Enter::Within { level, .. } => (&b""[..], Some(level)),
        };
        let depth = match (walk.stack.last(), level) {
            (None, _) => 0,
            (Some(above), Some(_)) => above.depth,
            (Some(above), None) => above.depth + 1,
        };
        let lost = Below { affected: 1, ..Below::default() };
        if depth > DEPTH_MAX || walk.inside.contains(&id) {
            walk.tell(name, &wrong_object(&id, "TREE-5", "directories nested too deep, or in themselves"));
            return Some(lost);
        }
        if let Some(known) = self.sound.get(&id).or_else(|| walk.seen.get(&id))
            && how.allows(known.level, known.names.as_deref()) == Ok(true)
        {
            let mut below = known.below;
            if level.is_none() {
                below.height += 1;
            }
            if depth + below.height > DEPTH_MAX + 1 {
                walk.tell(name, &wrong_object(&id, "TREE-5", "directories nested too deep"));
                return Some(lost);
            }
            if below.affected > 0 {
                walk.tell(
                    name,
                    &wrong_object(&id, "", "the same directory as one above, with what is wrong in it"),
                );
            }
            return Some(below);
        }
        let object = match self.store.object(&id, walk.needs, &mut self.unzip) {
            Ok((object, pack)) => {
                self.used.insert(pack);
                object
            }
            Err(why) => {
                walk.tell(name, &why);
                return Some(lost);
            }
        };
        let found = match &object {
            Object::DirLeaf(entries) => entries
                .first()
                .zip(entries.last())
                .map(|(a, b)| (0, Some((a.name.clone(), b.name.clone()))))
                .unwrap_or((0, None)),
            Object::DirIndex(level, children) => {
                (*level, children.first().zip(children.last()).map(|(a, b)| (a.0.clone(), b.0.clone())))
            }
            _ => {
                walk.tell(name, &wrong_object(&id, "", "an extent object stands where a directory must"));
                return Some(lost);
            }
        };
        let names = found.1.map(Box::new);
        if let Err(why) = how.allows(found.0, names.as_deref()) {
            walk.tell(name, &wrong_object(&id, why.0, why.1));
            return Some(lost);
        }
        let before = level.is_none().then_some(walk.path.len());
        if level.is_none() && !name.is_empty() {
            if !walk.path.is_empty() {
                walk.path.push(b'/');
            }
            walk.path.extend_from_slice(name);
        }
        walk.inside.insert(id);
        let mut below = Below::default();
        let hi = match how {
            Enter::Within { hi, .. } => hi.map(<[u8]>::to_vec),
            Enter::Directory(_) => None,
        };
        let kids = match object {
            Object::DirLeaf(entries) => self.entries(walk, entries, &mut below),
            Object::DirIndex(level, children) => {
                let next: Vec<_> =
                    children.iter().skip(1).map(|(n, _)| Some(n.clone())).chain([hi]).collect();
                children
                    .into_iter()
                    .zip(next)
                    .map(|((lo, id), hi)| Kid::Object(id, level - 1, lo, hi))
                    .collect()
            }
            _ => Vec::new(),
        };
        // Only an object above it asks for the names again.
        let names = level.and(names);
        walk.stack.push(Frame { id, level: found.0, kids: kids.into_iter(), below, names, before, depth });
        None
    }

    /// Verifies the entries of a leaf but its directories, which are returned.
    fn entries(&mut self, walk: &mut Walk<'_>, entries: Vec<Entry>, below: &mut Below) -> Vec<Kid> {
        let mut kids = Vec::new();
        for entry in entries {
            below.ino_max = below.ino_max.max(entry.ino);
            let mut affected = false;
            match &entry.node {
                Node::Directory(id) => {
                    below.counts.directories += 1;
                    kids.push(Kid::Directory(*id, entry.name));
                    continue;
                }
                Node::File(size, content) => {
                    below.counts.files += 1;
                    below.counts.bytes = below.counts.bytes.saturating_add(*size);
                    affected = self.file(walk, &entry.name, *size, content);
                }
                _ => below.counts.others += 1,
            }
            if entry.nlink > 1 {
                below.links = true;
                let digest = digest(&entry);
                if *walk.links.entry(entry.ino).or_insert(digest) != digest {
                    let what = format!("inode {} has several names that are not the same file", entry.ino);
                    walk.tell_fault(&entry.name, malformed("TREE-7", what));
                    affected = true;
                }
            }
            below.affected += u64::from(affected);
        }
        kids
    }

    /// Verifies where a file's content is; whether something is wrong with it.
    fn file(&mut self, walk: &mut Walk<'_>, name: &[u8], size: u64, content: &Content) -> bool {
        let mut span = Span::default();
        match content {
            Content::Holes | Content::Inline(_) => return false,
            Content::Extents(extents) => {
                // Their order and the size were checked when the entry was decoded.
                for extent in extents {
                    self.extent(walk.needs, extent, &mut span);
                }
            }
            Content::Object(id) => {
                let found = self.span(walk.needs, id, None);
                if found.end > size {
                    span.lose(wrong_object(id, "TREE-4", "an extent reaches beyond the file's size"));
                }
                found.causes.iter().for_each(|lost| span.lose(lost.clone()));
                span.more += found.more;
            }
        }
        for lost in &span.causes {
            walk.tell(name, lost);
        }
        if span.more > 0 {
            walk.tell_fault(
                name,
                fault(Class::Affected, "", format!("and {} more of its extents", span.more)),
            );
        }
        !span.causes.is_empty()
    }

    fn extent(&mut self, needs: &PackSet, extent: &Extent, span: &mut Span) {
        match self.store.find(KIND_DATA, &extent.chunk, needs) {
            Ok(place) => {
                self.used.insert(place.pack);
                if extent.chunk_at + extent.bytes > self.store.bytes_at(place) {
                    span.lose(wrong_object(&extent.chunk, "TREE-4", "an extent reaches beyond its chunk"));
                }
            }
            Err(lost) => span.lose(lost),
        }
    }

    /// Verifies an extent object and all below it. Recursive in its levels, which sink and are few.
    fn span(&mut self, needs: &PackSet, id: &Id, level: Option<u8>) -> Rc<Span> {
        let fits = |found: u8| level.is_none_or(|l| l == found);
        let wrong_level =
            || Rc::new(one(wrong_object(id, "TREE-5", "an extent object of another level than it must")));
        if let Some(known) = self.spans.get(id) {
            return if fits(known.level) { known.clone() } else { wrong_level() };
        }
        let (object, pack) = match self.store.object(id, needs, &mut self.unzip) {
            Ok(found) => found,
            Err(lost) => return Rc::new(one(lost)),
        };
        self.used.insert(pack);
        let mut span = Span::default();
        match object {
            Object::ExtentLeaf(extents) if fits(0) => {
                for extent in &extents {
                    self.extent(needs, extent, &mut span);
                }
                if let (Some(first), Some(last)) = (extents.first(), extents.last()) {
                    (span.first, span.last_start, span.end) = (first.at, last.at, last.end());
                }
            }
            Object::ExtentIndex(found, children) if fits(found) && found <= LEVEL_MAX => {
                span.level = found;
                span.first = children.first().map_or(0, |c| c.0);
                for (n, (lo, child)) in children.iter().enumerate() {
                    let below = self.span(needs, child, Some(found - 1));
                    let hi = children.get(n + 1).map(|c| c.0);
                    if below.causes.is_empty() {
                        if below.first < *lo || hi.is_some_and(|hi| below.last_start >= hi) {
                            span.lose(wrong_object(
                                child,
                                "TREE-2",
                                "extents outside of their object's range",
                            ));
                        }
                        if n > 0 && below.first < span.end {
                            span.lose(wrong_object(child, "TREE-4", "extents overlap"));
                        }
                        (span.last_start, span.end) = (below.last_start, below.end.max(span.end));
                    }
                    below.causes.iter().for_each(|lost| span.lose(lost.clone()));
                    span.more += below.more;
                }
            }
            Object::ExtentLeaf(_) | Object::ExtentIndex(..) => return wrong_level(),
            _ => return Rc::new(one(wrong_object(id, "", "a directory object stands where extents must"))),
        }
        let span = Rc::new(span);
        self.spans.insert(*id, span.clone());
        span
    }
}

fn one(lost: Lost) -> Span {
    Span { causes: vec![lost], ..Span::default() }
}

/// What is below an object without counting the directory that it is the top of, as any name may lead to it.
fn height_within(frame: &Frame) -> Below {
    let mut below = frame.below;
    if frame.before.is_some() {
        below.height -= 1;
    }
    below
}

/// How an object comes to be entered.
#[derive(Clone, Copy)]
enum Enter<'n> {
    /// As the top object of the directory of this name.
    Directory(&'n [u8]),
    /// As a child of an index, of this level and with names in this range.
    Within { level: u8, lo: &'n [u8], hi: Option<&'n [u8]> },
}

impl Enter<'_> {
    /// Whether an object of this level with these first and last names may stand here; false if that is not known
    /// without the names.
    fn allows(
        &self,
        found: u8,
        names: Option<&(Vec<u8>, Vec<u8>)>,
    ) -> Result<bool, (&'static str, &'static str)> {
        let Self::Within { level, lo, hi } = self else { return Ok(true) };
        if found != *level {
            return Err(("TREE-5", "a directory object of another level than it must have"));
        }
        let Some((first, last)) = names else { return Ok(false) };
        if first.as_slice() < *lo || hi.is_some_and(|hi| last.as_slice() >= hi) {
            return Err(("TREE-2", "names outside of their object's range"));
        }
        Ok(true)
    }
}

/// A digest of everything that the names of one file have in common.
fn digest(entry: &Entry) -> [u8; 16] {
    struct Blake3(blake3::Hasher);
    impl Hasher for Blake3 {
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
        fn finish(&self) -> u64 {
            0
        }
    }
    let mut hasher = Blake3(blake3::Hasher::new());
    let e = entry;
    (e.mode, e.uid, e.gid, e.atime, e.mtime, e.ctime, e.nlink).hash(&mut hasher);
    (&e.xattrs, &e.node).hash(&mut hasher);
    let mut out = [0; 16];
    hasher.0.finalize_xof().fill(&mut out);
    out
}
