//! Who may do what: POSIX ACLs, setgid and sticky directories, as on any disk.
//!
//! Each is tried on what the layer shows, on its private copy, and on a plain
//! directory with the same content: the answers must be the same.

use std::fs::{self, Permissions};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, XattrFlags};

use crate::fixture::{Mount, read};

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
/// Three users without any privilege.
const OWNER: u32 = 61_001;
const NAMED: u32 = 61_002;
const OTHER: u32 = 61_003;

/// `user::<owner>,user:NAMED:<named>,group::---,mask::<named>,other::---`, as the
/// kernel has it (`include/uapi/linux/posix_acl_xattr.h`).
fn acl(owner: u16, named: u16) -> Vec<u8> {
    let entries = [
        (0x01, owner, u32::MAX),
        (0x02, named, NAMED),
        (0x04, 0, u32::MAX),
        (0x10, named, u32::MAX),
    ];
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries.into_iter().chain([(0x20, 0, u32::MAX)]) {
        value.extend(u16::to_le_bytes(tag));
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

fn set_acl(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::setxattr(path, name, value, XattrFlags::empty())
        .unwrap_or_else(|error| panic!("{name} of {}: {error}", path.display()));
}

fn get_acl(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = [0; 512];
    let length = rustix::fs::getxattr(path, name, &mut value[..]).ok()?;
    Some(value[..length].to_vec())
}

/// Whether a shell command works for a user; `$1` is the path.
fn may(user: u32, command: &str, path: &Path) -> bool {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", command, "sh"]).arg(path).uid(user).gid(user).current_dir("/");
    shell.output().expect("a shell").status.success()
}

/// The same tree in a mounted layer and in a plain directory.
struct Twins {
    mount: Mount,
    plain: PathBuf,
}

impl Twins {
    fn new(make: impl Fn(&Path)) -> Twins {
        let mount = Mount::new();
        let everybody = Permissions::from_mode(0o755);
        fs::set_permissions(mount.directory.path(), everybody).expect("its owner may");
        let plain = mount.directory.path().join("plain");
        fs::create_dir(&plain).expect("made");
        let layer = mount.layer("one", &[]);
        make(&plain);
        make(&layer);
        mount.mount(&[&layer]);
        Twins { mount, plain }
    }

    /// What `look` finds, which must be the same in both places.
    fn same<T: PartialEq + std::fmt::Debug>(&self, what: &str, look: impl Fn(&Path) -> T) -> T {
        let (plain, mounted) = (look(&self.plain), look(&self.mount.path("")));
        assert_eq!(mounted, plain, "{what}: the mount, and a plain directory");
        mounted
    }
}

fn owned(path: &Path, owner: u32, mode: u32) {
    chown(path, Some(owner), Some(owner)).expect("root may");
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("root may");
}

#[test]
fn an_acl_decides_and_is_kept_by_copy_up_and_rename() {
    let twins = Twins::new(|at| {
        fs::write(at.join("f"), "text").expect("written");
        owned(&at.join("f"), OWNER, 0o600);
        set_acl(&at.join("f"), ACCESS, &acl(6, 4));
    });
    let allowed = |at: &Path, name: &str| {
        let path = at.join(name);
        [OWNER, NAMED, OTHER]
            .map(|user| (may(user, "cat \"$1\"", &path), may(user, "echo more >> \"$1\"", &path)))
    };
    let expected = [(true, true), (true, false), (false, false)];
    // The layer's file first: whoever may write copies it.
    let reads = twins.same("reading the layer's", |at| {
        [OWNER, NAMED, OTHER].map(|user| may(user, "cat \"$1\"", &at.join("f")))
    });
    assert_eq!(reads, [true, true, false]);
    assert_eq!(twins.mount.diff(), [""; 0], "nothing was copied for reading");
    assert_eq!(twins.same("before copy-up", |at| allowed(at, "f")), expected);
    assert_eq!(twins.mount.diff(), ["M f"]);
    let value = twins.same("the copy's ACL", |at| get_acl(&at.join("f"), ACCESS));
    assert_eq!(value, Some(acl(6, 4)));
    for at in [&twins.plain, &twins.mount.path("")] {
        fs::rename(at.join("f"), at.join("g")).expect("renamed");
    }
    assert_eq!(twins.same("after the rename", |at| allowed(at, "g")), expected);
    let value = twins.same("the renamed copy's", |at| get_acl(&at.join("g"), ACCESS));
    assert_eq!(value, Some(acl(6, 4)));
    // chmod changes the mask, and with it what the named user may.
    for at in [&twins.plain, &twins.mount.path("")] {
        fs::set_permissions(at.join("g"), Permissions::from_mode(0o600)).expect("root may");
    }
    let reads = twins.same("after chmod", |at| allowed(at, "g"));
    assert_eq!(reads[1], (false, false), "the mask takes it away");
}

#[test]
fn a_default_acl_is_handed_down_and_takes_the_umasks_place() {
    let twins = Twins::new(|at| {
        fs::create_dir(at.join("d")).expect("made");
        owned(&at.join("d"), OWNER, 0o755);
        set_acl(&at.join("d"), DEFAULT, &acl(7, 7));
    });
    let make =
        "umask 077; cd \"$1\" && mkdir below && echo text > f && mkfifo p && echo x > below/f";
    twins.same("making", |at| assert!(may(OWNER, make, &at.join("d"))));
    for name in ["f", "p", "below", "below/f"] {
        let found = twins.same(name, |at| {
            let path = at.join("d").join(name);
            let meta = path.symlink_metadata().expect("made");
            let acls = [ACCESS, DEFAULT].map(|acl| get_acl(&path, acl));
            (meta.mode(), meta.uid(), meta.gid(), acls)
        });
        assert!(found.3[0].is_some(), "{name} inherits");
        assert_eq!(found.3[1].is_some(), name == "below", "{name}: only directories hand it on");
    }
    let reads = |user| twins.same("reading", |at| may(user, "cat \"$1\"", &at.join("d/below/f")));
    assert_eq!((reads(NAMED), reads(OTHER)), (true, false));
}

#[test]
fn a_file_made_without_a_name_inherits_from_a_default_acl() {
    let twins = Twins::new(|at| {
        fs::create_dir(at.join("d")).expect("made");
        set_acl(&at.join("d"), DEFAULT, &acl(6, 4));
    });
    let found = twins.same("made without a name", |at| {
        let flags = OFlags::TMPFILE | OFlags::RDWR;
        let file = rustix::fs::open(at.join("d"), flags, Mode::from_raw_mode(0o644)).expect("made");
        let own = format!("/proc/self/fd/{}", file.as_raw_fd());
        let linked = at.join("d/linked");
        rustix::fs::linkat(CWD, own, CWD, &linked, AtFlags::SYMLINK_FOLLOW).expect("linked");
        let meta = fs::metadata(&linked).expect("there");
        (meta.mode(), meta.uid(), get_acl(&linked, ACCESS))
    });
    assert_eq!(found.0 & 0o777, 0o640, "others have nothing");
}

#[test]
fn a_setgid_directory_hands_its_group_down() {
    let twins = Twins::new(|at| {
        for name in ["d", "moved"] {
            fs::create_dir(at.join(name)).expect("made");
            chown(at.join(name), Some(OWNER), Some(NAMED)).expect("root may");
            let mode = Permissions::from_mode(0o2777);
            fs::set_permissions(at.join(name), mode).expect("root may");
        }
        fs::write(at.join("moved/f"), "text").expect("written");
        chown(at.join("moved/f"), None, Some(OTHER)).expect("root may");
    });
    let make =
        "cd \"$1\" && echo x > f && mkdir below && echo x > below/f && ln -s f l && mkfifo p";
    twins.same("making", |at| assert!(may(OTHER, make, &at.join("d"))));
    for (name, setgid) in
        [("f", false), ("below", true), ("below/f", false), ("l", false), ("p", false)]
    {
        let found = twins.same(name, |at| {
            let meta = at.join("d").join(name).symlink_metadata().expect("made");
            (meta.mode(), meta.uid(), meta.gid())
        });
        assert_eq!((found.1, found.2), (OTHER, NAMED), "{name} has the directory's group");
        assert_eq!(found.0 & 0o2000 != 0, setgid, "{name}: {:o}", found.0);
    }
    // What is only moved in keeps its group.
    for at in [&twins.plain, &twins.mount.path("")] {
        fs::rename(at.join("moved/f"), at.join("d/moved")).expect("renamed");
    }
    let group = twins.same("moved in", |at| fs::metadata(at.join("d/moved")).expect("there").gid());
    assert_eq!(group, OTHER);
}

#[test]
fn a_write_by_somebody_else_takes_setuid_away() {
    let twins = Twins::new(|at| {
        for name in ["written", "truncated", "plain-group"] {
            fs::write(at.join(name), "text").expect("written");
            owned(&at.join(name), OWNER, if name == "plain-group" { 0o6767 } else { 0o6777 });
        }
    });
    let root = twins.mount.path("");
    assert!(may(OTHER, "echo more >> \"$1/written\"; echo more >> \"$1/plain-group\"", &root));
    assert!(may(
        OTHER,
        "echo more >> \"$1/written\"; echo more >> \"$1/plain-group\"",
        &twins.plain
    ));
    for at in [&twins.plain, &root] {
        assert!(may(OTHER, ": > \"$1/truncated\"", at));
    }
    for name in ["written", "truncated", "plain-group"] {
        let mode = twins.same(name, |at| fs::metadata(at.join(name)).expect("there").mode());
        assert_eq!(mode & 0o4000, 0, "{name}: {mode:o}");
    }
    assert_eq!(read(twins.mount.path("written")), "textmore\n");
}

#[test]
fn in_a_sticky_directory_only_owners_remove() {
    let twins = Twins::new(|at| {
        fs::create_dir(at.join("t")).expect("made");
        fs::set_permissions(at.join("t"), Permissions::from_mode(0o1777)).expect("root may");
        for name in ["a", "b", "copied"] {
            fs::write(at.join("t").join(name), name).expect("written");
            owned(&at.join("t").join(name), OWNER, 0o666);
        }
    });
    assert!(may(OWNER, "echo more >> \"$1/t/copied\"", &twins.mount.path("")));
    assert!(may(OWNER, "echo more >> \"$1/t/copied\"", &twins.plain));
    for command in [
        "rm -f \"$1/t/a\"",
        "rm -f \"$1/t/copied\"",
        "mv \"$1/t/a\" \"$1/t/elsewhere\"",
        "echo x > \"$1/t/mine\" && mv -f \"$1/t/mine\" \"$1/t/a\"",
    ] {
        assert!(!twins.same(command, |at| may(OTHER, command, at)), "{command}");
    }
    for (name, text) in [("a", "a"), ("b", "b"), ("copied", "copiedmore\n")] {
        assert_eq!(read(twins.mount.path("t").join(name)), text, "nothing was hidden");
    }
    assert!(!twins.mount.diff().iter().any(|line| line.starts_with('D')), "no white-out");
    for command in ["rm \"$1/t/a\"", "mv \"$1/t/b\" \"$1/t/c\"", "rm \"$1/t/copied\""] {
        assert!(twins.same(command, |at| may(OWNER, command, at)), "{command}");
    }
    let left = twins.same("what is left", |at| crate::fixture::names(at.join("t")));
    assert_eq!(left, ["c", "mine"]);
}

/// The kernel remembers no ACL of its own root of a connection: each path that a user without
/// privileges walks from there would ask for it (`fuse::root`).
#[test]
fn a_path_that_is_known_makes_no_request_whoever_walks_it() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("d/f", "text")]);
    mount.mount(&[&layer]);
    let requests = || {
        let status: serde_json::Value = serde_json::from_str(&mount.status()).expect("JSON");
        status["gauges"]["requests"]["getxattr"].as_u64().unwrap_or(0)
    };
    let walk = "for n in $(seq 100); do test -f \"$1\" || exit 1; done";
    let known = |path: &str| {
        assert!(may(OTHER, walk, &mount.path(path)));
        let before = requests();
        assert!(may(OTHER, walk, &mount.path(path)));
        assert_eq!(requests(), before, "{path}");
    };
    known("d/f");
    // An ACL of the root is asked for again once it is another, and obeyed.
    set_acl(&mount.path(""), ACCESS, &acl(7, 5));
    assert!(!may(OTHER, walk, &mount.path("d/f")), "others have nothing");
    assert!(may(NAMED, walk, &mount.path("d/f")));
    rustix::fs::removexattr(mount.path(""), ACCESS).expect("removed");
    fs::set_permissions(mount.path(""), Permissions::from_mode(0o755)).expect("set");
    known("d/f");
    let upgraded = mount.run(&["upgrade", &mount.path("").display().to_string()]);
    assert!(upgraded.status.success(), "{upgraded:?}");
    known("d/f");
    assert_eq!(read(mount.path("d/../d/f")), "text");
    mount.unmount();
}
