"""What benches/peers and benches/scale share: running commands, the peers, sources, rounds and the report."""

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MIB = 1 << 20
PASSPHRASE = "a passphrase for measuring only"
# The repository.
HERE = Path(__file__).resolve().parent.parent
# A command that takes longer hangs: no row takes a tenth of it on any disk worth measuring.
COMMAND_SECONDS_MAX = 1800



class Failed(Exception):
    """A peer did not do what was asked of it."""


def run(argv, *, stdin=None, env=None, timeout=COMMAND_SECONDS_MAX):
    """Runs a command to its end; its standard output. Raises Failed with what it said."""
    argv = [str(a) for a in argv]
    # Into files, not pipes: the daemons that some of these leave behind keep what they inherited open.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        feed = subprocess.DEVNULL if stdin is None else subprocess.PIPE
        # A session of its own, so that all parts of a pipeline can be ended.
        child = subprocess.Popen(argv, stdin=feed, stdout=out, stderr=err, env=env, start_new_session=True)
        try:
            child.communicate(stdin, timeout=timeout)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            # One that hangs in the kernel outlives this; the daemon's end will free it.
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(10)
            if isinstance(error, subprocess.TimeoutExpired):
                raise Failed(f"no end after {timeout} s: {' '.join(argv)}") from error
            raise
        out.seek(0)
        err.seek(0)
        said = out.read()
        if child.returncode != 0:
            lines = (err.read() or said).decode(errors="replace").strip().splitlines()
            why = " / ".join(lines[:4] + (["..."] if len(lines) > 4 else []))
            raise Failed(f"status {child.returncode}: {' '.join(argv)}: {why}")
        return said


def shell(script, *args):
    """Runs a shell pipeline in which any failure counts."""
    return run(["bash", "-c", "set -euo pipefail; " + script, "peers", *args])


