//! sqlite and PostgreSQL with their files on the mount: locks, mmap, fsync as the barrier, and what a kill leaves.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};

use super::{check_everywhere, mounted, need, run_at};
use crate::common::{Sandbox, kill_9, process_is_gone, wait_until};

/// Writes numbered rows; after each commit has returned, notes its number in a file outside the mount.
const SQLITE_WRITER: &str = r#"
import hashlib, os, sqlite3, sys
path, writer, first, count, ledger = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
db = sqlite3.connect(path, timeout=300, isolation_level=None)
db.execute("pragma synchronous=extra")
with open(ledger, "a") as out:
    for number in range(first, first + count):
        blob = os.urandom(100 + number * 37 % 9000)
        db.execute("begin immediate")
        db.execute("insert into rows values (?, ?, ?, ?)", (writer, number, blob, hashlib.sha256(blob).digest()))
        db.execute("update counts set n = n + 1 where writer = ?", (writer,))
        if number % 9 == 5:
            db.execute("delete from noise where id % 3 = ?", (number % 3,))
            db.executemany("insert into noise values (?, ?)", [(i, os.urandom(300)) for i in range(30)])
        db.execute("commit")
        out.write(f"{number}\n")
        out.flush()
"#;

/// Checks the whole database against the ledgers, and prints how many rows there are.
const SQLITE_CHECK: &str = r#"
import glob, hashlib, sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=300, isolation_level=None)
assert db.execute("pragma journal_mode").fetchone()[0] == sys.argv[2], db.execute("pragma journal_mode").fetchone()
assert db.execute("pragma integrity_check").fetchall() == [("ok",)], "integrity_check"
found = {}
for writer, number, blob, digest in db.execute("select * from rows order by writer, number"):
    assert hashlib.sha256(blob).digest() == digest, (writer, number)
    assert number == len(found.setdefault(writer, [])), f"writer {writer}: row {number} follows {len(found[writer])} rows"
    found[writer].append(number)
assert {w: n for w, n in db.execute("select * from counts") if n} == {w: len(n) for w, n in found.items()}
noted = 0
for ledger in glob.glob(sys.argv[3] + "/ledger-*"):
    numbers = [int(line) for line in open(ledger)]
    noted += len(numbers)
    rows = len(found.get(int(ledger.rsplit("-", 1)[1]), []))
    assert numbers and numbers[-1] < rows, f"{ledger}: {numbers[-1]} was committed, {rows} rows are there"
assert noted > 100, noted
print(sum(len(numbers) for numbers in found.values()))
"#;

fn sqlite_writer(sandbox: &Sandbox, dir: &Path, writer: u32, first: usize, count: usize) -> Child {
    let ledger = sandbox.path("ledgers").join(format!("ledger-{writer}"));
    let db = sandbox.mountpoint().join("base.db");
    sandbox
        .command("python3")
        .arg("writer.py")
        .arg(db)
        .args([writer.to_string(), first.to_string(), count.to_string()])
        .arg(ledger)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("python3 is needed by this test")
}

fn noted(sandbox: &Sandbox, writer: u32) -> usize {
    let ledger = sandbox.path("ledgers").join(format!("ledger-{writer}"));
    fs::read_to_string(ledger).map_or(0, |text| text.lines().count())
}

/// Lets a writer end, and asserts that it has done its work.
#[track_caller]
fn finish(child: Child) {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "a writer: {}", String::from_utf8_lossy(&output.stderr));
}

