//! Shipping while snapshots are deleted, garbage is collected, and somebody deletes at the remote.

use std::fs;
use std::sync::{Arc, Mutex};

use strongroom::disk::{Disk, RealDisk};
use strongroom::format::pack::pack_path;
use strongroom::remote::{self, FaultyRemote, Op, Remote, Settings};
use strongroom::ship::{Jobs, ShipOptions, Stop, Watched, ship};
use strongroom::snapshot::chain::Chain;
use strongroom::store::header;

use crate::remote::{once, pattern};
use crate::ship::{World, files, newest_complete, ship_to};

fn usb(world: &World) -> Arc<dyn Remote> {
    remote::open(&Settings { url: world.usb_url(), ..Settings::default() }, &once()).unwrap()
}

fn chain(disk: &dyn Disk) -> Chain {
    Chain::load(disk, &header::load(disk).unwrap().parsed.header).unwrap()
}

/// At each request in turn a snapshot is deleted and garbage is collected: what is left arrives, and what is there is whole.
#[test]
fn a_snapshot_that_is_deleted_meanwhile_is_no_failure() {
    let world = World::new();
    // Argon2 would be most of what this takes.
    world.sandbox.private_file("key", &[7; 64]);
    let key = world.sandbox.str("key");
    world.sandbox.keyed(&["key", "add", world.vault(), "--new-keyfile", &key]).ok();
    for n in 1..4_u8 {
        fs::write(world.sandbox.path("source/file"), pattern(60_000, n)).unwrap();
        world.cli(&["import", world.vault(), &world.sandbox.str("source"), "--keyfile", &key]).ok();
    }
    world.sandbox.sh("cp -r encrypted base").ok();
    for (n, victim) in (1..).zip(["1", "2", "3"].into_iter().cycle()) {
        world.sandbox.sh("rm -rf encrypted usb state && cp -r base encrypted && mkdir usb").ok();
        let did = Arc::new(Mutex::new(false));
        let (flag, key, sandbox) = (Arc::clone(&did), key.clone(), &world.sandbox);
        let delete = |args: &[&str]| {
            let mut command = sandbox.strongroom();
            command.args(args).args(["--keyfile", &key, "-q"]);
            command
        };
        let mut commands =
            [delete(&["snapshot", "delete", world.vault(), victim]), delete(&["gc", world.vault()])];
        let between: Arc<dyn Remote> = {
            let commands = Mutex::new(
                commands
                    .each_mut()
                    .map(|command| std::mem::replace(command, std::process::Command::new("true"))),
            );
            Arc::new(FaultyRemote::new(usb(&world), move |at, _, _| {
                if at == n {
                    *flag.lock().unwrap() = true;
                    for command in commands.lock().unwrap().iter_mut() {
                        assert!(command.status().unwrap().success());
                    }
                }
                None
            }))
        };
        let ended = ship_to(&world.disk(), &between, None);
        assert!(ended.is_ok(), "request {n}, snapshot {victim}: {:?}", ended.unwrap_err());
        let there = RealDisk::open(&world.usb()).unwrap();
        assert!(chain(&there).is_whole(), "request {n}: {:?}", chain(&there).problems());
        assert!(newest_complete(&world.usb()) > 0, "request {n}");
        ship_to(&world.disk(), &usb(&world), None).unwrap();
        let shipped = files(&world.usb());
        assert!(files(&world.sandbox.vault()).iter().all(|file| shipped.contains(file)), "request {n}");
        if !*did.lock().unwrap() {
            assert!(n > 12, "{n} requests");
            break;
        }
    }
}

/// Somebody deletes a pack at the remote while this process believes that it is there: a snapshot that needs it is not shipped
/// on belief, and it is an alarm.
#[test]
fn a_pack_that_is_gone_there_is_sent_again_before_a_snapshot_needs_it() {
    let world = World::new();
    world.snapshot("one", &pattern(100_000, 1));
    let lists = Arc::new(Mutex::new(0));
    let count = Arc::clone(&lists);
    let remote: Arc<dyn Remote> = Arc::new(FaultyRemote::new(usb(&world), move |_, op, name| {
        *count.lock().unwrap() += u64::from(op == Op::List && name == "packs/");
        None
    }));
    let watched = Arc::new(Watched::new(Arc::new(Stop::new().unwrap())));
    let options = ShipOptions { jobs: Jobs::Fixed(1), watched: Some(watched), ..ShipOptions::default() };
    let cursor = ship(&world.disk(), &remote, None, &options, &|_| {}).unwrap().1;
    let needed = chain(world.disk().as_ref()).needed_packs(1).unwrap();
    let gone = world.usb().join(pack_path(needed.first().unwrap()));
    fs::remove_file(&gone).unwrap();
    world.snapshot("two", &pattern(100_000, 2));
    let (report, cursor) = ship(&world.disk(), &remote, cursor.as_ref(), &options, &|_| {}).unwrap();
    assert!(gone.exists() && newest_complete(&world.usb()) == 2);
    assert_eq!(report.gone_there_names, [pack_path(needed.first().unwrap())]);
    assert!(report.is_alarming());
    // Where nothing but packs goes ahead, what is known is enough.
    let before = *lists.lock().unwrap();
    let (report, _) = ship(&world.disk(), &remote, cursor.as_ref(), &options, &|_| {}).unwrap();
    assert_eq!(report.gone_there, 0);
    assert_eq!(*lists.lock().unwrap(), before);
    world.restores(&world.usb());
}
