//! Owners, modes, ACLs and capabilities: each case runs in a directory of the host's own filesystem and on a mount, and both must say the same.

use std::fs;
use std::path::Path;

use crate::common::{Sandbox, require_fuse, require_root};

/// What all cases can use. Users are numbers, so that no account has to exist; `as_user 1001 3001,3002 COMMAND` runs with these
/// supplementary groups (`-` for none). Nothing that differs from run to run is printed.
const PRELUDE: &str = r#"
set -u
umask 022
as_user() {
  local user=$1 groups=$2; shift 2
  if [ "$groups" = - ]; then setpriv --reuid="$user" --regid="$user" --clear-groups -- "$@"
  else setpriv --reuid="$user" --regid="$user" --groups="$groups" -- "$@"; fi
}
# What stat(2) says of names, ACLs and capabilities included.
show() {
  local name
  for name in "$@"; do
    # What a directory's size means is each filesystem's own affair.
    if [ -d "$name" ]; then stat -c '%n %F %04a %u:%g %h' "$name"; else stat -c '%n %F %04a %u:%g %h %s' "$name"; fi
    [ -L "$name" ] || getfacl -ncpE "$name" 2>&1 | tr '\n' ' '
    [ ! -f "$name" ] || getcap "$name" | sed 's/^/cap /'
    echo
  done
}
# A system call by its name in Python, as a user: prints its result or the name of its error.
py() {
  local user=$1 groups=$2; shift 2
  as_user "$user" "$groups" python3 -c '
import errno, os, sys
try: print(eval(sys.argv[1]))
except OSError as e: print(errno.errorcode[e.errno])' "$1"
}
"#;

