//! RPM packages made by rpmbuild, compared with what rpm2cpio and GNU cpio make
//! of them, and hostile ones. Needs `rpm` and `cpio`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use strata_core::manifest::{Kind, Manifest};
use strata_core::relation::print_list;
use strata_import::rpm::owners::Owners;

use crate::{Bench, assert_same, run, scan, text, write};

/// Builds the packages of a spec; their files, by name.
pub fn build(bench: &Bench, spec: &str) -> BTreeMap<String, PathBuf> {
    let top = bench.path("rpmbuild");
    fs::create_dir_all(&top).expect("a directory");
    let file = top.join("sample.spec");
    write(&file, spec.as_bytes());
    let define = format!("_topdir {}", text(&top));
    run(
        "rpmbuild",
        &[
            "-bb",
            "--quiet",
            "--define",
            &define,
            "--define",
            "debug_package %{nil}",
            "--define",
            "_build_id_links none",
            "--target",
            "x86_64-linux",
            text(&file),
        ],
    );
    let mut found = BTreeMap::new();
    for directory in fs::read_dir(top.join("RPMS")).expect("packages") {
        for package in fs::read_dir(directory.expect("an entry").path()).expect("packages") {
            let path = package.expect("an entry").path();
            let name =
                run("rpm", &["-qp", "--nosignature", "--queryformat", "%{NAME}", text(&path)]);
            found.insert(String::from_utf8(name).expect("UTF-8"), path);
        }
    }
    found
}

const SPEC: &str = r#"
Name: sample
Version: 1.0_2~rc1
Release: 3.el9
Epoch: 1
Summary: A sample
License: MIT
Group: System/Base
Vendor: Tests
BuildArch: noarch
Requires: bash >= 5, /bin/sh, libfoo.so.1()(64bit)
Requires: (alpha or beta)
Provides: virtual = 2.0, other
Conflicts: enemy < 3-1
Obsoletes: former < 1:1.0
%description
It.
%prep
%build
%install
mkdir -p %{buildroot}/usr/bin %{buildroot}/bin %{buildroot}/etc %{buildroot}/usr/share/sample/empty %{buildroot}/var/log
echo one > %{buildroot}/usr/share/sample/one
ln %{buildroot}/usr/share/sample/one %{buildroot}/usr/share/sample/two
ln %{buildroot}/usr/share/sample/one %{buildroot}/usr/share/sample/zwei
ln -s one %{buildroot}/usr/share/sample/link
: > %{buildroot}/usr/share/sample/nothing
ln %{buildroot}/usr/share/sample/nothing %{buildroot}/usr/share/sample/nil
head -c 300000 /dev/zero > %{buildroot}/usr/share/sample/zeros
echo conf > %{buildroot}/etc/sample.conf
echo run > %{buildroot}/usr/bin/sample
echo old > %{buildroot}/bin/old
: > %{buildroot}/var/log/sample.log
%pre
echo pre
%post -p <lua>
print("post")
%triggerin -- bash > 4
echo triggered
%files
%attr(4755,root,root) /usr/bin/sample
%attr(0755,root,root) /bin/old
%config(noreplace) %attr(0640,root,mail) /etc/sample.conf
%dir %attr(1777,root,root) /usr/share/sample
%attr(0755,root,root) /usr/share/sample/empty
%attr(0644,root,root) /usr/share/sample/[lntoz]*
%caps(cap_net_raw=ep) /usr/share/sample/zeros
%dev(c,1,3) %attr(0666,root,root) /usr/share/sample/null
%ghost /var/log/sample.log
"#;

/// What cpio makes of the payload, moved as a merged /usr has it.
fn unpacked(bench: &Bench, package: &Path) -> Manifest {
    let root = bench.path("unpacked");
    fs::create_dir_all(&root).expect("a directory");
    let script = format!(
        "cd '{}' && rpm2cpio '{}' | cpio --quiet -idmu --no-absolute-filenames",
        text(&root),
        text(package)
    );
    run("sh", &["-c", &script]);
    scan(&root)
}

