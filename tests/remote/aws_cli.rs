//! What an administrator types: the AWS CLI runs the commands of contrib/iam/README.md as they stand there, so that document and
//! test can't drift. Moto answers: it makes the bucket, checks policies as it takes them, and enforces those of them that have
//! no condition. (Conditions it does not know: our own server enforces them, in `ship_iam::each_identity_*`.)

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use strongroom::remote::{Lock, LockMode, Settings};

use super::moto::Moto;
use super::{names, once, pattern};
use crate::common::{Finished, Sandbox};
use crate::ship::World;

/// What the README chooses.
const BUCKET: &str = "example-backups";
const PREFIX: &str = "web1";

/// The AWS CLI.
pub fn program() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/aws/bin/aws");
    assert!(path.exists(), "{} is missing: `./contrib/test tools` installs it", path.display());
    path
}

/// Somebody at a shell.
struct User {
    key: String,
    secret: String,
}

/// Runs a program as a user of moto does who sets nothing but where it is.
fn run(sandbox: &Sandbox, moto: &Moto, user: &User, words: &[&str], input: &str) -> Finished {
    let (tools, ours) = (program(), Path::new(env!("CARGO_BIN_EXE_strongroom")));
    let dirs = [tools.parent(), ours.parent()].map(|dir| dir.unwrap().to_str().unwrap().to_string());
    let stdin = sandbox.private_file("stdin", input.as_bytes());
    let output = sandbox
        .command(words[0])
        .env("PATH", format!("{}:{}:/usr/bin:/bin", dirs[0], dirs[1]))
        .env("AWS_ENDPOINT_URL", moto.endpoint())
        .env("AWS_ACCESS_KEY_ID", &user.key)
        .env("AWS_SECRET_ACCESS_KEY", &user.secret)
        .env("AWS_MAX_ATTEMPTS", "1")
        .stdin(fs::File::open(stdin).map(Stdio::from).unwrap())
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(&words[1..])
        .output()
        .unwrap();
    Finished {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// All commands of a document, block by block.
fn blocks(document: &str) -> Vec<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(document)).unwrap();
    let parts = text.split("```sh\n").skip(1);
    parts.map(|part| part.split_once("```").unwrap().0.to_string()).collect()
}

/// Puts something in the place of what can't be touched in a test.
#[track_caller]
fn replaced(text: &str, what: &str, by: &str) -> String {
    assert!(text.contains(what), "{what} is not in: {text}");
    text.replace(what, by)
}

