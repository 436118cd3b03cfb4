//! What the process does for its secrets as a whole: no core dumps, no debugger of the same user, no swap.

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, geteuid, getrlimit, set_dumpable_behavior, setrlimit,
};

/// Hardens the process and returns, in words for a log, what was not possible. Nothing of it is needed to go
/// on.
///
/// Memory is locked only where the limit on locked memory can't be hit later: a limit that is hit makes
/// allocations fail in the middle of the work.
#[must_use]
pub fn harden_process() -> Vec<String> {
    let mut not_done = Vec::new();
    if let Err(e) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        not_done.push(format!("core dumps and debuggers: prctl: {e}"));
    }
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(e) = setrlimit(Resource::Core, none) {
        not_done.push(format!("core dumps: setrlimit: {e}"));
    }
    // In rustix, no limit is None.
    if getrlimit(Resource::Memlock).current.is_some() && !geteuid().is_root() {
        not_done.push("memory is not locked: the limit on locked memory is not unlimited".to_owned());
    } else if let Err(e) = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT) {
        not_done.push(format!("memory is not locked: mlockall: {e}"));
    }
    not_done
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rustix::process::dumpable_behavior;

    #[test]
    fn no_core_is_dumped_after_hardening() {
        let not_done = harden_process();
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
        assert_eq!(getrlimit(Resource::Core).maximum, Some(0));
        // What this machine allows besides is its own affair, but it is said in words.
        assert!(not_done.iter().all(|line| line.contains(": ")), "{not_done:?}");
        assert_eq!(harden_process(), not_done, "a second call does no harm");
    }
}
