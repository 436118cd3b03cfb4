//! What strace saw, as changes to the directories of a vault and of its host's state.
//!
//! Whatever changes a file there in a way that is not understood here is an error: the test must not overlook it.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;

/// Calls that strace has to show: all that can change a file, and io_uring, through which that could be hidden.
pub const CALLS: &str = "open,openat,openat2,creat,write,pwrite64,writev,pwritev,pwritev2,ftruncate,truncate,fallocate,\
    rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,rmdir,mkdir,mkdirat,mknod,mknodat,fsync,\
    fdatasync,sync,syncfs,sync_file_range,copy_file_range,sendfile,splice,io_uring_setup,io_submit";

/// A change, with paths relative to the directory that holds vault and state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Opened so that it is made if it is missing.
    Create(String),
    Write(String, u64, Arc<Vec<u8>>),
    SetLen(String, u64),
    Rename(String, String),
    Unlink(String),
    Mkdir(String),
    /// fsync or fdatasync of a file or directory.
    Sync(String),
    /// A line that the test had written, not in those directories.
    Mark(u64),
}

/// A call that succeeded: lines of the trace at which it began and at which it had returned.
#[derive(Clone, Debug)]
pub struct Event {
    pub begin: usize,
    pub end: usize,
    pub op: Op,
}

/// Reads a trace. `root` is the directory that holds the two directories named `parts`.
pub fn read(trace: &Path, root: &Path, parts: &[&str]) -> Result<Vec<Event>, String> {
    let file = fs::File::open(trace).map_err(|e| format!("{}: {e}", trace.display()))?;
    let reader = Reader { root: format!("{}/", root.display()), parts: parts.to_vec() };
    let mut begun: HashMap<String, (usize, String)> = HashMap::new();
    let mut events = Vec::new();
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(|e| format!("line {number}: {e}"))?;
        let (pid, rest) = line.split_once(' ').ok_or_else(|| format!("line {number} has no process"))?;
        let rest = rest.trim_start();
        if rest.starts_with("+++") || rest.starts_with("---") {
            continue;
        }
        if let Some(head) = rest.strip_suffix(" <unfinished ...>") {
            begun.insert(pid.to_string(), (number, head.to_string()));
            continue;
        }
        let (begin, call) = match rest.strip_prefix("<... ") {
            Some(tail) => {
                let (begin, head) =
                    begun.remove(pid).ok_or_else(|| format!("line {number} resumes nothing"))?;
                let tail = tail.split_once(" resumed>").ok_or_else(|| format!("line {number}: {tail}"))?.1;
                (begin, head + tail)
            }
            None => (number, rest.to_string()),
        };
        let op = reader
            .parse(&call)
            .map_err(|e| format!("line {number}: {e}: {}", call.chars().take(400).collect::<String>()))?;
        events.extend(op.map(|op| Event { begin, end: number, op }));
    }
    // Killed in the middle of a call: whether it was done is not known.
    for (number, call) in begun.values() {
        if reader.parse(&format!("{call}) = 0")).is_ok_and(|op| op.is_some()) {
            return Err(format!("line {number}: this call never returned: {call:.200}"));
        }
    }
    events.sort_by_key(|event| event.end);
    Ok(events)
}

struct Reader<'a> {
    root: String,
    parts: Vec<&'a str>,
}