/// Name, script, and a text that the output must have: it proves that the case did what its name says.
const CASES: [(&str, &str, &str); 30] = [
    (
        "modes decide who reads and writes",
        r#"
echo secret > f; chown 1001:3001 f; chmod 640 f
for who in "1001 -" "1002 -" "1002 3001"; do py $who 'os.read(os.open("f", os.O_RDONLY), 9)'; py $who 'os.open("f", os.O_WRONLY) > 0'; done"#,
        "EACCES",
    ),
    (
        "the owner class counts even if others may more",
        r#"
echo x > f; chown 1001:3001 f; chmod 077 f; py 1001 3001 'os.open("f", os.O_RDONLY) > 0'; py 1002 - 'os.open("f", os.O_RDWR) > 0'; chmod 707 f; py 1002 3001 'os.open("f", os.O_RDONLY) > 0'"#,
        "EACCES",
    ),
    (
        "supplementary groups open what the first group does not",
        r#"
mkdir d; chown 0:3002 d; chmod 770 d
py 1001 3001,3002,3003 'os.mkdir("d/a")'; py 1001 3001,3003 'os.mkdir("d/b")'; py 1001 3001,3003 'os.listdir("d")'; show d d/a"#,
        "EACCES",
    ),
    (
        "many supplementary groups",
        r#"
mkdir d; chown 0:3499 d; chmod 770 d; py 1001 $(seq -s, 3000 3499) 'os.mkdir("d/a")'; py 1001 $(seq -s, 3000 3498) 'os.mkdir("d/b")'; show d/a"#,
        "EACCES",
    ),
    (
        "set-group-id directories pass on their group",
        r#"
mkdir d; chown 0:3001 d; chmod 2777 d; as_user 1001 3002 mkdir d/sub; as_user 1001 3002 touch d/file; as_user 1001 3002 ln -s x d/link
as_user 1001 3002 mkfifo d/fifo; mkdir d/sub/deep; show d d/sub d/file d/link d/fifo d/sub/deep"#,
        "2755 1001:3001",
    ),
    (
        "a set-group-id program is not made for a foreign group",
        r#"
mkdir d; chown 0:3001 d; chmod 2777 d
py 1001 - 'os.close(os.open("d/a", os.O_CREAT | os.O_WRONLY, 0o2755))'; py 1001 3001 'os.close(os.open("d/b", os.O_CREAT | os.O_WRONLY, 0o2755))'
py 1001 - 'os.close(os.open("d/c", os.O_CREAT | os.O_WRONLY, 0o2745))'; show d/a d/b d/c"#,
        "0755 1001:3001",
    ),
    (
        "sticky directories keep others from deleting",
        r#"
mkdir d; chown 1003:1003 d; chmod 1777 d; as_user 1001 - touch d/a d/b d/c; as_user 1002 - touch d/mine
py 1002 - 'os.unlink("d/a")'; py 1002 - 'os.rename("d/a", "d/z")'; py 1002 - 'os.rename("d/mine", "d/a")'; py 1001 - 'os.unlink("d/a")'
py 1003 - 'os.unlink("d/b")'; py 1002 - 'os.rmdir("d")'; ls d"#,
        "EPERM",
    ),
    (
        "chown is for root, chgrp for members",
        r#"
touch f; chown 1001:1001 f
py 1001 3001 'os.chown("f", 1002, -1)'; py 1001 3001 'os.chown("f", -1, 3002)'; py 1001 3001 'os.chown("f", 1001, 3001)'; py 1002 3001 'os.chown("f", -1, 3001)'; show f
py 1002 3001 'os.chown("f", -1, -1)'; py 1001 - 'os.chown("f", -1, 3001)'; chown 5:6 f; show f"#,
        "1001:3001",
    ),
    (
        "chown takes set-user-id and set-group-id away",
        r#"
touch a b c d; mkdir dir; chmod 6755 a b dir; chmod 2644 c; chmod 6711 d; chown 1001:3001 a b c d dir; show a b c d dir
chmod 6755 b; chmod 2644 c; as_user 1001 3001,3002 chgrp 3002 b c; chmod 4755 d; chown -h 0 d; show b c d"#,
        "6755 1001:3001",
    ),
    (
        "chmod is for the owner, and drops set-group-id of a foreign group",
        r#"
touch f; chown 1001:3001 f
py 1002 3001 'os.chmod("f", 0o777)'; py 1001 - 'os.chmod("f", 0o2755)'; show f; py 1001 3001 'os.chmod("f", 0o2755)'; show f; py 1001 - 'os.chmod("f", 0o7644)'; show f"#,
        "EPERM",
    ),
    (
        "writing takes set-user-id and set-group-id away",
        r#"
for n in w t o a; do echo text > $n; chmod 6777 $n; done
py 1001 - 'os.write(os.open("w", os.O_WRONLY), b"x")'; py 1001 - 'os.truncate("t", 2)'; py 1001 - 'os.close(os.open("o", os.O_WRONLY | os.O_TRUNC))'
py 1001 - 'os.write(os.open("a", os.O_WRONLY | os.O_APPEND), b"x")'; show w t o a"#,
        "0777 0:0",
    ),
    (
        "fallocate and copy_file_range take them away, too",
        r#"
for n in f c; do echo text > $n; chmod 6777 $n; done; echo source > s
py 1001 - 'os.posix_fallocate(os.open("f", os.O_RDWR), 0, 8192)'; py 1001 - 'os.copy_file_range(os.open("s", os.O_RDONLY), os.open("c", os.O_RDWR), 4, 0, 0)'; show f c"#,
        "0777 0:0",
    ),
    (
        "the owner without privilege loses them, root keeps them",
        r#"
echo text > f; chown 1001:1001 f; chmod 4755 f; py 1001 - 'os.write(os.open("f", os.O_WRONLY), b"x")'; show f
chmod 6755 f; echo more >> f; show f; truncate -s 3 f; show f"#,
        "6755",
    ),
    (
        "what is written in one go keeps nothing",
        r#"
cp /bin/true f; chmod 4777 f; as_user 1001 - sh -c 'cat /bin/false > f'; show f"#,
        "0777",
    ),
    (
        "capabilities of files go when they are written",
        r#"
for n in w t o c m; do echo text > $n; chmod 777 $n; setcap cap_net_raw+ep $n; done; show w
echo x >> w; truncate -s 1 t; : > o; chown 1001 c; chmod 700 m; show w t o c m"#,
        "cap_net_raw",
    ),
    (
        "capabilities go with writes of users, and only root gives them",
        r#"
echo text > f; chmod 777 f; setcap cap_chown=ep f; show f; py 1001 - 'os.write(os.open("f", os.O_WRONLY), b"x")'; show f
py 1001 - 'os.setxattr("f", "security.capability", bytes((0, 0, 0, 2)) + bytes(16))'; setcap cap_chown=ep f; setcap -r f; show f"#,
        "EPERM",
    ),
    (
        "set-user-id programs work where the mount allows it",
        r#"
cp /usr/bin/id f; chmod 4755 f; as_user 1001 - ./f -u; chmod 2755 f; chown :3005 f; chmod 2755 f; as_user 1001 - ./f -g; as_user 1001 - ./f -ru"#,
        "3005",
    ),
    (
        "default ACLs are inherited, and the umask is left out",
        r#"
mkdir d; setfacl -d -m u::rwx,g::r-x,o::---,u:1005:rwx,g:3001:rw-,m::rwx d; umask 077
mkdir d/sub; touch d/file; as_user 0 - python3 -c 'import os; os.close(os.open("d/narrow", os.O_CREAT, 0o640)); os.mkdir("d/closed", 0o700); os.mkfifo("d/fifo", 0o666)'
show d d/sub d/file d/narrow d/closed d/fifo; mkdir d/sub/deep; show d/sub/deep"#,
        "default:user:1005:rwx",
    ),
    (
        "a default ACL without named entries is inherited as a mode",
        r#"
mkdir d; setfacl -d -m u::rw-,g::r--,o::r-- d; umask 000; touch d/f; mkdir d/sub; show d/f d/sub; setfacl -k d; touch d/g; show d/g"#,
        "default:",
    ),
    (
        "ACLs decide who reads and writes",
        r#"
echo secret > f; chmod 600 f; setfacl -m u:1001:rw,g:3001:r,u:1003:--- f; chmod o+r f; show f
for who in "1001 -" "1002 3001" "1002 -" "1003 3001"; do py $who 'os.read(os.open("f", os.O_RDONLY), 9)'; py $who 'os.open("f", os.O_WRONLY) > 0'; done"#,
        "EACCES",
    ),
    (
        "chmod changes the mask, and the mask holds",
        r#"
echo x > f; setfacl -m u:1001:rwx,g::rwx f; chmod 640 f; show f; py 1001 - 'os.open("f", os.O_WRONLY) > 0'; chmod 660 f; py 1001 - 'os.open("f", os.O_WRONLY) > 0'; setfacl -m m::r f; show f; setfacl -b f; show f"#,
        "EACCES",
    ),
    (
        "ACLs are set by owners only, and drop set-group-id of a foreign group",
        r#"
touch f; chown 1001:3001 f; as_user 1002 - setfacl -m u:1002:rw f 2>&1; as_user 1001 - setfacl -m u:1002:rw f; show f
chmod 2775 f; as_user 1001 - setfacl -m u::rwx,g::rwx,o::r-x f; show f; as_user 1001 - setfacl -d -m u:1:rw f 2>&1; setfacl -m u::rw f; setfacl -b f; show f"#,
        "not permitted",
    ),
    (
        "links and renamed files keep their ACLs",
        r#"
mkdir d; setfacl -d -m u:1005:rwx d; touch f; setfacl -m u:1001:rw f; ln f d/link; mv f d/moved; show d/link d/moved; cp -p d/moved copy; show copy"#,
        "user:1001:rw-",
    ),
    (
        "access(2) answers as open would",
        r#"
echo x > f; chown 1001:3001 f; chmod 650 f; mkdir d; chmod 711 d
for who in "0 -" "1001 -" "1002 3001" "1002 -"; do for mode in R W X; do py $who "os.access('f', os.${mode}_OK), os.access('d', os.${mode}_OK)"; done; done; chmod 600 f; py 0 - 'os.access("f", os.X_OK)'"#,
        "(False, True)",
    ),
    (
        "directories without x or r",
        r#"
mkdir noexec noread; echo in > noexec/f; echo in > noread/f; chmod 644 noexec; chmod 311 noread; chown 1001 noexec noread
py 1001 - 'os.listdir("noexec")'; py 1001 - 'os.stat("noexec/f").st_size'; py 1001 - 'os.listdir("noread")'; py 1001 - 'os.stat("noread/f").st_size'; py 1001 - 'os.unlink("noread/f")'; py 1001 - 'os.mkdir("noexec/d")'"#,
        "EACCES",
    ),
    (
        "times are set by owners, and to now by writers",
        r#"
touch f g; chown 1001 f g; chmod 666 f; chmod 644 g
py 1002 - 'os.utime("f", (1, 1))'; py 1002 - 'os.utime("f")'; py 1002 - 'os.utime("g")'; py 1001 - 'os.utime("g", (5, 5))'; stat -c '%X %Y' g
py 1002 - 'os.open("g", os.O_RDONLY | os.O_NOATIME)'; py 1001 - 'os.open("g", os.O_RDONLY | os.O_NOATIME) > 0'"#,
        "EPERM",
    ),
    (
        "moving a directory changes its parent",
        r#"
mkdir a b; chmod 777 a b; mkdir a/theirs a/mine; chown 1001 a/mine; chown 1002 a/theirs; chmod 755 a/mine a/theirs
py 1001 - 'os.rename("a/mine", "b/mine")'; py 1001 - 'os.rename("a/theirs", "b/theirs")'; py 1001 - 'os.rename("a/theirs", "a/renamed")'; find . | sort; show a b"#,
        "EACCES",
    ),
    (
        "attributes of users are for regular files and directories",
        r#"
touch f; mkdir d s; chmod 777 f d; chmod 1777 s; ln -s f l; mkfifo p; chmod 666 p
py 1001 - 'os.setxattr("f", "user.a", b"1")'; py 1001 - 'os.setxattr("d", "user.a", b"1")'; py 1001 - 'os.setxattr("s", "user.a", b"1")'; py 1001 - 'os.setxattr("p", "user.a", b"1")'
py 0 - 'os.setxattr("l", "user.a", b"1", follow_symlinks=False)'; py 0 - 'os.setxattr("f", "trusted.t", b"2")'; py 1001 - 'os.setxattr("f", "trusted.u", b"2")'; py 1001 - 'os.getxattr("f", "trusted.t")'
py 1001 - 'sorted(os.listxattr("f"))'; py 0 - 'sorted(os.listxattr("f"))'; chmod 600 f; py 1001 - 'os.getxattr("f", "user.a")'; py 1001 - 'os.listxattr("f")'"#,
        "trusted.t",
    ),
    (
        "devices are made by root",
        r#"
mkdir d; chmod 777 d; py 1001 - 'os.mknod("d/c", 0o020666, os.makedev(1, 3))'; py 1001 - 'os.mknod("d/p", 0o010644)'; py 1001 - 'os.mknod("d/s", 0o140600)'; py 0 - 'os.mknod("d/n", 0o020666, os.makedev(1, 3))'
show d/p d/s; stat -c '%F %t:%T' d/n; echo gone > d/n; py 1001 - 'os.write(os.open("d/n", os.O_WRONLY), b"x")'"#,
        "EPERM",
    ),
    (
        "the umask counts where there is no default ACL",
        r#"
mkdir d; chmod 777 d
for mask in 000 002 027 077; do umask $mask; as_user 1001 - touch d/f$mask; as_user 1001 - mkdir d/d$mask; as_user 1001 - mkfifo d/p$mask; show d/f$mask d/d$mask d/p$mask; done
umask 022; echo x > r; chmod 444 r; chown 1001 r; py 1001 - 'os.open("r", os.O_WRONLY)'; py 1001 - 'os.truncate("r", 0)'; py 0 - 'os.open("r", os.O_WRONLY) > 0'"#,
        "EACCES",
    ),
];

