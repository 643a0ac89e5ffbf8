//! A small system of RPM packages (a base, a library with two ABI versions, a
//! daemon with scripts and triggers), made by rpmbuild, becomes a template that
//! boots as a namespace VA. Needs `rpm`.

use std::fs;
use std::path::Path;
use std::process::Command;

use strata_tests::git::init;
use strata_tests::rpm::{build, copy_programs, spec};
use strata_tests::{Workspace, finish};

fn specs(host: &Path) -> [(&'static str, String); 4] {
    let base = format!(
        "mkdir -p %{{buildroot}}/proc %{{buildroot}}/sys %{{buildroot}}/dev %{{buildroot}}/run %{{buildroot}}/tmp %{{buildroot}}/etc\ncp -a {}/usr %{{buildroot}}/\nfor name in bin lib lib64; do ln -s usr/$name %{{buildroot}}/$name; done\necho 'root:x:0:0::/:/bin/sh' > %{{buildroot}}/etc/passwd",
        host.display()
    );
    let library = |abi: &str| {
        format!(
            "mkdir -p %{{buildroot}}/usr/share/demo\necho {abi} > %{{buildroot}}/usr/share/demo/abi-{abi}"
        )
    };
    let daemon = "mkdir -p %{buildroot}/usr/sbin %{buildroot}/etc\nprintf '#!/bin/sh\\ncat /usr/share/demo/abi-2 /etc/daemon.conf\\n' > %{buildroot}/usr/sbin/daemon\necho configured > %{buildroot}/etc/daemon.conf";
    [
        (
            "base",
            spec(
                "Name: base\nVersion: 40\nRelease: 1.test\nAutoReqProv: no\nProvides: /bin/sh",
                &base,
                "%files\n/*",
            ),
        ),
        (
            "libdemo1",
            spec(
                "Name: libdemo1\nVersion: 1.9\nRelease: 7.test\nProvides: libdemo.so.1()(64bit)",
                &library("1"),
                "%files\n/usr/share/demo/abi-1",
            ),
        ),
        (
            "libdemo2",
            spec(
                "Name: libdemo2\nVersion: 2.0~rc1\nRelease: 1.test\nProvides: libdemo.so.2()(64bit)",
                &library("2"),
                "%files\n/usr/share/demo/abi-2",
            ),
        ),
        (
            "daemon",
            spec(
                "Name: daemon\nEpoch: 1\nVersion: 3.0_1\nRelease: 2.test\nAutoReqProv: no\nRequires: libdemo.so.2()(64bit), /bin/sh, (libdemo2 or libdemo3)",
                daemon,
                "%post\necho configured by its script\n%triggerin -- libdemo2\necho triggered\n%files\n%attr(0755,root,root) /usr/sbin/daemon\n%config(noreplace) /etc/daemon.conf",
            ),
        ),
    ]
}

#[test]
fn a_template_of_rpm_packages_boots() {
    let workspace = Workspace::new("rpm-template");
    workspace.init_store();
    let host = workspace.path("host");
    copy_programs(&host, &["sh", "cat"]);
    let packages = build(&workspace.path("rpmbuild"), &specs(&host));
    let import = ["layer", "import", "--repo", "fedora"];
    finish(workspace.strata().args(import).arg(&packages)).ok();
    let files = [
        ("strata.toml", "base = [\"fedora/base\"]\n[[repository]]\nname = \"fedora\"\n"),
        ("templates/daemon.ldf", "fedora/daemon\n"),
    ];
    let git = workspace.write("gitops", &files);
    finish(workspace.strata().arg("resolve").arg(&git)).ok();
    let resolved = fs::read_to_string(git.join("templates/daemon.ldf")).expect("read");
    let expected =
        "fedora/daemon 1:3.0.1_2.test\n\nfedora/base 40_1.test\nfedora/libdemo2 2.0~rc1_1.test\n";
    assert_eq!(resolved, expected, "the ABI that is asked for, and no other");
    init(&git);
    finish(workspace.strata().args(["reconcile", "--once", "--source"]).arg(&git)).ok();
    let va = |arguments: &[&str]| finish(workspace.strata().arg("va").args(arguments));
    va(&["provision", "--template", "daemon", "first"]).ok();
    va(&["start", "first"]).ok();
    let said = va(&["exec", "first", "--", "/usr/sbin/daemon"]).ok();
    assert_eq!(said, "2\nconfigured\n");
    va(&["stop", "first"]).ok();
    va(&["destroy", "--yes", "first"]).ok();

    // Layers of another system do not come into it.
    let deb = workspace.path("deb");
    fs::create_dir_all(deb.join("DEBIAN")).expect("made");
    let control = "Package: alien\nVersion: 1\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: a\n";
    fs::write(deb.join("DEBIAN/control"), control).expect("written");
    let package = workspace.path("alien.deb");
    finish(
        Command::new("dpkg-deb").args(["--root-owner-group", "--build"]).arg(&deb).arg(&package),
    )
    .ok();
    finish(workspace.strata().args(import).arg(&package)).ok();
    fs::write(git.join("templates/daemon.ldf"), format!("fedora/alien 1\n{expected}"))
        .expect("written");
    let refused = finish(workspace.strata().arg("check").arg(&git));
    assert_eq!(refused.code, 1);
    let named = ["fedora/alien 1", "comes from", "rpm packages", "deb packages"];
    assert!(named.iter().all(|part| refused.stdout.contains(part)), "{}", refused.stdout);
    workspace.finish();
}