impl Reader<'_> {
    /// The change that a call made; `None` if it made none where it matters.
    fn parse(&self, call: &str) -> Result<Option<Op>, String> {
        let (name, rest) = call.split_once('(').ok_or("no call")?;
        let (args, result) = rest.rsplit_once(" = ").ok_or("no result")?;
        let args = args.trim_end().strip_suffix(')').ok_or("no end of arguments")?;
        let failed = result.starts_with('-') || result.starts_with('?');
        if matches!(name, "io_uring_setup" | "io_submit") && !failed {
            return Err("I/O that can't be seen".into());
        }
        if failed {
            return Ok(None);
        }
        let args = split_args(args);
        let fd = |n: usize| self.path(fd_path(args.get(n).copied().unwrap_or("")).as_deref());
        let number = |n: usize| -> Result<u64, String> {
            args.get(n).and_then(|arg| arg.parse().ok()).ok_or_else(|| format!("argument {n} is no number"))
        };
        let at = |dir: usize, name: usize| -> Option<String> {
            let name = string(args.get(name)?)?;
            let name = String::from_utf8(name).ok()?;
            if name.starts_with('/') {
                return self.path(Some(&name));
            }
            self.path(Some(&format!("{}/{name}", fd_path(args.get(dir)?)?)))
        };
        let absolute = |n: usize| {
            let name = args.get(n).and_then(|arg| string(arg)).and_then(|name| String::from_utf8(name).ok());
            self.path(name.as_deref().filter(|name| name.starts_with('/')))
        };
        let op = match name {
            "openat" | "openat2" if args.get(2).is_some_and(|flags| flags.contains("O_TRUNC")) => {
                return match at(0, 1) {
                    Some(path) => Err(format!("{path} is truncated by opening it")),
                    None => Ok(None),
                };
            }
            "openat" | "openat2" if args.get(2).is_some_and(|flags| flags.contains("O_CREAT")) => {
                at(0, 1).map(Op::Create)
            }
            "openat" | "openat2" => None,
            "open" if args.get(1).is_some_and(|flags| flags.contains("O_CREAT")) => {
                absolute(0).map(Op::Create)
            }
            "open" => None,
            "pwrite64" => match fd(0) {
                None => None,
                Some(path) => {
                    let bytes = string(args.get(1).copied().unwrap_or("")).ok_or("no bytes")?;
                    let done: usize = result.trim().parse().map_err(|_| "no result")?;
                    let asked = usize::try_from(number(2)?).map_err(|_| "too long")?;
                    if bytes.len() != asked || done > asked {
                        return Err(format!("{} bytes shown of {asked}, {done} written", bytes.len()));
                    }
                    Some(Op::Write(path, number(3)?, Arc::new(bytes[..done].to_vec())))
                }
            },
            "ftruncate" => fd(0).map(|path| Ok::<_, String>(Op::SetLen(path, number(1)?))).transpose()?,
            "fallocate" => match fd(0) {
                Some(path) if args.get(1) != Some(&"FALLOC_FL_KEEP_SIZE") => {
                    return Err(format!("fallocate changes {path}"));
                }
                _ => None,
            },
            // A hint.
            "sync_file_range" => None,
            "fsync" | "fdatasync" => fd(0).map(Op::Sync),
            "renameat" | "renameat2" => match (at(0, 1), at(2, 3)) {
                (Some(from), Some(to)) => Some(Op::Rename(from, to)),
                (None, None) => None,
                _ => return Err("a rename into or out of the vault".into()),
            },
            "unlinkat" => at(0, 1).map(Op::Unlink),
            "unlink" => absolute(0).map(Op::Unlink),
            "mkdirat" => at(0, 1).map(Op::Mkdir),
            "mkdir" => absolute(0).map(Op::Mkdir),
            "write" => match fd(0) {
                Some(path) => return Err(format!("a write without an offset to {path}")),
                None => mark(args.get(1).copied().unwrap_or("")).map(Op::Mark),
            },
            _ => {
                if args.iter().any(|arg| self.path(fd_path(arg).as_deref()).is_some()) {
                    return Err("a call that this test does not know".into());
                }
                None
            }
        };
        Ok(op)
    }

    /// The path below the root, if it belongs to one of the parts.
    fn path(&self, path: Option<&str>) -> Option<String> {
        let path = path?.strip_prefix(&self.root)?;
        let path = path.strip_suffix("/.").unwrap_or(path);
        let first = path.split('/').next().unwrap_or("");
        self.parts.contains(&first).then(|| path.to_string())
    }
}

/// The number in a line that the test had written: `mark N`.
fn mark(arg: &str) -> Option<u64> {
    // Others write megabytes: those are no marks.
    let text = if arg.len() < 200 { String::from_utf8(string(arg)?).ok()? } else { return None };
    text.strip_prefix("mark ")?.trim_end().parse().ok()
}

