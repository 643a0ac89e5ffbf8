//! Conversions equal what the distribution's tools unpack, entry by entry.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};

use rustix::fs::{CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, makedev, mknodat};
use strata_core::manifest::Kind;

use super::*;

fn age(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::utimensat(CWD, path, &times, flags).expect("a time can be set");
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode can be set");
}

/// Every type of file and every attribute that a package can carry.
fn fill(root: &Path) {
    let at = |name: &str| root.join(name);
    for directory in ["etc", "usr/bin", "usr/share/doc", "var/spool/drop", "dev"] {
        fs::create_dir_all(at(directory)).expect("a directory");
    }
    write(&at("usr/bin/su"), b"setuid");
    chown(at("usr/bin/su"), Some(0), Some(42)).expect("an owner");
    mode(&at("usr/bin/su"), 0o6755);
    write(&at("etc/shadow"), b"secret");
    chown(at("etc/shadow"), Some(1234), Some(65534)).expect("an owner");
    mode(&at("etc/shadow"), 0o000);
    mode(&at("var/spool/drop"), 0o3730);
    chown(at("var/spool/drop"), Some(8), Some(8)).expect("an owner");
    mode(&at("var/spool/drop"), 0o3730);
    write(&at("usr/bin/perl"), b"perl");
    fs::hard_link(at("usr/bin/perl"), at("usr/bin/perl5.36")).expect("a link");
    fs::hard_link(at("usr/bin/perl"), at("etc/a-name-that-comes-first")).expect("a link");
    symlink("../nowhere", at("usr/bin/dangling")).expect("a link");
    symlink("/etc/alternatives/x", at("usr/bin/absolute")).expect("a link");
    lchown(at("usr/bin/absolute"), Some(7), Some(9)).expect("an owner");
    let node = |name: &str, kind, device| {
        mknodat(CWD, at(name), kind, Mode::from_raw_mode(0o640), device).expect("root makes nodes");
    };
    node("dev/null", FileType::CharacterDevice, makedev(1, 3));
    node("dev/vda", FileType::BlockDevice, makedev(252, 17));
    node("dev/initctl", FileType::Fifo, 0);
    mode(&at("dev/null"), 0o666);
    write(&at("usr/share/empty"), b"");
    write(&at("usr/share/a b\\c=d \u{e9}"), b"odd");
    write(&root.join(OsStr::from_bytes(b"usr/share/latin-\xe9")), b"not UTF-8");
    let deep = at("usr/share").join("long-directory-name".repeat(8)).join("n".repeat(200));
    fs::create_dir_all(deep.parent().expect("a parent")).expect("a directory");
    write(&deep, b"a name of GNU's long kind");
    symlink("t".repeat(300), at("usr/share/long-link")).expect("a link");
    let mut zeros = vec![0; 700_000];
    zeros[300_000] = 1;
    write(&at("usr/share/mostly-zeros"), &zeros);
    write(&at("usr/share/zeros"), &vec![0; 1 << 18]);
    age(&at("usr/share/empty"), 0, 0);
    age(&at("usr/share/zeros"), 1, 0);
    age(&at("usr/bin/dangling"), 1_000_000_000, 0);
    for directory in ["usr/bin", "usr/share/doc", "usr/share", "usr", "etc", "."] {
        age(&at(directory), 1_234_567_890, 0);
    }
}

fn dpkg_build(bench: &Bench, root: &Path, compression: &str) -> PathBuf {
    fs::create_dir_all(root.join("DEBIAN")).expect("a directory");
    write(&root.join("DEBIAN/control"), CONTROL.as_bytes());
    write(&root.join("DEBIAN/postinst"), b"#!/bin/sh\nexit 0\n");
    mode(&root.join("DEBIAN/postinst"), 0o755);
    if root.join("etc/shadow").exists() {
        write(&root.join("DEBIAN/conffiles"), b"/etc/shadow\n");
    }
    let package = bench.path(&format!("sample-{compression}.deb"));
    run("dpkg-deb", &[&format!("-Z{compression}"), "--build", text(root), text(&package)]);
    package
}

