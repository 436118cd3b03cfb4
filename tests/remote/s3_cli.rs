//! What the flags of `remote add` for S3 do, through the program.

use std::fs;
use std::process::Stdio;

use super::s3_server::{ACCESS_KEY, SECRET_KEY, Server};
use super::{pattern, private_file};
use crate::common::Finished;
use crate::ship::{World, files};

const URL: &str = "s3://backups/some/vault";
/// A key of KMS.
const KMS_KEY: &str = "arn:aws:kms:eu-central-1:111122223333:key/strongroom";

struct Bucket {
    world: World,
    server: Server,
}

impl Bucket {
    fn new() -> Self {
        let world = World::new();
        world.cli(&["remote", "remove", world.vault(), "usb"]).ok();
        world.snapshot("one", &pattern(200_000, 1));
        private_file(
            &world.sandbox.path("keys"),
            &format!("[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"),
        );
        Self { world, server: Server::start() }
    }

    fn add(&self, more: &[&str]) {
        let endpoint = self.server.endpoint();
        let add = ["remote", "add", self.world.vault(), "s3", URL, "--endpoint", &endpoint, "--path-style"];
        let add = [&add[..], &["--region", "eu-central-1", "--replace"], more].concat();
        self.world.cli(&add).ok();
    }

    /// As a service that systemd starts with its credentials in a directory.
    fn with_credentials(&self, dir: Option<&str>, args: &[&str]) -> Finished {
        let mut command = self.world.sandbox.strongroom();
        command.args(args).stdin(Stdio::null()).env_remove("CREDENTIALS_DIRECTORY");
        command.envs(dir.map(|dir| ("CREDENTIALS_DIRECTORY", self.world.sandbox.path(dir))));
        Finished::new(&command.output().unwrap())
    }
}

/// systemd's LoadCredential=s3-keys:FILE makes a file s3-keys in a directory that only the service sees.
#[test]
fn keys_of_s3_come_from_a_systemd_credential() {
    let bucket = Bucket::new();
    let (world, server) = (&bucket.world, &bucket.server);
    bucket.add(&["--s3-credential", "s3-keys"]);
    let ship = ["ship", world.vault(), "--to", "s3"];
    let said = bucket.with_credentials(None, &ship).fails(24);
    assert!(said.contains("s3-keys was not passed") && said.contains("LoadCredential="), "{said}");
    fs::create_dir(world.sandbox.path("credentials")).unwrap();
    let said = bucket.with_credentials(Some("credentials"), &ship).fails(24);
    assert!(said.contains("credentials/s3-keys: No such file"), "{said}");
    assert!(server.keys().is_empty());
    fs::rename(world.sandbox.path("keys"), world.sandbox.path("credentials/s3-keys")).unwrap();
    bucket.with_credentials(Some("credentials"), &ship).ok();
    assert!(server.stored("some/vault/vault.json").is_some());
    // Its name is kept, never what is in it.
    let listed = world.cli(&["remote", "list", world.vault(), "--json"]).json();
    assert_eq!(listed[0]["credential"], "s3-keys", "{listed}");
    let settings = fs::read_to_string(world.sandbox.vault().join("live/remotes.json")).unwrap();
    assert!(settings.contains("s3-keys") && !settings.contains(SECRET_KEY), "{settings}");
    // Who clones has the same flag.
    let (endpoint, copy) = (server.endpoint(), world.sandbox.str("copy"));
    let clone = ["clone", URL, &copy, "--endpoint", &endpoint, "--path-style", "--region", "eu-central-1"];
    bucket
        .with_credentials(Some("credentials"), &[&clone[..], &["--s3-credential", "s3-keys"]].concat())
        .ok();
    assert_eq!(files(&world.sandbox.path("copy")), files(&world.sandbox.vault()));
}

#[test]
fn storage_class_and_encryption_are_what_the_flags_say() {
    let bucket = Bucket::new();
    let (world, server) = (&bucket.world, &bucket.server);
    let keys = world.sandbox.str("keys");
    bucket.add(&[
        "--credentials-file",
        &keys,
        "--storage-class",
        "STANDARD_IA",
        "--sse",
        "aws:kms",
        "--sse-kms-key-id",
        KMS_KEY,
    ]);
    world.cli(&["ship", world.vault(), "--to", "s3"]).ok();
    let mut packs = 0;
    for name in server.keys() {
        let version = server.versions(&name).pop().unwrap();
        let is_pack = name.starts_with("some/vault/packs/");
        packs += usize::from(is_pack);
        assert_eq!(version.storage_class.as_deref(), is_pack.then_some("STANDARD_IA"), "packs only: {name}");
        assert_eq!(
            (version.sse.as_deref(), version.sse_kms_key_id.as_deref()),
            (Some("aws:kms"), Some(KMS_KEY))
        );
    }
    assert!(packs > 0 && server.keys().len() > packs + 2, "packs, a snapshot, two headers");
    let listed = world.cli(&["remote", "list", world.vault(), "--json"]).json();
    let said = ["storage_class", "sse", "sse_kms_key_id"].map(|name| listed[0][name].as_str());
    assert_eq!(said, [Some("STANDARD_IA"), Some("aws:kms"), Some(KMS_KEY)], "{listed}");
    // And nothing is asked for where nothing is said.
    let bucket = Bucket::new();
    bucket.add(&["--credentials-file", &bucket.world.sandbox.str("keys")]);
    bucket.world.cli(&["ship", bucket.world.vault(), "--to", "s3"]).ok();
    for name in bucket.server.keys() {
        let version = bucket.server.versions(&name).pop().unwrap();
        assert_eq!(
            (version.storage_class, version.sse, version.sse_kms_key_id),
            (None, None, None),
            "{name}"
        );
    }
}
