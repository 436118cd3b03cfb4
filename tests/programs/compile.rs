//! cargo and the compilers behind it: small writes, renames, hard links, mmap, mtimes that decide what is rebuilt.

use std::path::PathBuf;

use super::{mounted, need, run_at};

#[test]
fn heavy_cargo_builds_a_crate_once() {
    let sandbox = mounted();
    need(&sandbox, "cc", "gcc");
    // The toolchain that runs this test, not whatever a proxy would choose or download.
    let cargo = PathBuf::from(std::env::var_os("CARGO").expect("cargo tells its tests where it is"));
    let rustc = cargo.with_file_name("rustc");
    assert!(rustc.exists(), "no rustc beside {}", cargo.display());
    let cargo = format!(
        "export CARGO_HOME=~/cargo RUSTC={} CARGO_INCREMENTAL=1
         cd $ROOT/project
         cargo() {{ {} \"$@\" --offline 2>&1; }}",
        rustc.display(),
        cargo.display()
    );
    run_at(
        &sandbox,
        &sandbox.mountpoint(),
        r#"
            mkdir -p $ROOT/project/src $ROOT/project/parts/src
            cd $ROOT/project
            cat > Cargo.toml <<'END'
[package]
name = "hello"
version = "0.1.0"
edition = "2021"
[dependencies]
parts = { path = "parts" }
[workspace]
END
            printf '[package]\nname = "parts"\nversion = "0.1.0"\nedition = "2021"\n' > parts/Cargo.toml
            echo 'pub fn word() -> &'"'static str { \"first\" }" > parts/src/lib.rs
            echo 'fn main() { println!("{} {}", parts::word(), env!("CARGO_PKG_VERSION")); }' > src/main.rs
            cat > build.rs <<'END'
fn main() { println!("cargo::rerun-if-changed=build.rs"); }
END
        "#,
    );
    let at = |script: &str| run_at(&sandbox, &sandbox.mountpoint(), &format!("{cargo}\n{script}"));
    let said = at("cargo build; target/debug/hello");
    assert!(said.contains("Compiling hello") && said.ends_with("first 0.1.0\n"), "{said}");
    let said = at("cargo build");
    assert!(
        said.contains("Finished") && !said.contains("Compiling"),
        "the second build did something: {said}"
    );

    sandbox.umount();
    sandbox.assert_clean();
    sandbox.mount();
    let said = at("cargo build; target/debug/hello");
    assert!(
        !said.contains("Compiling") && said.ends_with("first 0.1.0\n"),
        "a build after a remount: {said}"
    );
    // An incremental build on what the remounted vault holds.
    let said = at("sed -i s/first/second/ parts/src/lib.rs; cargo build; target/debug/hello");
    assert!(said.contains("Compiling parts") && said.ends_with("second 0.1.0\n"), "{said}");
    let said = at("cargo build");
    assert!(!said.contains("Compiling"), "{said}");

    sandbox.umount();
    sandbox.assert_clean();
    sandbox.keyed(&["restore", sandbox.vault_str(), "--to", &sandbox.str("restored")]).ok();
    assert_eq!(
        run_at(&sandbox, &sandbox.path("restored"), "$ROOT/project/target/debug/hello"),
        "second 0.1.0\n"
    );
}