#[test]
fn a_package_is_what_rpm2cpio_makes_of_it() {
    let bench = Bench::set_up();
    let package = build(&bench, SPEC)["sample"].clone();
    let mut owners = Owners::default();
    owners.add(b"mail:x:8:12::/:\n", b"mail:x:12:\n");
    let imported = bench.import_with_owners(&package, owners).expect("imported");
    assert_eq!(imported.version.as_str(), "1:1.0.2~rc1_3.el9");
    let (unit, manifest) = bench.unit(&imported);
    assert_same(&scan(&unit.join("filesystem")), &manifest);
    let expected = unpacked(&bench, &package);
    // Entry by entry: kind, content, mode, time; the name as it is below /usr.
    let mut compared = 0;
    for entry in expected.entries().iter().filter(|entry| entry.kind != Kind::Directory) {
        let path = match entry.path.strip_prefix(b"bin/") {
            Some(rest) => [b"usr/bin/".as_slice(), rest].concat(),
            None => entry.path.clone(),
        };
        let shown = String::from_utf8_lossy(&path).into_owned();
        let found = manifest.get(&path).unwrap_or_else(|| panic!("{shown} is missing"));
        // cpio leaves links the time at which they are made.
        let dated = !matches!(entry.kind, Kind::Symlink { .. });
        assert!(found.mtime == entry.mtime || !dated, "{shown}");
        assert_eq!(found.mode, entry.mode, "{shown}");
        assert_eq!((&found.kind, found.link_count), (&entry.kind, entry.link_count), "{shown}");
        compared += 1;
    }
    let files = manifest.entries().iter().filter(|entry| entry.kind != Kind::Directory);
    assert_eq!(compared, files.count());
    let get = |path: &str| manifest.get(path.as_bytes()).expect(path);
    assert_eq!((get("etc/sample.conf").uid, get("etc/sample.conf").gid), (0, 12));
    assert_eq!(get("usr/share/sample").mode, 0o1777);
    assert_eq!(get("usr/share/sample/null").kind, Kind::CharacterDevice { major: 1, minor: 3 });
    assert_eq!(get("usr/share/sample/one").link_count, 3);
    let capability = &get("usr/share/sample/zeros").xattrs[b"security.capability".as_slice()];
    assert_eq!(capability[..8], [1, 0, 0, 2, 0, 32, 0, 0]);
    assert!(manifest.get(b"var/log/sample.log").is_none(), "a ghost is no file");
    for (name, content) in [
        ("pre-install", "#!/bin/sh\necho pre\n"),
        ("post-install", "#!<lua>\nprint(\"post\")\n"),
        ("trigger-0", "#!/bin/sh\necho triggered\n"),
    ] {
        assert_eq!(fs::read_to_string(unit.join("scripts/rpm").join(name)).expect(name), content);
    }
    let list = fs::read_to_string(unit.join("scripts/rpm/triggers")).expect("triggers");
    assert!(list.starts_with("0 0x") && list.ends_with(" bash 4\n"), "{list}");
}

#[test]
fn relations_are_mapped() {
    let bench = Bench::set_up();
    let package = build(&bench, SPEC)["sample"].clone();
    let imported = bench.import_one(&package).expect("imported");
    let database = bench.store.database(&bench.repository).expect("a database");
    let metadata = &database.get(&imported.layer, &imported.version).expect("the unit").metadata;
    let depends = print_list(&metadata.depends);
    for wanted in
        ["bash (>= 5_)", "file_2fusr_2fbin_2fsh", "libfoo.so.1_28_29_2864bit_29", "alpha | beta"]
    {
        assert!(depends.split(", ").any(|found| found == wanted), "{wanted}: {depends}");
    }
    let provides = print_list(&metadata.provides);
    for wanted in
        ["virtual (= 2.0_)", "other", "file_2fusr_2fbin_2fsample", "file_2fusr_2fbin_2fold"]
    {
        assert!(provides.split(", ").any(|found| found == wanted), "{wanted}: {provides}");
    }
    assert_eq!(print_list(&metadata.replaces), "former (<< 1:1.0_)");
    assert_eq!(print_list(&metadata.conflicts), "enemy (<< 3_1), former (<< 1:1.0_)");
    let origin = (metadata.origin.as_deref(), metadata.section.as_deref());
    assert_eq!(origin, (Some("Tests"), Some("System/Base")));
}