#[test]
fn heavy_the_commands_of_contrib_iam_make_a_bucket_that_is_shipped_to() {
    let (world, moto) = (World::new(), Moto::start());
    let sandbox = &world.sandbox;
    let admin = User { key: "admin".into(), secret: "secret".into() };
    let blocks = blocks("contrib/iam/README.md");
    let [choose, bucket, lifecycle, identities, keys, vault] = blocks.as_slice() else {
        panic!("a block that nothing here runs: {blocks:?}")
    };
    let bash = |script: &str, input: &str| {
        run(sandbox, &moto, &admin, &["bash", "-euo", "pipefail", "-c", script], input)
    };
    let made = bash(&[choose, bucket, lifecycle, identities].map(String::as_str).concat(), "").ok();
    let answers: Vec<Value> =
        serde_json::Deserializer::from_str(&made).into_iter().collect::<Result<_, _>>().unwrap();

    // The bucket is as the document says.
    let aws = |words: &[&str]| {
        run(sandbox, &moto, &admin, &[&["aws", "--region", "eu-central-1"], words].concat(), "")
    };
    let ask = |what: &str| aws(&["s3api", what, "--bucket", BUCKET]).json();
    assert_eq!(ask("get-bucket-versioning")["Status"], "Enabled");
    // No default retention.
    let lock = ask("get-object-lock-configuration");
    assert_eq!(lock, json!({"ObjectLockConfiguration": {"ObjectLockEnabled": "Enabled"}}));
    let access = ask("get-public-access-block")["PublicAccessBlockConfiguration"].clone();
    let access = access.as_object().unwrap();
    assert!(access.len() == 4 && access.values().all(|set| *set == true), "{access:?}");
    let owner = ask("get-bucket-ownership-controls");
    assert_eq!(owner["OwnershipControls"]["Rules"], json!([{"ObjectOwnership": "BucketOwnerEnforced"}]));
    let rules = ask("get-bucket-lifecycle-configuration")["Rules"].clone();
    assert_eq!(rules.as_array().map(Vec::len), Some(2), "{rules}");
    assert_eq!(rules[0]["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"], 7, "{rules}");
    assert_eq!(rules[1]["NoncurrentVersionExpiration"]["NoncurrentDays"], 90, "{rules}");
    assert_eq!(rules[1]["Expiration"], json!({"ExpiredObjectDeleteMarker": true}), "never by age: {rules}");

    // The policies are those of the files, with nothing left to fill in. Moto takes no policy that is none.
    for who in ["ship", "restore", "extend", "prune"] {
        let name = format!("strongroom-{PREFIX}-{who}");
        let arn = format!("arn:aws:iam::123456789012:policy/{name}");
        assert!(answers.iter().any(|answer| answer["Policy"]["Arn"] == arn), "{answers:?}");
        let attached = aws(&["iam", "list-attached-user-policies", "--user-name", &name]).json();
        assert_eq!(attached["AttachedPolicies"][0]["PolicyArn"], arn);
        let version = aws(&["iam", "get-policy-version", "--policy-arn", &arn, "--version-id", "v1"]).json();
        let file = format!("contrib/iam/{who}.json");
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
        let text = text.replace("BUCKET", BUCKET).replace("PREFIX", PREFIX).replace("MAXDAYS", "35");
        let text = text.replace("LOCKMODE", "GOVERNANCE");
        let wanted: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(version["PolicyVersion"]["Document"], wanted, "{who}");
    }
    let broken = [
        "--policy-name",
        "x",
        "--policy-document",
        r#"{"Version": "2012-10-17", "Statement": [{"Effect": "Allow"}]}"#,
    ];
    let refused = aws(&[&["iam", "create-policy"], &broken[..]].concat());
    assert!(refused.code != 0 && refused.stderr.contains("MalformedPolicyDocument"), "{refused:?}");

    // The credentials go into the file, and the vault goes to the bucket.
    let user = |who: &str| {
        let name = format!("strongroom-{PREFIX}-{who}");
        let key = answers.iter().map(|answer| &answer["AccessKey"]).find(|key| key["UserName"] == name);
        let text = |field: &str| key.unwrap()[field].as_str().unwrap().to_string();
        User { key: text("AccessKeyId"), secret: text("SecretAccessKey") }
    };
    let (shipper, restorer) = (user("ship"), user("restore"));
    world.snapshot("one", &pattern(200_000, 1));
    let file = sandbox.str("strongroom-ship");
    let keys = replaced(keys, "/etc/strongroom-ship", &file);
    let vault = replaced(vault, "/etc/strongroom-ship", &file);
    let vault = replaced(&vault, "/encrypted", world.vault());
    // Moto shortens locks (see moto_lock), which is found out here.
    let vault = replaced(&vault, "safe      #", "safe || echo \"status $?\" #");
    let typed = format!("{}\n{}\n", shipper.key, shipper.secret);
    let shipped = bash(&[choose.as_str(), &keys, &vault].concat(), &typed).ok();
    let bad: Vec<&str> = shipped.lines().filter(|line| line.starts_with("BAD")).collect();
    assert!(bad.len() == 1 && bad[0].contains("no-shortening") && shipped.contains("status 25"), "{shipped}");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains(&format!("aws_access_key_id = {}\n", shipper.key)), "{text}");
    let lock = Some(Lock { mode: LockMode::Governance, days: 30 });
    let settings = Settings { url: format!("s3://{BUCKET}/{PREFIX}"), lock, ..moto.settings() };
    let remote = strongroom::remote::open(&settings, &once()).unwrap();
    let there = names(remote.as_ref(), "");
    assert!(there.len() >= 5, "{there:?}");
    for name in &there {
        let mode = moto.header(&format!("{BUCKET}/{PREFIX}/{name}"), "x-amz-object-lock-mode");
        assert_eq!(mode.as_deref(), Some("GOVERNANCE"), "{name}");
    }

    // From here on moto looks at signatures and policies. Nobody but the administrator may delete, and who restores only reads.
    let made =
        aws(&["iam", "create-access-key", "--user-name", &format!("strongroom-{PREFIX}-prune")]).json();
    let text = |field: &str| made["AccessKey"][field].as_str().unwrap().to_string();
    let pruner = User { key: text("AccessKeyId"), secret: text("SecretAccessKey") };
    let locked = there.iter().find(|name| name.starts_with("packs/")).unwrap();
    let (ours, free) = (format!("{PREFIX}/{locked}"), format!("{PREFIX}/free"));
    for at in [&free, "other/vault"] {
        assert_eq!(moto.http("PUT", &format!("{BUCKET}/{at}"), &[], b"not locked").0, 200);
    }
    assert_eq!(moto.http("POST", "moto-api/reset-auth", &[], b"0").0, 200);
    let out = sandbox.str("out");
    let may = |who: &User, verb: &str, at: &str, file: &[&str]| {
        let words = ["aws", "--region", "eu-central-1", "s3api", verb, "--bucket", BUCKET, "--key", at];
        let done = run(sandbox, &moto, who, &[&words[..], file].concat(), "");
        assert!(done.code == 0 || done.stderr.contains("(AccessDenied)"), "{verb} {at}: {done:?}");
        done.code == 0
    };
    let thief = User { key: restorer.key.clone(), secret: "guessed".into() };
    let guess = run(
        sandbox,
        &moto,
        &thief,
        &["aws", "--region", "x", "s3api", "get-object", "--bucket", BUCKET, "--key", &ours, &out],
        "",
    );
    assert!(guess.stderr.contains("(SignatureDoesNotMatch)"), "moto looks: {guess:?}");
    assert!(may(&restorer, "get-object", &ours, &[&out]));
    assert_eq!(fs::read(&out).unwrap(), fs::read(sandbox.vault().join(locked)).unwrap());
    assert!(!may(&restorer, "get-object", "other/vault", &[&out]));
    assert!(!may(&restorer, "put-object", &free, &["--body", &out]));
    assert!(!may(&restorer, "delete-object", &free, &[]));
    assert!(may(&shipper, "get-object", &ours, &[&out]));
    assert!(!may(&shipper, "delete-object", &free, &[]), "not even what is not locked");
    assert!(!may(&pruner, "put-object", &free, &["--body", &out]));
    assert!(may(&pruner, "delete-object", &free, &[]));
}
