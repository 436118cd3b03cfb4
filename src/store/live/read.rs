//! Reading through the levels: active changes over frozen changes over the database.

use std::cmp::Ordering;
use std::iter::Peekable;
use std::ops::Bound;
use std::sync::Arc;

use super::base::{Base, Rows};
use super::batch::{Table, Value};
use super::overlay::{Level, Part};
use crate::store::error::Result;

pub(super) type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// What lies below the active changes, consistent with them at one moment.
pub(super) struct Below {
    pub(super) frozen: Option<Arc<Level>>,
    pub(super) base: Arc<Base>,
}

impl Below {
    pub(super) fn get(&self, table: Table, key: &[u8]) -> Result<Option<Value>> {
        match self.frozen.as_ref().and_then(|level| level.get(table, key)) {
            Some(row) => Ok(row.clone()),
            None => self.base.get(table, key),
        }
    }

    /// Merges a part of the active changes with what lies below it, until `out` has `limit` rows.
    fn merge(
        &self,
        table: Table,
        bounds: Bounds<'_>,
        part: Part,
        limit: usize,
        out: &mut Vec<(Vec<u8>, Value)>,
    ) -> Result<()> {
        let mut active = part.rows.into_iter().peekable();
        let mut frozen = self.frozen.iter().flat_map(|level| level.iter(table, bounds)).peekable();
        let mut base = BaseRows::new(self.base.iter(table, bounds)?)?;
        while out.len() < limit {
            // The smallest key wins, on a tie the newest level; the older levels' rows of that key are passed over.
            let frozen_key = frozen.peek().map(|(key, _)| key.as_slice());
            let below = first(frozen_key, base.key());
            let row = match cmp(active.peek().map(|(key, _)| key.as_slice()), below) {
                None => break,
                Some(Ordering::Greater) => match cmp(frozen_key, base.key()) {
                    Some(Ordering::Greater) => base.take()?,
                    _ => {
                        let row = frozen.next().map(|(key, value)| (key.clone(), value.clone()));
                        skip_base(&mut base, &row)?;
                        row
                    }
                },
                Some(_) => {
                    let row = active.next();
                    skip_frozen(&mut frozen, &row);
                    skip_base(&mut base, &row)?;
                    row
                }
            };
            if let Some((key, Some(value))) = row {
                out.push((key, value));
            }
        }
        Ok(())
    }

    /// Returns the last row within bounds that is neither deleted in `part` nor below.
    fn last(&self, table: Table, from: &[u8], below: &[u8], part: Part) -> Result<Option<(Vec<u8>, Value)>> {
        let mut active = part.rows.into_iter().peekable();
        let mut end = below.to_vec();
        let mut base: Option<Option<(Vec<u8>, Value)>> = None;
        while from < end.as_slice() {
            let bounds = (Bound::Included(from), Bound::Excluded(end.as_slice()));
            let frozen = self.frozen.as_ref().and_then(|level| level.iter(table, bounds).next_back());
            if base.as_ref().is_none_or(|row| row.as_ref().is_some_and(|(key, _)| *key >= end)) {
                base = Some(self.base.last(table, bounds)?);
            }
            let base_row = base.as_ref().and_then(Option::as_ref);
            let frozen_key = frozen.map(|(key, _)| key.as_slice());
            let base_key = base_row.map(|(key, _)| key.as_slice());
            let below_key = frozen_key.max(base_key);
            let row = match active.peek() {
                Some((key, value)) if Some(key.as_slice()) >= below_key => {
                    let row = (key.clone(), value.clone());
                    active.next();
                    row
                }
                _ if below_key.is_none() => return Ok(None),
                _ => match (frozen, base_row) {
                    (Some((key, value)), _) if frozen_key >= base_key => (key.clone(), value.clone()),
                    (_, Some((key, value))) => (key.clone(), Some(value.clone())),
                    _ => return Ok(None),
                },
            };
            match row {
                (key, Some(value)) => return Ok(Some((key, value))),
                (key, None) => end = key,
            }
        }
        Ok(None)
    }
}

/// Compares two keys of which either may be missing; a missing one is greater. `None`: both are missing.
fn cmp(a: Option<&[u8]>, b: Option<&[u8]>) -> Option<Ordering> {
    match (a, b) {
        (None, None) => None,
        (None, Some(_)) => Some(Ordering::Greater),
        (Some(_), None) => Some(Ordering::Less),
        (Some(a), Some(b)) => Some(a.cmp(b)),
    }
}

fn first<'a>(a: Option<&'a [u8]>, b: Option<&'a [u8]>) -> Option<&'a [u8]> {
    if cmp(a, b) == Some(Ordering::Greater) { b } else { a }
}