/// The archive of a package, unpacked by GNU tar. `dpkg-deb -x` is the same
/// but for one thing: it leaves directories that symbolic links are put into
/// (dpkg-deb archives those last) with the time of unpacking.
fn unpack(bench: &Bench, package: &Path) -> PathBuf {
    let name = package.file_stem().expect("a name").to_string_lossy().into_owned();
    let archive = bench.path(&format!("{name}.tar"));
    write(&archive, &run("dpkg-deb", &["--fsys-tarfile", text(package)]));
    let unpacked = bench.path(&format!("{name}.tree"));
    fs::create_dir(&unpacked).expect("a directory");
    let options = ["--numeric-owner", "--delay-directory-restore", "-p"];
    let place = ["-C", text(&unpacked), "-xf", text(&archive)];
    run("tar", &[&options[..], &place].concat());
    unpacked
}

#[test]
fn a_package_unpacks_as_dpkg_deb_unpacks_it() {
    let bench = Bench::set_up();
    let root = bench.path("root");
    fs::create_dir(&root).expect("a directory");
    fill(&root);
    let mut digests = Vec::new();
    for compression in ["gzip", "xz", "zstd", "none"] {
        let package = dpkg_build(&bench, &root, compression);
        let unpacked = unpack(&bench, &package);
        let imported = bench.import_one(&package).expect("a good package");
        let (unit, manifest) = bench.unit(&imported);
        assert_same(&manifest, &scan(&unpacked));
        assert_same(&scan(&unit.join("filesystem")), &manifest);
        digests.push(imported.digest);
        assert_eq!(imported.new, compression == "gzip");
        assert_eq!(unit.file_name(), Some(OsStr::new("sample_2%3a1.0~rc1-1")));
        let script = unit.join("scripts/deb/postinst");
        assert_eq!(fs::metadata(script).expect("a script").permissions().mode() & 0o7777, 0o755);
        let control = fs::read(unit.join("scripts/deb/control")).expect("the control file");
        assert_eq!(control, CONTROL.as_bytes());
    }
    assert!(digests.iter().all(|digest| *digest == digests[0]), "the compression is no content");
    bench.assert_clean();
}

#[test]
fn holes_stay_holes() {
    let bench = Bench::set_up();
    let root = bench.path("root");
    fs::create_dir_all(root.join("usr")).expect("a directory");
    write(&root.join("usr/zeros"), &vec![0; 4 << 20]);
    let imported = bench.import_one(&dpkg_build(&bench, &root, "xz")).expect("a good package");
    let (unit, _) = bench.unit(&imported);
    let zeros = fs::metadata(unit.join("filesystem/usr/zeros")).expect("a file");
    let blocks = std::os::unix::fs::MetadataExt::blocks(&zeros);
    assert_eq!((zeros.len(), blocks), (4 << 20, 0));
}

/// A package around an archive that GNU tar makes of `root` with `options`.
fn with_tar(bench: &Bench, root: &Path, name: &str, options: &[&str]) -> PathBuf {
    let mut arguments = vec!["-C", text(root), "--numeric-owner", "--sort=name"];
    arguments.extend_from_slice(options);
    arguments.extend(["-cf", "-", "."]);
    let path = bench.path(name);
    write(&path, &package(&run("tar", &arguments)));
    path
}