#[test]
fn every_compression_is_read() {
    let bench = Bench::set_up();
    for payload in ["w9.gzdio", "w9.bzdio", "w2.xzdio", "w2.lzdio", "w3.zstdio", "w.ufdio"] {
        let name = payload.replace('.', "-");
        let spec = SPEC.replace(
            "Name: sample",
            &format!("%define _binary_payload {payload}\nName: sample-{name}"),
        );
        let package = build(&bench, &spec)[&format!("sample-{name}")].clone();
        let imported =
            bench.import_one(&package).unwrap_or_else(|error| panic!("{payload}: {error}"));
        assert_eq!(imported.layer.as_str(), format!("sample-{name}"));
    }
}

#[test]
fn damaged_packages_are_refused_and_leave_nothing() {
    let bench = Bench::set_up();
    let package = build(&bench, SPEC)["sample"].clone();
    let whole = fs::read(&package).expect("read");
    let damaged = bench.path("damaged.rpm");
    let step = whole.len() / 40;
    for length in (4..whole.len()).step_by(step) {
        write(&damaged, &whole[..length]);
        bench.import_one(&damaged).expect_err("cut short");
        let mut bytes = whole.clone();
        bytes[length] ^= 0x40;
        write(&damaged, &bytes);
        // Only the lead and what is not digested of the signature may differ.
        if length > whole.len() / 2 {
            bench.import_one(&damaged).expect_err("a changed byte");
        } else if let Err(error) = bench.import_one(&damaged) {
            assert!(!error.to_string().is_empty());
        }
        bench.assert_clean();
    }
}

#[test]
fn what_has_no_counterpart_is_refused_with_a_reason() {
    let bench = Bench::set_up();
    let rich = SPEC.replace("(alpha or beta)", "(alpha if beta)");
    let error = bench.import_one(&build(&bench, &rich)["sample"]).expect_err("refused");
    assert!(error.to_string().contains("(alpha if beta) has no counterpart"), "{error}");
    bench.assert_clean();
}

#[test]
fn versions_are_ordered_as_rpm_orders_them() {
    let parts = [
        "1", "1.0", "1.0.1", "1.0a", "1.0~rc1", "1.0^git", "1.0^", "1..0", "1.a", "01", "1.10",
        "2", "a1", "1.0+2",
    ];
    let mut pairs = Vec::new();
    for a in parts {
        for b in parts {
            pairs.push((a, b));
        }
    }
    let script: String =
        pairs.iter().map(|(a, b)| format!("print(rpm.vercmp('{a}', '{b}'), ' ')")).collect();
    let output = Command::new("rpm").args(["--eval", &format!("%{{lua:{script}}}")]).output();
    let output = output.expect("rpm is needed: apt-get install rpm").stdout;
    let found: Vec<i8> = String::from_utf8_lossy(&output)
        .split_whitespace()
        .map(|number| number.parse().expect("a number"))
        .collect();
    assert_eq!(found.len(), pairs.len());
    for ((a, b), expected) in pairs.iter().zip(found) {
        let of = |text: &str| {
            strata_import::rpm::relations::version(0, &format!("{text}-1")).expect(text)
        };
        assert_eq!(of(a).debian_cmp(&of(b)) as i8, expected, "{a} {b}");
    }
}