fn sqlite_under_kills(journal_mode: &str) {
    let sandbox = mounted();
    need(&sandbox, "python3", "python3");
    fs::write(sandbox.path("writer.py"), SQLITE_WRITER).unwrap();
    fs::write(sandbox.path("check.py"), SQLITE_CHECK).unwrap();
    fs::create_dir(sandbox.path("ledgers")).unwrap();
    let home = sandbox.path("");
    sandbox
        .sh(&format!(
            "python3 - <<'END'
import sqlite3
db = sqlite3.connect('decrypted/base.db', isolation_level=None)
assert db.execute('pragma journal_mode={journal_mode}').fetchone()[0] == '{journal_mode}'
db.execute('create table rows (writer int, number int, blob blob, digest blob, primary key (writer, number))')
db.execute('create table counts (writer int primary key, n int)')
db.execute('create table noise (id int, blob blob)')
db.executemany('insert into counts values (?, 0)', [(n,) for n in range(4)])
END
sync -f decrypted"
        ))
        .ok();
    let check = format!("python3 ~/check.py $ROOT/base.db {journal_mode} ~/ledgers");

    // A writer is killed in the middle, the others notice nothing.
    let mut killed = sqlite_writer(&sandbox, &home, 0, 0, usize::MAX >> 8);
    let others = [1, 2].map(|writer| sqlite_writer(&sandbox, &home, writer, 0, 60));
    wait_until("the first writer", || noted(&sandbox, 0) >= 25);
    killed.kill().unwrap();
    killed.wait().unwrap();
    others.into_iter().for_each(finish);
    run_at(&sandbox, &sandbox.mountpoint(), &check);

    // The mount itself is killed under two writers: whatever commit returned is there.
    let writers = [1, 2].map(|writer| sqlite_writer(&sandbox, &home, writer, 60, usize::MAX >> 8));
    wait_until("more rows", || (1..=2).all(|writer| noted(&sandbox, writer) >= 85));
    kill_9(sandbox.daemon_pid());
    for writer in writers {
        assert!(!writer.wait_with_output().unwrap().status.success(), "a writer outlived its filesystem");
    }
    sandbox.mount();
    run_at(&sandbox, &sandbox.mountpoint(), &check);

    // Life goes on, with a backup made by sqlite itself while somebody writes.
    let late = sqlite_writer(&sandbox, &home, 3, 0, 40);
    sandbox
        .sh("python3 -c \"
import sqlite3
source, target = sqlite3.connect('decrypted/base.db', timeout=300), sqlite3.connect('decrypted/backup.db')
source.backup(target, pages=20)
assert target.execute('pragma integrity_check').fetchall() == [('ok',)]
\"")
        .ok();
    finish(late);
    sandbox.sh("python3 -c \"import sqlite3; sqlite3.connect('decrypted/base.db', timeout=300).execute('vacuum')\"").ok();
    let rows = check_everywhere(&sandbox, &check);
    assert!(rows.trim().parse::<u32>().unwrap() >= 25 + 85 + 85 + 40, "{rows}");
}

#[test]
fn heavy_sqlite_with_a_write_ahead_log_keeps_what_it_committed() {
    sqlite_under_kills("wal");
}

#[test]
fn heavy_sqlite_with_a_rollback_journal_keeps_what_it_committed() {
    sqlite_under_kills("delete");
}

/// Shell functions for a PostgreSQL server whose data stands in `$ROOT/data`, and whose socket in the sandbox.
const PG: &str = r#"
    BIN=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
    [ -x "$BIN/initdb" ] || { echo "install Debian's postgresql: this test needs it" >&2; exit 1; }
    as() { setpriv --reuid=postgres --regid=postgres --init-groups env -i PATH="$BIN:/usr/bin:/bin" LC_ALL=C.UTF-8 "$@"; }
    OPTIONS="-k $PWD/run -c listen_addresses= -c shared_buffers=24MB -c max_connections=20"
    pg_start() { as pg_ctl -s -w -D $ROOT/data -l $PWD/run/log -o "$OPTIONS" start || { tail -n 30 run/log >&2; exit 1; }; }
    pg_stop() { as pg_ctl -s -w -D $ROOT/data -m fast stop; }
    sql() { as psql -X -q -A -t -v ON_ERROR_STOP=1 -h $PWD/run "$@"; }
    digest() {
        for table in accounts branches tellers history; do
            sql -d $1 -c "select md5(string_agg(t::text, ';' order by t::text)) from pgbench_$table t"
        done
    }
    consistent() {
        sql -d $1 -c "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)
            and (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history)
            and (select sum(tbalance) from pgbench_tellers) = (select sum(delta) from pgbench_history)"
    }
"#;

/// Ends a server that a failed test leaves behind.
struct Server(i32);