type MaybeRow = Option<(Vec<u8>, Option<Value>)>;

fn skip_frozen<'a, I>(frozen: &mut Peekable<I>, row: &MaybeRow)
where
    I: Iterator<Item = (&'a Vec<u8>, &'a Option<Value>)>,
{
    if let Some((key, _)) = row {
        frozen.next_if(|(k, _)| *k == key);
    }
}

fn skip_base(base: &mut BaseRows, row: &MaybeRow) -> Result<()> {
    if row.as_ref().is_some_and(|(key, _)| base.key() == Some(key)) {
        base.take()?;
    }
    Ok(())
}

/// Rows of the database with the next one at hand.
struct BaseRows {
    rows: Rows,
    next: Option<(Vec<u8>, Value)>,
}

impl BaseRows {
    fn new(mut rows: Rows) -> Result<Self> {
        let next = rows.next().transpose()?;
        Ok(BaseRows { rows, next })
    }

    fn key(&self) -> Option<&[u8]> {
        self.next.as_ref().map(|(key, _)| key.as_slice())
    }

    fn take(&mut self) -> Result<MaybeRow> {
        let next = self.rows.next().transpose()?;
        Ok(std::mem::replace(&mut self.next, next).map(|(key, value)| (key, Some(value))))
    }
}

/// Returns the bounds of a half-open range, or `None` when it is empty or inverted.
fn bounds<'a>(from: &'a [u8], to: Option<&'a [u8]>) -> Option<Bounds<'a>> {
    match to {
        None => Some((Bound::Included(from), Bound::Unbounded)),
        Some(to) if from < to => Some((Bound::Included(from), Bound::Excluded(to))),
        Some(_) => None,
    }
}

/// Reads a range through all levels. `part` takes a part of the active changes and what lies below, at one moment.
pub(super) fn range(
    table: Table,
    from: &[u8],
    to: Option<&[u8]>,
    limit: usize,
    part: impl Fn(Bounds<'_>, usize) -> Result<(Part, Below)>,
) -> Result<Vec<(Vec<u8>, Value)>> {
    let mut out = Vec::new();
    let mut from = from.to_vec();
    while out.len() < limit {
        let Some(all) = bounds(&from, to) else { break };
        let (part, below) = part(all, limit - out.len())?;
        let horizon = part.more.then(|| part.rows.last().map(|(key, _)| key.clone())).flatten();
        let here = match &horizon {
            Some(key) => (all.0, Bound::Included(key.as_slice())),
            None => all,
        };
        below.merge(table, here, part, limit, &mut out)?;
        let Some(mut key) = horizon else { break };
        // The next key there can be.
        key.push(0);
        from = key;
    }
    Ok(out)
}

/// Reads the last row in `[from, below)` through all levels.
pub(super) fn last_before(
    table: Table,
    from: &[u8],
    below: &[u8],
    part: impl Fn(Bounds<'_>) -> Result<(Part, Below)>,
) -> Result<Option<(Vec<u8>, Value)>> {
    let mut end = below.to_vec();
    loop {
        let Some(all) = bounds(from, Some(&end)) else { return Ok(None) };
        let (part, levels) = part(all)?;
        let horizon = part.more.then(|| part.rows.last().map(|(key, _)| key.clone())).flatten();
        let start = horizon.as_deref().unwrap_or(from);
        let row = levels.last(table, start, &end, part)?;
        if row.is_some() {
            return Ok(row);
        }
        let Some(key) = horizon else { return Ok(None) };
        end = key;
    }
}

/// A consistent state of the store at one checkpoint. Later changes don't show. While it lives, the database can't
/// reuse the pages it shows.
pub struct LiveView {
    base: Arc<Base>,
}

impl LiveView {
    pub(super) fn new(base: Arc<Base>) -> Self {
        LiveView { base }
    }

    /// Returns a row's value.
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Value>> {
        self.base.get(table, key)
    }

    /// Returns up to `limit` rows with `from <= key < to` (`None`: to the end of the table), ascending.
    pub fn range(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Value)>> {
        match bounds(from, to) {
            Some(bounds) => self.base.iter(table, bounds)?.take(limit).collect(),
            None => Ok(Vec::new()),
        }
    }

    /// Returns the row with the greatest key in `[from, below)`.
    pub fn last_before(&self, table: Table, from: &[u8], below: &[u8]) -> Result<Option<(Vec<u8>, Value)>> {
        match bounds(from, Some(below)) {
            Some(bounds) => self.base.last(table, bounds),
            None => Ok(None),
        }
    }
}

impl std::fmt::Debug for LiveView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveView").finish_non_exhaustive()
    }
}
