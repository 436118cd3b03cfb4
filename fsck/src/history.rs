//! How chain files hang together: the walk, running lists, completeness (section 7 of docs/format.md).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::bytes::{Id, hex};
use crate::chain::{ChainFile, ChainKind, PackList, name_of};
use crate::report::{Class, Finding, fault, malformed};

/// A full pack list stands at least every this many sequences (SNAP-7).
const FULL_EVERY: u64 = 64;

/// A set of packs by their number in a [`PackNames`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackSet {
    words: Vec<u64>,
}

impl PackSet {
    /// Puts a pack in; whether it was new.
    pub fn insert(&mut self, n: u32) -> bool {
        let (word, bit) = (n as usize / 64, 1u64 << (n % 64));
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        new
    }

    /// Takes a pack out; whether it was in.
    pub fn remove(&mut self, n: u32) -> bool {
        let was = self.contains(n);
        if was {
            self.words[n as usize / 64] &= !(1u64 << (n % 64));
        }
        was
    }

    /// Whether a pack is in.
    pub fn contains(&self, n: u32) -> bool {
        self.words.get(n as usize / 64).is_some_and(|w| w & (1u64 << (n % 64)) != 0)
    }

    /// Whether every pack of `self` is in `other`.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.words.iter().enumerate().all(|(i, w)| w & !other.words.get(i).copied().unwrap_or(0) == 0)
    }

    /// Whether any pack of `self` is in `other`.
    pub fn meets(&self, other: &Self) -> bool {
        self.words.iter().zip(&other.words).any(|(a, b)| a & b != 0)
    }

    /// Adds all packs of `other`.
    pub fn add(&mut self, other: &Self) {
        if self.words.len() < other.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        self.words.iter_mut().zip(&other.words).for_each(|(a, b)| *a |= b);
    }

    /// Takes all packs of `other` out.
    pub fn subtract(&mut self, other: &Self) {
        self.words.iter_mut().zip(&other.words).for_each(|(a, b)| *a &= !b);
    }

    /// How many packs are in.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    /// The packs in it, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.words.iter().enumerate().flat_map(|(i, &w)| {
            (0..64u32).filter(move |b| w & (1u64 << b) != 0).map(move |b| i as u32 * 64 + b)
        })
    }
}

/// Gives each pack name a small number.
#[derive(Debug, Default)]
pub struct PackNames {
    numbers: HashMap<Id, u32>,
    names: Vec<Id>,
}

impl PackNames {
    /// The number of a name, a new one if need be.
    pub fn number(&mut self, name: &Id) -> u32 {
        *self.numbers.entry(*name).or_insert_with(|| {
            self.names.push(*name);
            // Each name took 32 bytes of input, so their number stays far below 2^32.
            (self.names.len() - 1) as u32
        })
    }

    /// The name of a number that was given out.
    pub fn name(&self, number: u32) -> &Id {
        &self.names[number as usize]
    }

    fn set(&mut self, names: &[Id]) -> PackSet {
        let mut set = PackSet::default();
        for name in names {
            set.insert(self.number(name));
        }
        set
    }
}

/// A chain file with its id.
pub struct Link {
    /// H of its bytes.
    pub id: Id,
    /// Its content.
    pub file: ChainFile,
}

impl Link {
    fn path(&self) -> String {
        format!("snapshots/{}", name_of(self.file.public.sequence, &self.id))
    }
}

/// A snapshot that is there and was not removed.
pub struct Remaining {
    /// Index in [`History::links`].
    pub link: usize,
    /// What it needs; none if a hole in the chain leaves that open.
    pub needs: Option<PackSet>,
}

/// The chain after the walk.
pub struct History {
    /// The sound chain files, by ascending sequence.
    pub links: Vec<Link>,
    /// The snapshots that remain, by ascending sequence.
    pub remaining: Vec<Remaining>,
    /// Numbers of all packs that are named anywhere, and of those added later.
    pub packs: PackNames,
    /// Sequences and ids of all that is on the chain, removed or not.
    pub known: BTreeMap<u64, Id>,
    /// What is wrong with the chain.
    pub findings: Vec<Finding>,
}

struct Step<'a> {
    sequence: u64,
    packs: &'a PackList,
    link: Option<usize>,
    /// Whether the chain is broken below it.
    hole: bool,
}