def drop_caches(*commands):
    """Forgets clean pages, names and inodes of every filesystem."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")
    # The tools themselves are not what is measured.
    for tool in ("dd", "tar", "rm", "find", "cat", "fio", "bash"):
        run([tool, "--version"])
    for command in commands:
        run(command)


def sync_all(directory):
    """Makes everything durable. A FUSE filesystem is not told of sync(2): the fsync of a directory tells it."""
    os.sync()
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    os.sync()


def disk_bytes(directory):
    """What a tree takes on the disk."""
    return int(run(["du", "-s", "-B1", directory]).split()[0])


def alive(pid):
    """Whether a process still runs: one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def cpu_seconds(pid):
    """Processor time that a process has used, in user and kernel mode."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ---------------------------------------------------------------- peers


class Peer:
    """A filesystem on a directory of the disk that is measured."""

    name = "?"

    def __init__(self, base, binary):
        self.base = base / self.name
        self.back = self.base / "back"
        self.mnt = self.base / "mnt"
        self.binary = binary
        self.mounted = False
        self.rss_peak = 0
        self.mount_seconds = 0.0
        self.empty_bytes = 0

    def fresh(self):
        """Begins anew with nothing in it."""
        self.wipe()
        for directory in (self.back, self.mnt):
            directory.mkdir(parents=True, exist_ok=True)
        self.rss_peak = 0
        self.init()
        self.mount()
        self.umount()
        self.empty_bytes = disk_bytes(self.back)

    def wipe(self):
        if self.mounted:
            self.umount()
        # rmtree is slow where there are many files.
        run(["rm", "-rf", self.base])

    def init(self):
        """Prepares the backing directory."""

    def start(self):
        """Mounts; returns when the mount is usable."""

    def stop(self):
        """Unmounts; returns when the daemon has gone."""

    def pid(self):
        """The daemon."""
        return None

    def mount(self):
        # First, so that a mount that fails half way is cleaned up as well.
        self.mounted = True
        start = time.monotonic()
        self.start()
        self.mount_seconds = time.monotonic() - start

    def umount(self):
        """Unmounts and returns for how many seconds."""
        self.note_rss()
        start = time.monotonic()
        self.stop()
        self.mounted = False
        return time.monotonic() - start

    def note_rss(self):
        pid = self.pid()
        if pid is None:
            return
        with contextlib.suppress(OSError):
            found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
            if found:
                self.rss_peak = max(self.rss_peak, int(found.group(1)) * 1024)

    def abandon(self):
        """Gets rid of the mount after a failure, whatever it takes."""
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.mnt)], capture_output=True, check=False)
            pid = self.pid()
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.mounted = False

    @staticmethod
    def version():
        return ""


class Ext4(Peer):
    """Plain files in a directory of the disk: what encryption costs is seen against this."""

    name = "ext4"

    def __init__(self, base, binary):
        super().__init__(base, binary)
        self.mnt = self.back

    def stop(self):
        os.sync()

    def abandon(self):
        self.mounted = False

    @staticmethod
    def version():
        return platform.release()


class Daemon(Peer):
    """A FUSE peer whose daemon is found by the mountpoint in its arguments."""

    daemon = "?"

    def pid(self):
        wanted = str(self.mnt).encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    args = (entry / "cmdline").read_bytes().split(b"\0")
                    if wanted in args and os.path.basename(args[0]) == self.daemon.encode():
                        return int(entry.name)
        return None

    def stop(self):
        pid = self.pid()
        run(["fusermount3", "-u", self.mnt])
        deadline = time.monotonic() + 120
        while pid is not None and alive(pid):
            if time.monotonic() > deadline:
                raise Failed(f"{self.name}: the daemon does not end")
            time.sleep(0.002)


class Gocryptfs(Daemon):
    name = daemon = "gocryptfs"

    def init(self):
        run(["gocryptfs", "-q", "-init", "-scryptn", "10", self.back], stdin=f"{PASSPHRASE}\n".encode())

    def start(self):
        run(["gocryptfs", "-q", "-nosyslog", self.back, self.mnt], stdin=f"{PASSPHRASE}\n".encode())

    @staticmethod
    def version():
        return run(["gocryptfs", "--version"]).decode().split(";")[0].split()[-1]


class Encfs(Daemon):
    name = daemon = "encfs"

    def init(self):
        run(["encfs", "-S", "--standard", self.back, self.mnt], stdin=PASSPHRASE.encode())
        self.mounted = True
        self.umount()

    def start(self):
        run(["encfs", "-S", self.back, self.mnt], stdin=PASSPHRASE.encode())

    @staticmethod
    def version():
        done = subprocess.run(["encfs", "--version"], capture_output=True, check=False)
        return (done.stderr + done.stdout).decode().split("\n")[0].split()[-1]


class Strongroom(Peer):
    name = "strongroom"

    def __init__(self, base, binary):
        super().__init__(base, binary)
        self.passfile = base / "passphrase"
        self.unlock = ["--passfile", self.passfile]
        self.kdf_seconds = "0"
        self.env = {**os.environ, "STATE_DIRECTORY": str(base / "state")}
        self.daemon_pid = None

    def init(self):
        (self.base.parent / "state").mkdir(exist_ok=True)
        with open(os.open(self.passfile, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as out:
            out.write(PASSPHRASE + "\n")
        key = self.base / "recovery.txt"
        self.call("init", self.back, *self.unlock, "--recovery-key-out", key, "--kdf-time", self.kdf_seconds)

    def call(self, *args):
        return run([self.binary, *args], env=self.env)

    def start(self):
        self.call("mount", self.back, self.mnt, *self.unlock, "--log", self.base / "log")

    def mount(self):
        super().mount()
        self.daemon_pid = json.loads(self.call("status", self.back, "--json")).get("pid")

    def stop(self):
        self.call("umount", self.mnt)
        log = self.base / "log"
        said = log.read_text(errors="replace") if log.exists() else ""
        bad = [line for line in said.splitlines() if " ERROR " in line or "panicked" in line]
        if bad:
            raise Failed("the daemon logged: " + bad[0])

    def pid(self):
        return self.daemon_pid if self.mounted else None

    def version(self):
        return run([self.binary, "--version"]).decode().split()[-1]


PEERS = {peer.name: peer for peer in (Ext4, Gocryptfs, Encfs, Strongroom)}
# ---------------------------------------------------------------- sources


class Sources:
    """What is written: the same for all peers and rounds.

    A subclass has a `make_NAME(path)` for each, or a `make_NAME(path, number)` for what is called NAME-NUMBER.
    """

    def __init__(self, directory, scale):
        self.dir = directory
        self.scale = scale
        self.made = set()

    def get(self, name):
        """The source of that name; made when it is asked for first."""
        path = self.dir / name
        if name not in self.made:
            kind, _, size = name.partition("-")
            getattr(self, "make_" + kind)(path, *([int(size)] if size else []))
            self.made.add(name)
        return path

    def forget(self, name):
        """Gives back the memory that a source takes."""
        if name in self.made:
            self.made.remove(name)
            path = self.dir / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    @staticmethod
    def noise(path, size):
        """Bytes that nothing compresses or deduplicates."""
        with open(path, "wb") as out:
            for at in range(0, size, 16 * MIB):
                out.write(os.urandom(min(16 * MIB, size - at)))

    @staticmethod
    def lines(rng):
        """A pool of lines like a log's or a dump's: words, numbers, a hash now and then."""
        letters = "etaoinshrdlucmfwypvbgk"
        pool_of_words = ["".join(rng.choices(letters, k=rng.randint(2, 10))) for _ in range(6000)]
        pool = []
        for number in range(200_000):
            text = " ".join(rng.choices(pool_of_words, k=rng.randint(5, 12)))
            pool.append(f"{number:07d} {text} {rng.getrandbits(64):016x}\n")
        return pool


# ---------------------------------------------------------------- the run


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table."""

    key: str
    title: str
    unit: str
    # benches/peers: x gocryptfs; benches/scale: a Target.
    target: object = None
    # True: a small figure is the better one.
    less: bool = False
    cold: bool = False
    # Rows that write what this one works on.
    needs: tuple = ()


