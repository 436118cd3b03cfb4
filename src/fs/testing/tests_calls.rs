//! Single calls whose answer no model decides.

use super::super::SetAttr;
use super::{ALICE, Caller, Vault, close, small_config};
use crate::format::tree::FileType;
use crate::store::records::ROOT_INO;

/// A new owner takes set-user-id away from everything but a directory: devices and fifos too.
#[test]
fn chown_clears_set_user_id_of_everything_but_directories() {
    let vault = Vault::new(21, small_config());
    let (engine, fs) = vault.open();
    let set = SetAttr { uid: Some(7), gid: Some(8), ..SetAttr::default() };
    for (n, kind) in [FileType::File, FileType::Fifo, FileType::Socket, FileType::CharDev, FileType::BlockDev]
        .into_iter()
        .enumerate()
    {
        for (mode, should) in [(0o6755, 0o755), (0o2644, 0o2644), (0o4600, 0o600), (0o1777, 0o1777)] {
            let name = format!("{n}-{mode:o}");
            let made = fs.mknod(ROOT_INO, name.as_bytes(), kind, mode, 0, (1, 3), ALICE).unwrap();
            let is = fs.setattr(made.ino, set, None, Caller::default()).unwrap();
            assert_eq!((is.mode, is.uid, is.gid), (should, 7, 8), "{kind:?} {mode:o}");
        }
    }
    let dir = fs.mkdir(ROOT_INO, b"dir", 0o755, 0, ALICE).unwrap().ino;
    let all = SetAttr { mode: Some(0o6755), ..SetAttr::default() };
    fs.setattr(dir, all, None, Caller::default()).unwrap();
    assert_eq!(fs.setattr(dir, set, None, Caller::default()).unwrap().mode, 0o6755);
    close(&engine, fs);
}
