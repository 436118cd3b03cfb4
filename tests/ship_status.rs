//! `status` says how the remotes of a vault stand, without asking them.

use std::fs;

use serde_json::Value;

use crate::remote::pattern;
use crate::ship::{World, files};

/// The remote of this name, and the status of the command.
fn remote(world: &World, name: &str) -> (i32, Value) {
    let done = world.cli(&["status", world.vault(), "--json"]);
    let status: Value = serde_json::from_str(&done.stdout).unwrap_or_else(|e| panic!("{e}: {done:?}"));
    let remotes = status["remotes"].as_array().unwrap();
    assert!(
        remotes.iter().all(|remote| remote.as_object().unwrap().len() == 12),
        "all members, always: {status}"
    );
    (done.code, remotes.iter().find(|remote| remote["name"] == name).unwrap().clone())
}

#[test]
fn each_remote_is_shown_as_it_was_left() {
    let world = World::new();
    world.snapshot("one", &pattern(300_000, 1));
    let (code, usb) = remote(&world, "usb");
    assert_eq!(
        (code, &usb["shipped"], &usb["complete"], &usb["error"]),
        (0, &Value::Null, &Value::Null, &Value::Null)
    );
    let packs = files(&world.sandbox.vault()).into_iter().filter(|(name, _)| name.starts_with("packs/"));
    let (count, bytes) = packs.fold((0, 0), |(count, bytes), (_, pack)| (count + 1, bytes + pack.len()));
    assert_eq!(usb["behind"], serde_json::json!({ "snapshots": 1, "packs": count, "bytes": bytes }));
    // One that fails beside one that does not.
    let away = format!("file://{}", world.sandbox.str("away"));
    world.cli(&["remote", "add", world.vault(), "away", &away]).ok();
    world.cli(&["ship", world.vault()]).fails(24);
    let (code, usb) = remote(&world, "usb");
    assert_eq!((code, &usb["complete"], &usb["newest"]), (24, &1.into(), &1.into()));
    assert_eq!(usb["behind"], serde_json::json!({ "snapshots": 0, "packs": 0, "bytes": 0 }));
    assert!(usb["shipped"] == usb["tried"] && usb["shipped"].as_str().unwrap().ends_with('Z'), "{usb}");
    let (_, away) = remote(&world, "away");
    assert!(
        away["error"].as_str().unwrap().contains("is the disk mounted?") && away["shipped"].is_null(),
        "{away}"
    );
    assert_eq!((&away["behind"]["snapshots"], &away["is_alarm"]), (&1.into(), &false.into()));
    // Behind by what is new.
    world.snapshot("two", &pattern(200_000, 2));
    let before = usb;
    let (_, usb) = remote(&world, "usb");
    let behind = usb["behind"]["bytes"].as_u64().unwrap();
    assert!(usb["behind"]["snapshots"] == 1 && (1..bytes as u64).contains(&behind), "{usb}");
    assert_eq!((&usb["shipped"], &usb["complete"]), (&before["shipped"], &1.into()));
    // A dry run changes nothing of it; nor does deleting what is there in full.
    world.cli(&["ship", world.vault(), "--to", "usb", "--dry-run"]).ok();
    assert_eq!(remote(&world, "usb").1, usb);
    // An alarm.
    let (name, mut bytes) =
        files(&world.usb()).into_iter().find(|(name, _)| name.starts_with("packs/")).unwrap();
    bytes[40] ^= 1;
    fs::write(world.usb().join(&name), &bytes).unwrap();
    world.cli(&["ship", world.vault(), "--to", "usb", "--verify"]).fails(25);
    let (code, usb) = remote(&world, "usb");
    assert_eq!((code, &usb["is_alarm"], &usb["complete"]), (25, &true.into(), &2.into()), "{usb}");
    assert!(
        usb["damaged_there"] == 1 && usb["verified"].is_string() && usb["wrong"] == serde_json::json!([])
    );
    assert!(remote(&world, "away").1["error"].is_string(), "one hides nothing of another");
    let said = world.cli(&["status", world.vault()]);
    for text in [
        "remote usb: snapshot 2 is complete there",
        "nothing is missing",
        "1 objects there are not",
        "remote away: nothing was shipped",
        "behind by 2 snapshots, ",
    ] {
        assert!(said.stdout.contains(text), "{text}: {said:?}");
    }
    // What can't be known of one is said with it.
    fs::write(world.sandbox.vault().join("live/remotes/away.last.json"), "{").unwrap();
    let (code, away) = remote(&world, "away");
    assert!(
        code == 25 && away["error"].as_str().unwrap().contains("away.last.json can't be understood"),
        "{away}"
    );
    world.cli(&["ship", world.vault(), "--to", "usb"]).fails(25);
    bytes[40] ^= 1;
    fs::write(world.usb().join(&name), &bytes).unwrap();
    // A shipment looks again at what was damaged, and at nothing else. Only a verification knows of everything.
    world.cli(&["ship", world.vault(), "--to", "usb"]).ok();
    let (code, usb) = remote(&world, "usb");
    assert_eq!((code, &usb["damaged_there"], &usb["wrong"]), (25, &1.into(), &serde_json::json!([])));
    world.cli(&["ship", world.vault(), "--to", "usb", "--verify"]).ok();
    let (code, usb) = remote(&world, "usb");
    assert_eq!((code, &usb["damaged_there"], &usb["is_alarm"]), (24, &0.into(), &false.into()));
    world.cli(&["ship", world.vault(), "--to", "away"]).fails(24);
    assert!(remote(&world, "away").1["error"].as_str().unwrap().contains("is the disk mounted?"));
    // Of another place under this name nothing is known.
    world.cli(&["remote", "remove", world.vault(), "away"]).ok();
    fs::create_dir(world.sandbox.path("new")).unwrap();
    let new = format!("file://{}", world.sandbox.str("new"));
    world.cli(&["remote", "add", world.vault(), "usb", &new, "--replace"]).ok();
    let (code, usb) = remote(&world, "usb");
    assert_eq!((code, &usb["shipped"], &usb["behind"]["snapshots"]), (0, &Value::Null, &2.into()));
}

/// The snapshot that was shipped last is deleted here: what is older is there as well.
#[test]
fn what_was_deleted_here_is_not_missing_there() {
    let world = World::new();
    for n in 1..4_u8 {
        world.snapshot(&format!("file{n}"), &pattern(100_000, n));
        if n == 2 {
            world.ship();
        }
    }
    let before = remote(&world, "usb").1["behind"]["bytes"].as_u64().unwrap();
    world.sandbox.keyed(&["snapshot", "delete", world.vault(), "2"]).ok();
    let (code, usb) = remote(&world, "usb");
    let after = usb["behind"]["bytes"].as_u64().unwrap();
    assert!(code == 0 && usb["behind"]["snapshots"] == 1, "{usb}");
    // Of what only the deleted one has, nothing is known here any more.
    assert!(after >= before && after < before + 250_000, "{before}, {after}");
}