/// Walks the chain from its newest file (SNAP-1, 2, 3, 5, 7) and works out what each remaining snapshot needs.
pub fn walk(mut links: Vec<Link>) -> History {
    links.sort_by_key(|l| (l.file.public.sequence, l.id));
    let mut findings = Vec::new();
    let mut packs = PackNames::default();
    let (mut steps, gone) = descend(&links, &mut findings);
    steps.reverse();

    let known = steps
        .iter()
        .map(|s| (s.sequence, s.link.map_or_else(|| gone[&s.sequence].0, |l| links[l].id)))
        .collect();
    let remaining = running(&links, &steps, &gone, &mut packs, &mut findings);
    History { remaining, packs, known, findings, links }
}

type Gone<'a> = BTreeMap<u64, (Id, Id, &'a PackList)>;

/// From the newest file down; steps come newest first.
fn descend<'a>(links: &'a [Link], findings: &mut Vec<Finding>) -> (Vec<Step<'a>>, Gone<'a>) {
    let mut by_sequence: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (n, link) in links.iter().enumerate() {
        by_sequence.entry(link.file.public.sequence).or_default().push(n);
    }
    for (sequence, list) in &by_sequence {
        if list.len() > 1 {
            let what = format!("{} chain files have sequence {sequence}", list.len());
            findings.push(Finding::new(links[list[0]].path(), fault(Class::Chain, "SNAP-1", what)));
        }
    }
    let by_id: HashMap<Id, usize> = links.iter().enumerate().map(|(n, l)| (l.id, n)).collect();

    let mut gone: Gone<'a> = BTreeMap::new();
    let mut steps: Vec<Step<'a>> = Vec::new();
    let mut at = by_sequence.last_key_value().map(|(_, list)| list[0]);
    while let Some(top) = at {
        // One unbroken stretch, from links[top] down.
        let mut next = Some((links[top].file.public.sequence, links[top].id));
        let mut lowest = links[top].file.public.sequence;
        while let Some((sequence, id)) = next {
            let found =
                by_sequence.get(&sequence).and_then(|l| l.iter().find(|&&n| links[n].id == id)).copied();
            let predecessor = match (found, gone.get(&sequence)) {
                (Some(n), listed) => {
                    let listed = listed.is_some_and(|(listed_id, ..)| *listed_id == id);
                    note_link(&links[n], listed, findings, &mut gone);
                    steps.push(Step {
                        sequence,
                        packs: &links[n].file.public.packs,
                        link: Some(n),
                        hole: false,
                    });
                    links[n].file.public.predecessor
                }
                (None, Some(&(gone_id, predecessor, packs))) if gone_id == id => {
                    steps.push(Step { sequence, packs, link: None, hole: false });
                    predecessor
                }
                (None, _) => {
                    let what = broken(sequence, &id, by_id.get(&id).map(|&n| &links[n]));
                    findings.push(Finding::new(format!("snapshots/{}", name_of(sequence, &id)), what));
                    break;
                }
            };
            lowest = sequence;
            next = match (sequence, predecessor == [0; 32]) {
                (1, true) => None,
                (1, false) => {
                    let what = "sequence 1 has a predecessor";
                    findings.push(Finding::new("snapshots", malformed("SNAP-2", what)));
                    None
                }
                (_, true) => {
                    let what = format!("sequence {sequence} says that it is the first");
                    findings.push(Finding::new("snapshots", malformed("SNAP-2", what)));
                    None
                }
                (_, false) => Some((sequence - 1, predecessor)),
            };
        }
        at = by_sequence.range(..lowest).next_back().map(|(_, list)| list[0]);
        if let (Some(last), true) = (steps.last_mut(), lowest > 1) {
            last.hole = true;
        }
    }
    (steps, gone)
}

fn broken(sequence: u64, id: &Id, elsewhere: Option<&Link>) -> crate::report::Fault {
    match elsewhere {
        Some(link) => malformed(
            "SNAP-3",
            format!("the predecessor of {} has sequence {}", sequence + 1, link.file.public.sequence),
        ),
        None => fault(
            Class::Chain,
            "SNAP-2",
            format!(
                "{} names {} before it, which is not there: it was deleted, replaced or damaged",
                sequence + 1,
                hex(id).get(..16).unwrap_or_default()
            ),
        ),
    }
}

