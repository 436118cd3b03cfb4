//! Finds chunks in packs and reads them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;

use zeroize::Zeroizing;

use crate::bytes::Id;
use crate::history::PackSet;
use crate::pack::{KIND_DATA, KIND_TREE, Pack, Unzip};
use crate::report::{Class, Fault, fault, malformed, unreadable};
use crate::source::Source;
use crate::tree::{Content, Extent, LEVEL_MAX, Object, parse_object};

/// Where a chunk stands: the number of its pack, and its index there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) pack: u32,
    pub(crate) chunk: u32,
}

/// Why a chunk can't be had, and where it stands if it stands anywhere.
#[derive(Debug, Clone)]
pub(crate) struct Lost {
    pub(crate) fault: Fault,
    pub(crate) chunk: Id,
    pub(crate) pack: Option<String>,
}

/// The opened packs with an index of their chunks.
pub(crate) struct Store<'a> {
    source: &'a dyn Source,
    packs: BTreeMap<u32, Pack>,
    /// Chunks whose check failed.
    bad: HashSet<Place>,
    /// First place of each data chunk and of each tree object.
    first: [HashMap<Id, Place>; 2],
    /// Further places of chunks that stand in several packs.
    more: HashMap<(u8, Id), Vec<Place>>,
}

fn slot(kind: u8) -> usize {
    usize::from(kind != KIND_DATA)
}

impl<'a> Store<'a> {
    pub(crate) fn new(source: &'a dyn Source) -> Self {
        Self {
            source,
            packs: BTreeMap::new(),
            bad: HashSet::new(),
            first: Default::default(),
            more: HashMap::new(),
        }
    }

    /// Adds an opened pack and the chunks of it that failed their check.
    pub(crate) fn add(&mut self, number: u32, pack: Pack, bad: Vec<u32>) {
        let kind = pack.keys.header.kind;
        for (n, chunk) in (0u32..).zip(&pack.footer.chunks) {
            let place = Place { pack: number, chunk: n };
            if let Some(first) = self.first[slot(kind)].get(&chunk.id) {
                if *first != place {
                    self.more.entry((kind, chunk.id)).or_default().push(place);
                }
            } else {
                self.first[slot(kind)].insert(chunk.id, place);
            }
        }
        self.bad.extend(bad.into_iter().map(|chunk| Place { pack: number, chunk }));
        self.packs.insert(number, pack);
    }

    /// The plaintext length of the chunk at a place.
    pub(crate) fn bytes_at(&self, place: Place) -> u64 {
        self.packs
            .get(&place.pack)
            .and_then(|p| p.footer.chunks.get(place.chunk as usize))
            .map_or(0, |c| u64::from(c.bytes))
    }

    fn path(&self, place: Place) -> Option<String> {
        self.packs.get(&place.pack).map(|p| p.path.clone())
    }

    fn places(&self, kind: u8, id: &Id) -> impl Iterator<Item = Place> {
        let first = self.first[slot(kind)].get(id).copied();
        first.into_iter().chain(self.more.get(&(kind, *id)).into_iter().flatten().copied())
    }

    /// The place of a chunk in one of the packs in `needs`, a sound one if there is one.
    pub(crate) fn find(&self, kind: u8, id: &Id, needs: &PackSet) -> Result<Place, Lost> {
        let mut worse = None;
        for place in self.places(kind, id) {
            match (needs.contains(place.pack), self.bad.contains(&place)) {
                (true, false) => return Ok(place),
                (true, true) => worse = Some((place, true)),
                (false, _) => worse = worse.or(Some((place, false))),
            }
        }
        let fault = match worse {
            None => fault(Class::Missing, "", "a chunk of it is in no pack that is here"),
            Some((_, true)) => fault(Class::Affected, "PACK-5", "a chunk of it is damaged"),
            Some((_, false)) => {
                malformed("", "a chunk of it is only in a pack that the snapshot does not name")
            }
        };
        Err(Lost { fault, chunk: *id, pack: worse.and_then(|(place, _)| self.path(place)) })
    }