/// Runs a case in a directory of its own and returns everything it printed.
fn run(sandbox: &Sandbox, root: &Path, number: usize, script: &str) -> String {
    let dir = root.join(format!("case{number}"));
    fs::create_dir(&dir).unwrap();
    let script = format!("cd {}\n{PRELUDE}\n{script}", dir.display());
    let done = sandbox.tool("bash", ["-c", &script]);
    format!("{}{}exit {}\n", done.stdout, done.stderr, done.code)
}

#[test]
fn heavy_permissions_are_those_of_the_hosts_filesystem() {
    require_root();
    require_fuse();
    let sandbox = Sandbox::with_vault();
    // Users must be able to come here.
    fs::set_permissions(sandbox.path("."), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    sandbox.mount_with(&["-o", "suid,dev"]);
    let host = sandbox.path("host");
    fs::create_dir(&host).unwrap();
    let mut failed = Vec::new();
    for (number, (name, script, proof)) in CASES.iter().enumerate() {
        let there = run(&sandbox, &host, number, script);
        let here = run(&sandbox, &sandbox.mountpoint(), number, script);
        assert!(
            there.contains(proof),
            "{name}: the case itself does not work on {}:\n{there}",
            host.display()
        );
        for missing in
            ["command not found", "SyntaxError", "NameError", "syntax error", "Operation not supported"]
        {
            assert!(
                !there.contains(missing),
                "{name}: the case itself does not work on {}:\n{there}",
                host.display()
            );
        }
        if here != there {
            let differing: Vec<String> = there
                .lines()
                .zip(here.lines())
                .filter(|(there, here)| there != here)
                .map(|(there, here)| format!("    host: {there}\n    mount: {here}"))
                .collect();
            failed.push(format!("{name}:\n{}\n  all of the mount's:\n{here}", differing.join("\n")));
        }
    }
    assert!(failed.is_empty(), "{} of {} cases differ\n{}", failed.len(), CASES.len(), failed.join("\n"));
    // After a remount everything is still as it was.
    let list = |root: &Path| {
        sandbox.sh(&format!("cd {} && find . -printf '%p %M %U:%G %l\\n' | sort && find . ! -type l | sort | getfacl -nP - && getcap -r . | sort", root.display())).ok()
    };
    assert_eq!(list(&sandbox.mountpoint()), list(&host));
    sandbox.umount();
    sandbox.mount_with(&["-o", "suid,dev"]);
    assert_eq!(list(&sandbox.mountpoint()), list(&host));
    sandbox.umount();
    sandbox.assert_clean();
}