#[test]
fn pax_archives_carry_capabilities_and_nanoseconds() {
    let bench = Bench::set_up();
    let root = bench.path("root");
    fs::create_dir(&root).expect("a directory");
    fill(&root);
    // CAP_NET_RAW, effective and permitted, revision 2 (linux/capability.h).
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let set = |name: &str, key: &str, value: &[u8]| {
        rustix::fs::setxattr(root.join(name), key, value, XattrFlags::empty()).expect("an xattr");
    };
    set("usr/bin/perl", "security.capability", &capability);
    set("usr/share/empty", "user.note", b"a\nb=\xff\0");
    set("usr/share", "user.on-a-directory", b"yes");
    age(&root.join("usr/share/empty"), 1_600_000_000, 123_456_789);
    age(&root.join("etc/shadow"), -5, 250_000_000);
    let package = with_tar(
        &bench,
        &root,
        "pax.deb",
        &[
            "--format=pax",
            "--xattrs",
            "--xattrs-include=*",
            "--pax-option=delete=ctime,delete=atime",
        ],
    );
    let imported = bench.import_one(&package).expect("a good package");
    let (unit, manifest) = bench.unit(&imported);
    assert_same(&manifest, &scan(&root));
    assert_same(&scan(&unit.join("filesystem")), &manifest);
    let linked = manifest.get(b"usr/bin/perl").expect("a path");
    assert_eq!(linked.xattrs[&b"security.capability".to_vec()], capability);
}

#[test]
fn every_tar_format_gives_the_same_layer() {
    let bench = Bench::set_up();
    let root = bench.path("root");
    fs::create_dir(&root).expect("a directory");
    fill(&root);
    let sparse = root.join("usr/share/sparse");
    let file = fs::File::create(&sparse).expect("a file");
    for at in 0..40_u64 {
        std::os::unix::fs::FileExt::write_all_at(&file, b"data", at << 16).expect("written");
    }
    for directory in ["etc", "usr/bin", "usr/share", "usr/share/sparse", "."] {
        age(&root.join(directory), 1_234_567_890, 0);
    }
    let expected = scan(&root);
    for (name, options) in [
        ("gnu.deb", &["--format=gnu"][..]),
        ("sparse.deb", &["--format=gnu", "--sparse"][..]),
        ("pax.deb", &["--format=posix"][..]),
    ] {
        let bench = Bench::set_up();
        // GNU's own format and whole seconds: the tree is made of whole seconds.
        let package = with_tar(&bench, &root, name, options);
        let imported = bench.import_one(&package).expect(name);
        let (unit, manifest) = bench.unit(&imported);
        let whole = |manifest: &Manifest| {
            let mut entries = manifest.entries().to_vec();
            entries.iter_mut().for_each(|entry| entry.mtime.nanoseconds = 0);
            Manifest::new(entries).expect("a manifest")
        };
        assert_same(&whole(&manifest), &whole(&expected));
        assert_same(&scan(&unit.join("filesystem")), &manifest);
    }
}

#[test]
fn files_outside_usr_move_into_it() {
    let bench = Bench::set_up();
    let root = bench.path("root");
    for directory in
        ["bin", "lib/x86_64-linux-gnu", "lib64", "sbin", "usr/bin", "usr/lib", "usr/sbin"]
    {
        fs::create_dir_all(root.join(directory)).expect("a directory");
    }
    write(&root.join("bin/ls"), b"ls");
    write(&root.join("lib/x86_64-linux-gnu/libc.so.6"), b"libc");
    symlink("../lib/x86_64-linux-gnu/ld.so", root.join("lib64/ld.so")).expect("a link");
    write(&root.join("usr/bin/which"), b"which");
    symlink("/usr/bin/which", root.join("bin/which")).expect("a link");
    write(&root.join("sbin/ip"), b"ip");
    symlink("../../sbin/ip", root.join("usr/sbin/ip")).expect("a link");
    write(&root.join("usr/lib/same"), b"same");
    write(&root.join("lib/same"), b"same");
    age(&root.join("lib"), 5, 0);
    age(&root.join("usr/lib"), 7, 0);
    fs::hard_link(root.join("bin/ls"), root.join("usr/bin/dir")).expect("a link");
    let imported = bench.import_one(&dpkg_build(&bench, &root, "gzip")).expect("a good package");
    let (unit, manifest) = bench.unit(&imported);
    assert_same(&scan(&unit.join("filesystem")), &manifest);
    let paths: Vec<_> =
        manifest.entries().iter().map(|e| String::from_utf8_lossy(&e.path).into_owned()).collect();
    let expected = [
        "",
        "usr",
        "usr/bin",
        "usr/bin/dir",
        "usr/bin/ls",
        "usr/bin/which",
        "usr/lib",
        "usr/lib/same",
        "usr/lib/x86_64-linux-gnu",
        "usr/lib/x86_64-linux-gnu/libc.so.6",
        "usr/lib64",
        "usr/lib64/ld.so",
        "usr/sbin",
        "usr/sbin/ip",
    ];
    assert_eq!(paths, expected);
    assert_eq!(manifest.get(b"usr/lib").map(|entry| entry.mtime.seconds), Some(7));
    let linked = Kind::HardLink { target: b"usr/bin/dir".to_vec() };
    assert_eq!(manifest.get(b"usr/bin/ls").map(|entry| &entry.kind), Some(&linked));
    for file in ["usr/bin/which", "usr/sbin/ip"] {
        let entry = manifest.get(file.as_bytes()).expect("a path");
        assert!(matches!(entry.kind, Kind::Regular { .. }), "{file}");
    }
}