    /// Reads a chunk from any place where it is sound. Which pack that was is told too.
    pub(crate) fn read(
        &self,
        kind: u8,
        id: &Id,
        needs: &PackSet,
        unzip: &mut Unzip,
    ) -> Result<(Zeroizing<Vec<u8>>, u32), Lost> {
        let mut lost = match self.find(kind, id, needs) {
            Ok(place) => match self.read_place(place, id, unzip) {
                Ok(plain) => return Ok((plain, place.pack)),
                Err(lost) => lost,
            },
            // Known to be damaged already: reading it again finds the same.
            Err(lost) => return Err(lost),
        };
        for place in self.places(kind, id).filter(|p| needs.contains(p.pack)) {
            match self.read_place(place, id, unzip) {
                Ok(plain) => return Ok((plain, place.pack)),
                Err(next) => lost = next,
            }
        }
        Err(lost)
    }

    fn read_place(&self, place: Place, id: &Id, unzip: &mut Unzip) -> Result<Zeroizing<Vec<u8>>, Lost> {
        let lost = |fault| Lost { fault, chunk: *id, pack: self.path(place) };
        let Some(pack) = self.packs.get(&place.pack) else {
            return Err(lost(fault(Class::Missing, "", "its pack is not open")));
        };
        let file = self.source.open(&pack.path).map_err(|e| lost(unreadable("opening", &e)))?;
        pack.read_chunk(&*file, place.chunk as usize, unzip).map_err(lost)
    }

    /// Reads and decodes a tree object; the pack that it came from is told too.
    pub(crate) fn object(&self, id: &Id, needs: &PackSet, unzip: &mut Unzip) -> Result<(Object, u32), Lost> {
        let (plain, pack) = self.read(KIND_TREE, id, needs, unzip)?;
        let object = parse_object(&plain).map_err(|fault| Lost {
            fault,
            chunk: *id,
            pack: self.packs.get(&pack).map(|p| p.path.clone()),
        })?;
        Ok((object, pack))
    }
}

/// Wrong kind of object where `what` is expected.
pub(crate) fn wrong_object(id: &Id, rule: &'static str, what: &str) -> Lost {
    Lost { fault: malformed(rule, what.to_owned()), chunk: *id, pack: None }
}

/// Reads the content of files, one chunk in memory at a time.
pub(crate) struct Contents<'a> {
    store: &'a Store<'a>,
    needs: &'a PackSet,
    unzip: Unzip,
    /// The last chunk: consecutive extents often are of the same.
    last: Option<(Id, Zeroizing<Vec<u8>>)>,
}

/// Most lost ranges that are remembered of one file.
const LOST_MAX: usize = 16;

/// What a reader of content is given.
pub(crate) type Sink<'s> = &'s mut dyn FnMut(u64, &[u8]) -> io::Result<()>;

/// How reading a file's content ended.
#[derive(Default)]
pub(crate) struct Outcome {
    /// The first few parts that could not be read.
    pub(crate) lost: Vec<Lost>,
    /// Bytes of all that could not be read; `u64::MAX` when it is not known how many.
    pub(crate) lost_bytes: u64,
}

impl Outcome {
    fn lose(&mut self, lost: Lost, bytes: u64) {
        self.lost_bytes = self.lost_bytes.saturating_add(bytes);
        if self.lost.len() < LOST_MAX {
            self.lost.push(lost);
        }
    }
}

impl<'a> Contents<'a> {
    pub(crate) fn new(store: &'a Store<'a>, needs: &'a PackSet) -> Self {
        Self { store, needs, unzip: Unzip::default(), last: None }
    }

