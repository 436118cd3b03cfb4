//! From the filesystem's errors to the kernel's numbers, which of them are logged, and what a panic says.
//!
//! What each cause means as a number is decided in `fs::error`, in one exhaustive match. Here the number is only handed on.

use crate::fs::FsError;

/// What a failing request tells the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weight {
    /// An everyday answer, such as "no such file".
    Normal,
    /// Something is wrong with us or the disk.
    Trouble,
}

/// Weighs an error. A full disk is trouble: the administrator should know without asking the backup job.
pub(super) fn weight(errno: rustix::io::Errno) -> Weight {
    use rustix::io::Errno;
    match errno {
        Errno::IO | Errno::NOSPC | Errno::NOMEM | Errno::NOTRECOVERABLE | Errno::UCLEAN | Errno::BADMSG => {
            Weight::Trouble
        }
        _ => Weight::Normal,
    }
}

/// The number for the kernel.
pub(super) fn to_kernel(error: &FsError) -> fuser::Errno {
    fuser::Errno::from_i32(error.errno.raw_os_error())
}

/// What a panic says.
pub(super) fn panic_text(payload: &(dyn std::any::Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("panic")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn everyday_answers_are_not_trouble() {
        for errno in [Errno::NOENT, Errno::EXIST, Errno::NODATA, Errno::NOTEMPTY, Errno::ROFS, Errno::RANGE] {
            assert_eq!(weight(errno), Weight::Normal);
        }
        assert_eq!(weight(Errno::IO), Weight::Trouble);
        assert_eq!(weight(Errno::NOSPC), Weight::Trouble);
    }

    #[test]
    fn numbers_are_handed_on() {
        for errno in [Errno::NOENT, Errno::IO, Errno::NAMETOOLONG, Errno::OPNOTSUPP] {
            assert_eq!(to_kernel(&FsError::from(errno)).code(), errno.raw_os_error());
        }
    }

    #[test]
    fn panics_are_quoted_if_they_say_something() {
        let text = |payload: Box<dyn std::any::Any + Send>| panic_text(&*payload).to_string();
        assert_eq!(text(Box::new("static")), "static");
        assert_eq!(text(Box::new(String::from("owned"))), "owned");
        assert_eq!(text(Box::new(7)), "panic");
    }
}
