//! fsck.strongroom
fn main() {}
