//! Fail-stop after an I/O error.
//!
//! After a failed write or fsync nobody knows what the disk holds: Linux marks the pages clean and forgets them, so
//! a second fsync that succeeds proves nothing. The first failure therefore poisons the whole vault: reads go on,
//! writes fail until the next mount recovers from what is really on the disk.

use std::io;
use std::sync::{Arc, OnceLock};

/// A flag shared by everything that writes to one vault. Clones are handles to the same flag.
#[derive(Clone, Debug, Default)]
pub struct Poison {
    cause: Arc<OnceLock<String>>,
}

/// The error of every write to a poisoned vault.
#[derive(Debug, thiserror::Error)]
#[error(
    "writing stopped after an earlier failure ({cause}); what was durable is safe, mount again to recover"
)]
struct Poisoned {
    cause: String,
}

impl Poison {
    /// Returns a flag that is not set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Fails once the vault is poisoned. Call before every write.
    pub fn check(&self) -> Result<(), io::Error> {
        match self.cause.get() {
            None => Ok(()),
            Some(cause) => Err(io::Error::other(Poisoned { cause: cause.clone() })),
        }
    }

    /// Poisons the vault. Only the first cause is kept: later ones follow from it.
    pub fn set(&self, cause: &str) {
        if self.cause.set(cause.to_string()).is_ok() {
            tracing::error!(cause, "the vault is poisoned: writes fail until it is mounted again");
        }
    }

    /// Passes a result through, poisoning the vault with `what` and the error if it failed.
    pub fn on_error<T>(&self, what: &str, result: io::Result<T>) -> io::Result<T> {
        if let Err(e) = &result {
            self.set(&format!("{what}: {e}"));
        }
        result
    }

    /// Tells whether the vault is poisoned.
    pub fn is_set(&self) -> bool {
        self.cause.get().is_some()
    }

    /// Returns the first cause.
    pub fn cause(&self) -> Option<&str> {
        self.cause.get().map(String::as_str)
    }
}

/// Tells whether an error says that the vault was already poisoned.
pub fn is_poisoned(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Poisoned>())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_first_cause_stays() {
        let poison = Poison::new();
        let other = poison.clone();
        poison.check().unwrap();
        assert_eq!(poison.on_error("fine", Ok(1)).unwrap(), 1);
        assert!(!poison.is_set() && poison.cause().is_none());
        other.on_error("cannot sync", Err::<(), _>(io::Error::from(io::ErrorKind::Other))).unwrap_err();
        other.set("second");
        assert!(poison.cause().unwrap().starts_with("cannot sync"));
        let error = poison.check().unwrap_err();
        assert!(is_poisoned(&error) && error.to_string().contains("cannot sync"));
        assert!(!is_poisoned(&io::Error::from(io::ErrorKind::Other)));
    }
}