/// Splits at commas that are in no string, structure or path. With `-xx` strings hold neither quotes nor commas.
fn split_args(args: &str) -> Vec<&str> {
    let (mut parts, mut from, mut depth, mut quoted) = (Vec::new(), 0, 0_usize, false);
    for (at, byte) in args.bytes().enumerate() {
        match byte {
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'{' | b'[' | b'<' => depth += 1,
            b'}' | b']' | b'>' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => {
                parts.push(args[from..at].trim());
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(args[from..].trim());
    parts
}

/// The path that `-y` shows behind a descriptor.
fn fd_path(arg: &str) -> Option<String> {
    let inner = arg.split_once('<')?.1.rsplit_once('>')?.0;
    String::from_utf8(unhex(inner)).ok()
}

/// The bytes of a string argument.
fn string(arg: &str) -> Option<Vec<u8>> {
    arg.strip_prefix('"')?.strip_suffix('"').map(unhex)
}

/// Undoes `-xx`; what is not escaped stands for itself.
fn unhex(text: &str) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len() / 4 + 8);
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at..] {
            [b'\\', b'x', high, low, ..] if digit(high).is_some() && digit(low).is_some() => {
                out.push(digit(high).unwrap() << 4 | digit(low).unwrap());
                at += 4;
            }
            [byte, ..] => {
                out.push(byte);
                at += 1;
            }
            [] => break,
        }
    }
    out
}

#[test]
fn lines_of_strace_are_understood() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trace");
    let hex = |text: &str| text.bytes().map(|b| format!("\\x{b:02x}")).collect::<String>();
    let parse = |lines: &str| {
        fs::write(&path, lines).unwrap();
        let events = read(&path, Path::new("/r"), &["v"]);
        events.map(|events| events.into_iter().map(|e| (e.begin, e.end, e.op)).collect::<Vec<_>>())
    };
    let (a, v) = (hex("/r/v/a"), hex("/r/v"));
    let lines = format!(
        "7 openat2(3<{v}>, \"{}\", {{flags=O_RDWR|O_CREAT, mode=0600}}, 24) = 9<{a}>\n\
         7 pwrite64(9<{a}>, \"{}\", 2, 4096 <unfinished ...>\n\
         8 fdatasync(9<{a}>) = 0\n\
         8 pwrite64(4<{}>, \"{}\", 1, 0) = 1\n\
         7 <... pwrite64 resumed>) = 2\n\
         8 unlinkat(3<{v}>, \"{}\", 0) = -1 ENOENT (No such file or directory)\n\
         9 write(1<pipe:[12]>, \"{}\", 8) = 8\n\
         8 renameat(3<{v}>, \"{}\", 3<{v}>, \"{}\") = 0\n\
         7 +++ exited with 0 +++\n",
        hex("a"),
        hex("hi"),
        hex("/elsewhere"),
        hex("x"),
        hex("z"),
        hex("mark 41\n"),
        hex("a"),
        hex("b"),
    );
    let expected = vec![
        (0, 0, Op::Create("v/a".into())),
        (2, 2, Op::Sync("v/a".into())),
        (1, 4, Op::Write("v/a".into(), 4096, Arc::new(b"hi".to_vec()))),
        (6, 6, Op::Mark(41)),
        (7, 7, Op::Rename("v/a".into(), "v/b".into())),
    ];
    assert_eq!(parse(&lines).unwrap(), expected);
    for unknown in [
        format!("7 copy_file_range(4<{}>, NULL, 9<{a}>, NULL, 10, 0) = 10\n", hex("/x")),
        format!("7 writev(9<{a}>, [{{iov_base=\"\\x61\", iov_len=1}}], 1) = 1\n"),
        format!("7 fallocate(9<{a}>, 0, 0, 10) = 0\n"),
        format!("7 pwrite64(9<{a}>, \"{}\", 2, 0 <unfinished ...>\n", hex("hi")),
        format!("7 pwrite64(9<{a}>, \"{}\"..., 200, 0) = 200\n", hex("hi")),
        "7 io_uring_setup(8, {flags=0}) = 5\n".to_string(),
    ] {
        parse(&unknown).expect_err(&unknown);
    }
}
