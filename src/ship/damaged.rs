//! Objects at a remote that were seen to have other bytes than were shipped: a put ended so, or a verification found it.
//!
//! They have the right names and lengths, so a listing shows nothing of it. And nobody can mend it from here: these
//! credentials neither overwrite nor delete. So their names are remembered until their bytes are seen to be right, or they
//! are gone. Until then they don't count as being there: no snapshot that needs one is complete, nothing is locked for
//! longer because of them (that would only keep them from being removed), and each shipment is an alarm.
//!
//! Those that are gone were removed by who was asked to: that is remembered as well until they are sent anew, since other
//! objects that are gone are an alarm.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::disk::Disk;
use crate::remote::{ErrorKind, Remote, RemoteError};
use crate::store::error::Result;

use super::NAMES_TOLD;
use super::settings::{hold, place_path, read, write};

/// Names that are remembered. There are that many only where everything is lost anyway.
const NAMES_MAX: usize = 8192;

/// What is known to be damaged at a place. Other processes may find out more meanwhile.
#[derive(Debug)]
pub(super) struct Damaged {
    path: String,
    place: String,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    known: Known,
    /// What was found out and is not written yet.
    found: BTreeMap<String, Found>,
    /// The one that was looked at last.
    looked: Option<String>,
    /// That is not written yet.
    has_looked: bool,
}

/// What an object was found to be.
#[derive(Clone, Copy, Debug)]
enum Found {
    Damaged,
    Sound,
    /// It is not there any more.
    Gone,
}

#[derive(Clone, Debug, Default)]
struct Known {
    /// Damaged.
    names: BTreeSet<String>,
    /// Was damaged, and is gone.
    gone: BTreeSet<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    place: String,
    names: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    gone: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    looked: Option<String>,
}

/// Whether a put that ended so may have left an object with other bytes.
pub(super) fn is_damage(error: &RemoteError) -> bool {
    matches!(error.kind, ErrorKind::Corrupt | ErrorKind::Conflict)
}

