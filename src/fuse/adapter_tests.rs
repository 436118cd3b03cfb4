use super::*;

#[test]
fn a_panic_is_answered_with_an_error_and_poisons() {
    use crate::fs::testing::{Vault, small_config};
    let (engine, fs) = Vault::new(1, small_config()).open();
    let poison = engine.ctx.poison.clone();
    let options = AdapterOptions {
        activity: Arc::default(),
        vault: Vec::new(),
        vault_xattr: "strongroom.vault",
        poison: Box::new(move |cause| poison.set(cause)),
        snapshot: false,
    };
    let adapter = Adapter::new(fs, options);
    let inner = adapter.inner();
    let fine = inner.call(op::GETATTR, 1, ROOT, |fs| fs.getattr(ROOT));
    assert!(fine.is_ok_and(|attr| attr.ino == ROOT));
    let missing = inner.call(op::LOOKUP, 2, ROOT, |fs| fs.lookup(ROOT, b"nothing"));
    assert_eq!(missing.map(|_| ()), Err(fuser::Errno::ENOENT));
    assert!(engine.check_poison().is_ok());
    let panicked: Result<(), _> = inner.call(op::WRITE, 3, ROOT, |_| panic!("a bug"));
    assert_eq!(panicked, Err(fuser::Errno::EIO));
    assert!(engine.check_poison().is_err(), "no more writes after a panic");
    let refused = inner.call(op::MKDIR, 4, ROOT, |fs| fs.mkdir(ROOT, b"d", 0o755, 0, Caller::default()));
    assert_eq!(refused.map(|_| ()), Err(fuser::Errno::EIO));
    assert!(inner.call(op::GETATTR, 5, ROOT, |fs| fs.getattr(ROOT)).is_ok(), "reading goes on");
}
