//! Writes the seeds of every target: `cargo run -p strongroom-fuzz --example seeds DIRECTORY` makes a folder for each.

use std::io;
use std::path::PathBuf;

fn main() -> io::Result<()> {
    let mut args = std::env::args_os().skip(1);
    let (Some(dir), None) = (args.next().map(PathBuf::from), args.next()) else {
        return Err(io::Error::other("usage: seeds DIRECTORY"));
    };
    for (target, _) in strongroom_fuzz::targets::ALL {
        let folder = dir.join(target);
        std::fs::create_dir_all(&folder)?;
        for (n, seed) in strongroom_fuzz::seeds::of(target)?.iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{n:03}")), seed)?;
        }
    }
    Ok(())
}
