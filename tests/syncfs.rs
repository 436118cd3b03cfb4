//! syncfs(2), which `sync -f` and the end of a backup job call, fails when anything that the kernel writes back fails.

use std::fs::{self, File};
use std::io::Write;

use crate::common::Sandbox;

/// The kernel keeps the times of a file that was written, and hands them in at its leisure: also when the file has no
/// name any more and nobody has it open.
#[test]
fn heavy_files_deleted_before_their_times_were_written_back_do_not_fail_a_sync() {
    let sandbox = Sandbox::with_vault();
    sandbox.mount();
    let [one, two, last] = ["one", "two", "last"].map(|name| sandbox.mountpoint().join(name));
    for round in 0..50 {
        let mut file = File::create(&one).unwrap();
        file.write_all(&[round; 5_000]).unwrap();
        match round % 4 {
            0 => fs::remove_file(&one).unwrap(),
            1 => {
                drop(file);
                fs::remove_file(&one).unwrap();
            }
            2 => {
                fs::hard_link(&one, &two).unwrap();
                drop(file);
                fs::remove_file(&one).unwrap();
                fs::remove_file(&two).unwrap();
            }
            // Replaced, as most programs do it.
            _ => {
                drop(file);
                fs::rename(&one, &last).unwrap();
            }
        }
        sandbox.sh("sync -f decrypted").ok();
    }
    assert_eq!(fs::read(&last).unwrap(), [47; 5_000]);
    sandbox.umount();
    sandbox.assert_clean();
}