impl Damaged {
    /// Reads what is remembered.
    ///
    /// # Errors
    /// I/O errors; `Corrupt`: what can't be understood must not pass for "nothing is damaged".
    pub(super) fn load(disk: &dyn Disk, remote: &dyn Remote) -> Result<Self> {
        let (path, place) = (place_path(remote, "damaged"), remote.place());
        let (known, looked) = stored(disk, &path, &place)?;
        let state = State { known, found: BTreeMap::new(), looked, has_looked: false };
        Ok(Self { path, place, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The names of what is damaged.
    pub(super) fn names(&self) -> BTreeSet<String> {
        self.state().known.names.clone()
    }

    /// The names of what was damaged, and is gone.
    pub(super) fn gone(&self) -> BTreeSet<String> {
        self.state().known.gone.clone()
    }

    /// So many of them to look at, from the one after that which was looked at last.
    pub(super) fn some(&self, most: usize) -> Vec<String> {
        let state = self.state();
        let after = state.looked.as_deref().unwrap_or_default();
        let names = &state.known.names;
        let late = names.iter().filter(|name| name.as_str() > after);
        let early = names.iter().filter(|name| name.as_str() <= after);
        late.chain(early).take(most).cloned().collect()
    }

    /// This one had its turn, whatever came of it: one that can't be read keeps no other from being looked at.
    pub(super) fn looked_at(&self, name: &str) {
        let mut state = self.state();
        if state.looked.as_deref() != Some(name) {
            state.looked = Some(name.to_string());
            state.has_looked = true;
        }
    }

    /// How many there are, and some of their names.
    pub(super) fn told(&self) -> (u64, Vec<String>) {
        let state = self.state();
        let names = &state.known.names;
        (names.len() as u64, names.iter().take(NAMES_TOLD).cloned().collect())
    }

    /// Notes what an object was found to be.
    pub(super) fn note(&self, name: &str, is_damaged: bool) {
        self.found(name, if is_damaged { Found::Damaged } else { Found::Sound });
    }

    /// Notes that an object that was damaged is gone.
    pub(super) fn note_gone(&self, name: &str) {
        self.found(name, Found::Gone);
    }

    fn found(&self, name: &str, found: Found) {
        let mut state = self.state();
        let is_news = state.known.change(name, found);
        // Another process may have thought otherwise meanwhile, and written it.
        if is_news || matches!(found, Found::Damaged) && state.found.len() < NAMES_MAX {
            state.found.insert(name.to_string(), found);
        }
    }

    /// Writes what was found out since the last time, and learns what others have found.
    ///
    /// # Errors
    /// I/O errors; what [`Damaged::load`] says.
    pub(super) fn save(&self, disk: &dyn Disk) -> Result<()> {
        let mut state = self.state();
        if state.found.is_empty() && !state.has_looked {
            return Ok(());
        }
        let _held = hold(disk, &self.path)?;
        let (mut known, looked) = stored(disk, &self.path, &self.place)?;
        for (name, found) in &state.found {
            known.change(name, *found);
        }
        let looked = if state.has_looked { state.looked.clone() } else { looked };
        let Known { names, gone } = known;
        let file = File { place: self.place.clone(), names, gone, looked };
        write(disk, &self.path, &file)?;
        state.known = Known { names: file.names, gone: file.gone };
        state.found.clear();
        state.has_looked = false;
        Ok(())
    }

    /// A put has failed: if that may have left a damaged object, it is remembered at once. Shipping may be killed before
    /// it comes to its end.
    pub(super) fn put_failed(&self, disk: &dyn Disk, name: &str, error: &RemoteError) {
        if !is_damage(error) {
            return;
        }
        self.note(name, true);
        if let Err(error) = self.save(disk) {
            // It is tried again at the end.
            tracing::warn!(name, %error, "that this object is damaged there can't be remembered");
        }
    }
}

impl Known {
    /// Returns whether that changed anything. Both sets together are bounded.
    fn change(&mut self, name: &str, found: Found) -> bool {
        let was = (self.names.remove(name), self.gone.remove(name));
        let has_room = self.names.len() + self.gone.len() < NAMES_MAX;
        let now = match found {
            Found::Damaged => (has_room && self.names.insert(name.to_string()), false),
            Found::Gone => (false, has_room && self.gone.insert(name.to_string())),
            Found::Sound => (false, false),
        };
        was != now
    }
}

fn stored(disk: &dyn Disk, path: &str, place: &str) -> Result<(Known, Option<String>)> {
    let file = read::<File>(disk, path)?.filter(|file| file.place == place);
    let known = |file: File| (Known { names: file.names, gone: file.gone }, file.looked);
    Ok(file.map(known).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::disk::SimDisk;
    use crate::remote::{OpenOptions, Settings, open};
    use crate::store::error::StoreError;

    fn remote() -> (std::sync::Arc<dyn Remote>, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings { url: format!("file://{}", dir.path().display()), ..Settings::default() };
        (open(&settings, &OpenOptions::default()).unwrap(), dir)
    }

    /// Those that can't be mended don't keep the others from ever being looked at.
    #[test]
    fn all_are_looked_at_in_their_turn() {
        let (disk, (remote, _dir)) = (SimDisk::new(2), remote());
        let load = || Damaged::load(&disk, remote.as_ref()).unwrap();
        let first = load();
        for n in 1..=5 {
            first.note(&format!("packs/{n}"), true);
        }
        first.save(&disk).unwrap();
        let turn = |most| {
            let damaged = load();
            let names = damaged.some(most);
            names.iter().for_each(|name| damaged.looked_at(name));
            damaged.save(&disk).unwrap();
            names.iter().map(|name| name[6..].to_string()).collect::<String>()
        };
        assert_eq!([turn(2), turn(2), turn(2), turn(2)], ["12", "34", "51", "23"]);
        // What was written of a turn is not lost to who writes of something else.
        first.note("packs/3", false);
        first.save(&disk).unwrap();
        assert_eq!([turn(2), turn(9), turn(9)], ["45", "1245", "1245"]);
        // One that ends a turn is the last of the next one.
        let stopped = load();
        stopped.looked_at("packs/1");
        stopped.save(&disk).unwrap();
        assert_eq!(turn(9), "2451");
    }

    #[test]
    fn what_two_processes_find_is_kept() {
        let (disk, (remote, _dir)) = (SimDisk::new(1), remote());
        let load = || Damaged::load(&disk, remote.as_ref());
        let names = |damaged: &Damaged| damaged.names().into_iter().collect::<Vec<_>>();
        let (ship, verify) = (load().unwrap(), load().unwrap());
        ship.put_failed(&disk, "packs/aa/1", &RemoteError::new(ErrorKind::Unreachable, "away"));
        assert!(names(&ship).is_empty(), "what did not arrive is no damage");
        for kind in [ErrorKind::Corrupt, ErrorKind::Conflict] {
            ship.put_failed(&disk, &format!("packs/aa/{kind:?}"), &RemoteError::new(kind, "other bytes"));
        }
        verify.note("packs/bb/2", true);
        verify.save(&disk).unwrap();
        assert_eq!(names(&verify), ["packs/aa/Conflict", "packs/aa/Corrupt", "packs/bb/2"]);
        verify.note("packs/aa/Corrupt", false);
        verify.note("packs/cc/3", false);
        verify.save(&disk).unwrap();
        ship.note("packs/dd/4", true);
        ship.save(&disk).unwrap();
        assert_eq!(names(&load().unwrap()), ["packs/aa/Conflict", "packs/bb/2", "packs/dd/4"]);
        // One that was removed there is no alarm any more, and is known to have been one until it is sent anew.
        verify.note_gone("packs/bb/2");
        verify.save(&disk).unwrap();
        let known = load().unwrap();
        assert_eq!(
            (names(&known), known.told().0),
            (vec!["packs/aa/Conflict".into(), "packs/dd/4".into()], 2)
        );
        assert_eq!(known.gone(), BTreeSet::from(["packs/bb/2".to_string()]));
        known.note("packs/bb/2", false);
        known.save(&disk).unwrap();
        assert!(load().unwrap().gone().is_empty());
        // One that was known already, and that somebody else thinks is gone and sent anew.
        let (verify, ship) = (load().unwrap(), load().unwrap());
        verify.note("packs/dd/4", true);
        ship.note("packs/dd/4", false);
        ship.save(&disk).unwrap();
        verify.save(&disk).unwrap();
        assert!(load().unwrap().names().contains("packs/dd/4"));
        // Any number of them is bounded, and can be read again.
        for n in 0..NAMES_MAX as u32 + 10 {
            ship.note(&format!("packs/ee/{}", blake3::hash(&n.to_le_bytes()).to_hex()), true);
        }
        ship.save(&disk).unwrap();
        let told = load().unwrap().told();
        assert_eq!((told.0, told.1.len()), (NAMES_MAX as u64, NAMES_TOLD));
        // What makes no sense is not taken for nothing.
        disk.raw_write(&ship.path, b"{");
        assert!(matches!(load(), Err(StoreError::Corrupt(_))));
    }
}