class Bench:
    """Rounds of rows of peers. A subclass measures one peer's turn at one row (`turn`) and shows the table."""

    title = "?"
    rows_all: tuple = ()
    peer_classes: dict = {}

    def __init__(self, options, base, sources):
        self.options = options
        self.sources = sources
        self.by_key = {row.key: row for row in self.rows_all}
        self.peers = [self.peer_classes[name](base, options.bin) for name in options.peers]
        # results[row][peer] = one figure a round (None: failed); seconds of unmounting likewise
        self.results = self.table()
        self.umounts = self.table()
        # Processor seconds of the daemon: they depend less on what else the machine does.
        self.cpu = self.table()
        # What turns add to: a round in which one of them has nothing to add gets a None.
        self.beside = [self.umounts, self.cpu]
        self.failures = []

    def table(self):
        return {row.key: {peer.name: [] for peer in self.peers} for row in self.rows_all}

    @staticmethod
    def say(text):
        print(text, file=sys.stderr, flush=True)

    def fail(self, row, peer, number, error):
        self.failures.append(f"{peer.name}, {row}, round {number + 1}: {error}")
        self.say(f"FAILED {self.failures[-1]}")
        peer.abandon()

    def wanted(self):
        """Keys of rows to run, with what they need, in order."""
        if not self.options.only:
            return [row.key for row in self.rows_all]
        keys = set(self.options.only)
        for row in reversed(self.rows_all):
            if row.key in keys:
                keys.update(row.needs)
        return [row.key for row in self.rows_all if row.key in keys]

    def in_turn(self, number):
        """The peers in the order of this round."""
        turn = number % len(self.peers)
        return self.peers[turn:] + self.peers[:turn]

    def round(self, number):
        ready = set()
        for peer in self.in_turn(number):
            try:
                with deadline(self.options.timeout):
                    peer.fresh()
                ready.add(peer)
            except (Failed, OSError) as error:
                self.fail("init", peer, number, error)
        for key in self.wanted():
            self.row_begins(self.by_key[key])
            for peer in self.in_turn(number):
                figure = None
                try:
                    with deadline(self.options.timeout):
                        figure = self.turn(self.by_key[key], peer, number) if peer in ready else None
                except (Failed, OSError) as error:
                    self.fail(key, peer, number, error)
                self.results[key][peer.name].append(figure)
                for table in self.beside:
                    table[key][peer.name].extend([None] * (number + 1 - len(table[key][peer.name])))
        for peer in self.peers:
            with deadline(self.options.timeout):
                peer.wipe()
        os.sync()

    def row_begins(self, row):
        """Called before the first peer's turn at a row."""

    def turn(self, row, peer, number):
        """One peer's turn at one row; its figure, or None where the row means nothing to this peer."""
        raise NotImplementedError

    def run(self):
        for number in range(self.options.rounds):
            self.round(number)

    def abandon(self):
        for peer in self.peers:
            peer.abandon()

    # ---- the report

    def median(self, key, peer):
        figures = [f for f in self.results[key].get(peer, []) if f is not None]
        return statistics.median(figures) if figures else None

    def ratio(self, key, against, ours="strongroom"):
        """Strongroom's figure over another's, by rounds, then the median."""
        pairs = zip(self.results[key].get(ours, []), self.results[key].get(against, []))
        ratios = [ours / theirs for ours, theirs in pairs if ours is not None and theirs]
        return statistics.median(ratios) if ratios else None

    def report_rows(self):
        """The figures as they go into the JSON file."""
        raise NotImplementedError

    def markdown(self):
        raise NotImplementedError

    def report(self):
        machine = {
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
            "kernel": platform.release(),
        }
        versions = {peer.name: peer.version() for peer in self.peers}
        return {
            "date": time.strftime("%Y-%m-%d"), "rounds": self.options.rounds, "scale": self.options.scale,
            "machine": machine, "versions": versions, "rows": self.report_rows(), "failures": self.failures,
        }