/// Checks a file that the walk reached, and learns from it what was removed.
fn note_link<'a>(link: &'a Link, listed: bool, findings: &mut Vec<Finding>, gone: &mut Gone<'a>) {
    let path = link.path();
    match (listed, link.file.kind) {
        (true, ChainKind::Removal) => {
            findings.push(Finding::new(path, malformed("SNAP-5", "a removal that a later one removes")));
        }
        (true, ChainKind::Snapshot) => {
            let what = "was removed, and its file is still here";
            findings.push(Finding::new(path, fault(Class::Unreferenced, "", what)));
        }
        (false, _) => {}
    }
    for r in &link.file.public.removed {
        let new = (r.id, r.predecessor, &r.packs);
        if let Some(old) = gone.insert(r.sequence, new)
            && old != new
        {
            let what = format!("two removals tell different things of sequence {}", r.sequence);
            findings.push(Finding::new(link.path(), malformed("SNAP-5", what)));
        }
    }
}

/// From the oldest step up: running lists, and from them what each remaining snapshot needs.
fn running(
    links: &[Link],
    steps: &[Step<'_>],
    gone: &Gone<'_>,
    packs: &mut PackNames,
    findings: &mut Vec<Finding>,
) -> Vec<Remaining> {
    // Removals by ascending sequence: (sequence, retired, replacement).
    let mut removals = Vec::new();
    for link in steps.iter().filter_map(|s| s.link).map(|n| &links[n]) {
        let public = &link.file.public;
        if !public.retired.is_empty() {
            removals.push((public.sequence, packs.set(&public.retired), packs.set(&public.replacement)));
        }
    }

    let mut remaining = Vec::new();
    let mut list: Option<PackSet> = None;
    let mut since_full = 0;
    for step in steps {
        let file = step.link.map_or_else(|| "snapshots".to_owned(), |n| links[n].path());
        let mut complain =
            |what: String| findings.push(Finding::new(file.clone(), malformed("SNAP-7", what)));
        if step.hole {
            list = None;
            since_full = 0;
        }
        since_full += 1;
        if step.packs.full {
            list = Some(packs.set(&step.packs.added));
            since_full = 0;
        } else if since_full == FULL_EVERY {
            complain(format!("no full pack list in the {FULL_EVERY} sequences up to {}", step.sequence));
        }
        if let (false, Some(list)) = (step.packs.full, &mut list) {
            let (added, dropped) = (&step.packs.added, &step.packs.dropped);
            let known: BTreeSet<bool> = added.iter().map(|p| list.contains(packs.number(p))).collect();
            if known.contains(&true) {
                complain(format!("sequence {} adds a pack that is in the list", step.sequence));
            }
            for pack in dropped {
                if !list.remove(packs.number(pack)) {
                    complain(format!("sequence {} drops a pack that is not in the list", step.sequence));
                }
            }
            for pack in added {
                list.insert(packs.number(pack));
            }
        }
        let Some(link) = step.link else { continue };
        let removed = gone.get(&step.sequence).is_some_and(|(id, ..)| *id == links[link].id);
        if removed || links[link].file.kind == ChainKind::Removal {
            continue;
        }
        let needs = list.clone().map(|mut needs| {
            for (_, retired, replacement) in removals.iter().filter(|(s, ..)| *s > step.sequence) {
                if needs.meets(retired) {
                    needs.subtract(retired);
                    needs.add(replacement);
                }
            }
            needs
        });
        remaining.push(Remaining { link, needs });
    }
    remaining
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pack_sets() {
        let mut a = PackSet::default();
        assert!(a.insert(3) && a.insert(200) && !a.insert(3));
        assert_eq!(a.iter().collect::<Vec<_>>(), [3, 200]);
        let mut b = PackSet::default();
        b.insert(3);
        assert!(b.is_subset(&a) && !a.is_subset(&b) && a.meets(&b));
        a.subtract(&b);
        assert!(!a.meets(&b) && a.count() == 1 && !a.remove(3) && a.remove(200) && !a.remove(9999));
        a.add(&b);
        assert_eq!(a, {
            let mut c = PackSet::default();
            c.insert(200);
            c.remove(200);
            c.insert(3);
            c
        });
    }
}