impl Server {
    fn running(sandbox: &Sandbox) -> Self {
        let text = fs::read_to_string(sandbox.mountpoint().join("data/postmaster.pid")).unwrap();
        Self(text.lines().next().unwrap().parse().unwrap())
    }

    /// Stops it at once, as if the power failed: nothing is written any more.
    fn stop_at_once(&self) {
        // It may have noticed already that its files are gone.
        let pid = rustix::process::Pid::from_raw(self.0).expect("a process id");
        if let Err(error) = rustix::process::kill_process(pid, rustix::process::Signal::QUIT) {
            assert_eq!(error, rustix::io::Errno::SRCH);
        }
        wait_until("the server to end", || process_is_gone(self.0));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !process_is_gone(self.0) {
            self.stop_at_once();
        }
    }
}

#[test]
fn heavy_postgresql_runs_crashes_dumps_and_restores() {
    let sandbox = mounted();
    need(&sandbox, "pgbench", "postgresql");
    need(&sandbox, "setpriv", "util-linux");
    let at = |script: &str| run_at(&sandbox, &sandbox.mountpoint(), &format!("{PG}\n{script}"));
    at(r#"
        mkdir run $ROOT/data
        chown postgres run $ROOT/data
        as initdb -D $ROOT/data --data-checksums --auth=trust --encoding=UTF8 --locale=C.UTF-8 > run/initdb.log
        pg_start
        sql -d postgres -c 'create database bench'
        as pgbench -h $PWD/run -q -i -s 1 bench 2>&1
        as pgbench -h $PWD/run -c 4 -t 50 bench 2>&1
    "#);
    let server = Server::running(&sandbox);

    // The filesystem dies under four clients, and the server with it.
    let count =
        || -> u32 { at("sql -d bench -c 'select count(*) from pgbench_history'").trim().parse().unwrap() };
    let mut clients = sandbox
        .command("bash")
        .args(["-euc", &format!("ROOT=decrypted\n{PG}\nas pgbench -n -h $PWD/run -c 4 -t 1000000 bench")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut committed = 0;
    wait_until("transactions", || {
        committed = count();
        committed >= 400
    });
    kill_9(sandbox.daemon_pid());
    server.stop_at_once();
    assert!(!clients.wait().unwrap().success(), "the clients outlived their server");
    drop(server);

    sandbox.mount();
    // It could not remove its locks: those in its data, and with a panic none at all.
    at("rm -f $ROOT/data/postmaster.pid run/.s.PGSQL*; pg_start");
    let server = Server::running(&sandbox);
    let after = count();
    assert!(after >= committed, "{committed} transactions were committed, {after} are there");
    assert_eq!(at("consistent bench"), "t\n");
    at(r#"
        as pgbench -h $PWD/run -n -c 4 -t 25 bench 2>&1
        as pg_dump -h $PWD/run bench > $ROOT/dump.sql
        as pg_dump -h $PWD/run -Fc -Z 0 bench > $ROOT/dump.custom
        sql -d postgres -c 'create database copy' -c 'create database custom'
        sql -d copy -f $ROOT/dump.sql > /dev/null
        as pg_restore -h $PWD/run -d custom < $ROOT/dump.custom
        [ "$(digest copy)" = "$(digest bench)" ]
        [ "$(digest custom)" = "$(digest bench)" ]
        pg_stop
    "#);
    drop(server);
    let said = check_everywhere(
        &sandbox,
        &format!(
            "{PG}
             as pg_checksums --check -D $ROOT/data > /dev/null
             pg_start
             trap 'as pg_ctl -s -D $ROOT/data -m immediate stop' ERR
             for base in bench copy custom; do consistent $base; digest $base; done
             # Newer versions put a random word into each dump.
             stable() {{ grep -vE '^.(un)?restrict '; }}
             as pg_dump -h $PWD/run bench | stable | cmp - <(stable < $ROOT/dump.sql)
             sha256sum < $ROOT/dump.custom
             pg_stop"
        ),
    );
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!((lines.len(), lines[0]), (16, "t"), "{said}");
    assert!(lines[..5] == lines[5..10] && lines[..5] == lines[10..15], "{said}");
}