@contextlib.contextmanager
def deadline(seconds):
    """Raises Failed when what is done inside hangs: a call into a filesystem, too."""

    def late(*_):
        raise Failed(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def number_text(value):
    """A figure for the table: three digits or so are what it is good for."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def table_text(head, rows):
    """A markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in [head, *rows]]
    lines.insert(1, "|" + "---|" * len(head))
    return "\n".join(lines)


# ---------------------------------------------------------------- a script


def words(text):
    return [word for word in re.split(r"[,\s]+", text) if word]


def missing(options, bench_class, packages):
    """What has to be there first; sentences."""
    packages = {"dd": "coreutils", "find": "findutils", "tar": "tar", "cmp": "diffutils", **packages}
    if "gocryptfs" in options.peers:
        packages |= {"gocryptfs": "gocryptfs", "fusermount3": "fuse3"}
    if "encfs" in options.peers:
        packages |= {"encfs": "encfs", "fusermount3": "fuse3"}
    lacking = sorted({package for tool, package in packages.items() if shutil.which(tool) is None})
    if lacking:
        yield f"install first: apt-get install {' '.join(lacking)}"
    if os.geteuid() != 0:
        yield "run it as root: it drops caches and mounts"
    if options.peers != ["ext4"] and not Path("/dev/fuse").exists():
        yield "/dev/fuse is missing"
    if "strongroom" in options.peers and not options.bin.exists():
        yield f"{options.bin} is missing: cargo build --release, or --bin PATH"
    keys = [row.key for row in bench_class.rows_all]
    for key in options.only:
        if key not in keys:
            yield f"no row {key!r}; there are: {' '.join(keys)}"
    for peer in options.peers:
        if peer not in bench_class.peer_classes:
            yield f"no peer {peer!r}; there are: {' '.join(bench_class.peer_classes)}"


def parse(description, bench_class, rounds, peers):
    keys = " ".join(row.key for row in bench_class.rows_all)
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"rounds (default {rounds})")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the data and files; 0.1 for a try")
    parser.add_argument("--only", type=words, default=[], metavar="ROW,...",
                        help="these rows, and what they need: " + keys)
    parser.add_argument("--peers", type=words, default=peers, metavar="PEER,...",
                        help="default: " + " ".join(peers))
    parser.add_argument("--dir", type=Path, default=HERE / "target", help="where on the disk to work (default target/)")
    parser.add_argument("--bin", type=Path, default=HERE / "target/release/strongroom", help="the strongroom program")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there as well")
    parser.add_argument("--timeout", type=int, default=2 * COMMAND_SECONDS_MAX, metavar="SECONDS",
                        help="a peer's turn at a row may take so long (default %(default)s)")
    parser.add_argument("--no-verify", dest="verify", action="store_false", help="don't compare what was written")
    parser.add_argument("--keep", action="store_true", help="keep what was written after a failure")
    options = parser.parse_args()
    options.bin = options.bin.resolve()
    options.dir = options.dir.resolve()
    return options


def main(name, options, bench_class, sources_class, problems):
    """Runs a bench in a directory of its own and prints its table; exits with 1 after any failure."""
    if problems:
        sys.exit("\n".join(f"{name}: {problem}" for problem in problems))
    # End by an exception, so that mounts are cleaned up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options.dir.mkdir(parents=True, exist_ok=True)
    base = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=options.dir))
    source = base / "source"
    source.mkdir()
    run(["mount", "-t", "tmpfs", "-o", "mode=0700", f"{name}-source", source])
    bench = None
    try:
        bench = bench_class(options, base, sources_class(source, options.scale))
        bench.run()
    finally:
        if bench is not None:
            bench.abandon()
        run(["umount", source])
        if bench is None or not (bench.failures and options.keep):
            shutil.rmtree(base)
        else:
            print(f"kept: {base}", file=sys.stderr)
    report = bench.report()
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    machine = report["machine"]
    print(f"{report['date']}, {options.rounds} rounds, scale {options.scale:g}; {machine['cores']} cores, "
          f"{machine['memory_gib']} GiB, Linux {machine['kernel']}; "
          + ", ".join(f"{k} {v}" for k, v in report["versions"].items() if v and k != "ext4") + "\n")
    print(bench.markdown())
    for failure in bench.failures:
        print(f"\nFAILED {failure}")
    sys.exit(1 if bench.failures else 0)