    /// Gives all bytes that extents cover to `sink`, in ascending order; holes are left out. A part that can't be
    /// read is left out too and told. The error is the sink's own.
    pub(crate) fn read(&mut self, size: u64, content: &Content, sink: Sink<'_>) -> io::Result<Outcome> {
        let mut outcome = Outcome::default();
        match content {
            Content::Holes => {}
            Content::Inline(bytes) => sink(0, bytes)?,
            Content::Extents(extents) => {
                for extent in extents {
                    self.extent(extent, sink, &mut outcome)?;
                }
            }
            Content::Object(id) => {
                let mut end = 0;
                self.node(id, None, size, &mut end, sink, &mut outcome)?;
            }
        }
        Ok(outcome)
    }

    fn node(
        &mut self,
        id: &Id,
        level: Option<u8>,
        size: u64,
        end: &mut u64,
        sink: Sink<'_>,
        outcome: &mut Outcome,
    ) -> io::Result<()> {
        let object = match self.store.object(id, self.needs, &mut self.unzip) {
            Ok((object, _)) => object,
            Err(lost) => {
                outcome.lose(lost, u64::MAX);
                return Ok(());
            }
        };
        match (object, level) {
            (Object::ExtentLeaf(extents), None | Some(0)) => {
                for extent in &extents {
                    if extent.at < *end || extent.end() > size {
                        outcome
                            .lose(wrong_object(id, "TREE-4", "extents overlap or leave the file"), u64::MAX);
                        return Ok(());
                    }
                    *end = extent.end();
                    self.extent(extent, sink, outcome)?;
                }
            }
            // The level sinks at each step, so this ends after at most LEVEL_MAX + 1 of them.
            (Object::ExtentIndex(found, children), level)
                if level.is_none_or(|l| l == found) && found <= LEVEL_MAX =>
            {
                for (_, child) in &children {
                    self.node(child, Some(found - 1), size, end, sink, outcome)?;
                }
            }
            _ => {
                outcome.lose(wrong_object(id, "TREE-5", "another object stands where extents must"), u64::MAX)
            }
        }
        Ok(())
    }

    fn extent(&mut self, extent: &Extent, sink: Sink<'_>, outcome: &mut Outcome) -> io::Result<()> {
        if self.last.as_ref().is_none_or(|(id, _)| *id != extent.chunk) {
            match self.store.read(KIND_DATA, &extent.chunk, self.needs, &mut self.unzip) {
                Ok((plain, _)) => self.last = Some((extent.chunk, plain)),
                Err(lost) => {
                    outcome.lose(lost, extent.bytes);
                    return Ok(());
                }
            }
        }
        let range = usize::try_from(extent.chunk_at).ok().zip(usize::try_from(extent.bytes).ok());
        let bytes =
            self.last.as_ref().zip(range).and_then(|((_, plain), (at, n))| plain.get(at..at.checked_add(n)?));
        match bytes {
            Some(bytes) => sink(extent.at, bytes),
            None => {
                let lost = wrong_object(&extent.chunk, "TREE-4", "an extent reaches beyond its chunk");
                outcome.lose(lost, extent.bytes);
                Ok(())
            }
        }
    }

    /// BLAKE3 of a file's content, holes as zeros; none if something of it can't be read.
    pub(crate) fn hash(&mut self, size: u64, content: &Content) -> Option<Id> {
        let mut hasher = blake3::Hasher::new();
        let mut at = 0u64;
        let outcome = self
            .read(size, content, &mut |off, bytes| {
                zeros(&mut hasher, off.saturating_sub(at));
                hasher.update(bytes);
                at = off + bytes.len() as u64;
                Ok(())
            })
            .ok()?;
        zeros(&mut hasher, size.saturating_sub(at));
        outcome.lost.is_empty().then(|| *hasher.finalize().as_bytes())
    }
}

fn zeros(hasher: &mut blake3::Hasher, mut n: u64) {
    static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
    while n > 0 {
        let part = n.min(ZEROS.len() as u64);
        hasher.update(&ZEROS[..part as usize]);
        n -= part;
    }
}