#[test]
fn a_time_that_no_disk_holds_is_the_nearest_one() {
    let bench = Bench::set_up();
    let data = tarball(&[
        entry(b"./", b'5', b"", b""),
        entry(b"x", b'x', b"28 mtime=99999999999999.500\n", b""),
        entry(b"./late", b'0', b"late", b""),
        entry(b"x", b'x', b"21 mtime=-9999999999\n", b""),
        entry(b"./early/", b'5', b"", b""),
    ]);
    let path = bench.path("times.deb");
    write(&path, &package(&data));
    let imported = bench.import_one(&path).expect("a good package");
    let (unit, manifest) = bench.unit(&imported);
    assert_same(&scan(&unit.join("filesystem")), &manifest);
    let seconds = |path: &[u8]| manifest.get(path).expect("a path").mtime.seconds;
    assert_eq!(seconds(b"late"), 15_032_385_535);
    assert_eq!(seconds(b"early"), -2_147_483_648);
}

#[test]
fn the_links_of_a_merged_usr_stay() {
    let bench = Bench::set_up();
    let data = tarball(&[
        entry(b"./", b'5', b"", b""),
        entry(b"./bin", b'2', b"", b"usr/bin"),
        entry(b"./lib64", b'2', b"", b"/usr/lib64"),
        entry(b"./usr/bin/", b'5', b"", b""),
    ]);
    let package_path = bench.path("usr-is-merged.deb");
    write(&package_path, &package(&data));
    let (_, manifest) = bench.unit(&bench.import_one(&package_path).expect("a good package"));
    let target = |path: &[u8]| match manifest.get(path).map(|entry| entry.kind.clone()) {
        Some(Kind::Symlink { target }) => String::from_utf8(target).expect("UTF-8"),
        other => panic!("{other:?}"),
    };
    assert_eq!((target(b"bin").as_str(), target(b"lib64").as_str()), ("usr/bin", "/usr/lib64"));
}

#[test]
fn base_files_gets_the_links_that_an_installer_would_make() {
    let bench = Bench::set_up();
    let control = CONTROL.replace("Package: sample", "Package: base-files");
    let control = tarball(&[entry(b"./control", b'0', control.as_bytes(), b"")]);
    let data = tarball(&[
        entry(b"./", b'5', b"", b""),
        entry(b"./bin/", b'5', b"", b""),
        entry(b"./lib/", b'5', b"", b""),
    ]);
    let members: [(&str, &[u8]); 3] =
        [("debian-binary", b"2.0\n"), ("control.tar", &control), ("data.tar", &data)];
    let path = bench.path("base-files.deb");
    write(&path, &ar(&members));
    let (_, manifest) = bench.unit(&bench.import_one(&path).expect("a good package"));
    let links: Vec<_> = manifest
        .entries()
        .iter()
        .filter(|entry| matches!(entry.kind, Kind::Symlink { .. }))
        .map(|entry| String::from_utf8_lossy(&entry.path).into_owned())
        .collect();
    assert_eq!(links, ["bin", "lib", "lib64", "sbin"]);
    assert_eq!(manifest.get(b"usr/bin").map(|entry| entry.kind.clone()), Some(Kind::Directory));
}
