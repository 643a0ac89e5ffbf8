//! Units in a repository: whole or not at all, once and never changed.

use std::os::unix::net::UnixListener;

use strata_core::metadata::{LayerKind, Metadata};
use strata_core::names::LayerName;
use strata_core::version::LayerVersion;
use strata_import::build::{BuildError, build};

use super::*;

fn numbered(number: usize, content: &[u8]) -> Vec<u8> {
    let control = CONTROL.replace("Package: sample", &format!("Package: sample{number}"));
    let control = tarball(&[entry(b"./control", b'0', control.as_bytes(), b"")]);
    let name = format!("./usr/file{number}");
    let data = tarball(&[entry(name.as_bytes(), b'0', content, b"")]);
    ar(&[("debian-binary", b"2.0\n"), ("control.tar", &control), ("data.tar", &data)])
}

#[test]
fn many_packages_at_once_and_again() {
    let bench = Bench::set_up();
    let mut packages: Vec<_> = (0..12)
        .map(|number| {
            let path = bench.path(&format!("sample{number}.deb"));
            write(&path, &numbered(number, b"content"));
            path
        })
        .collect();
    packages.push(bench.path("missing.deb"));
    let first = bench.import(&packages);
    assert!(first[..12].iter().all(|result| result.as_ref().is_ok_and(|imported| imported.new)));
    assert!(matches!(&first[12], Err(ImportError::Open { .. })));
    let database = bench.store.database(&bench.repository).expect("a database");
    assert_eq!(database.len(), 12);
    let again = bench.import(&packages[..12]);
    for (one, two) in first.iter().zip(&again) {
        let (one, two) = (one.as_ref().expect("new"), two.as_ref().expect("present"));
        assert_eq!((one.digest, two.new), (two.digest, false));
    }
    write(&packages[3], &numbered(3, b"another content"));
    let error = bench.import_one(&packages[3]).expect_err("a unit never changes").to_string();
    assert!(error.contains("debian/sample3 2:1.0~rc1-1"), "{error}");
    assert_eq!(bench.store.database(&bench.repository).expect("a database"), database);
    bench.assert_clean();
}

fn metadata() -> Metadata {
    let name = LayerName::new("local").expect("a name");
    let version = LayerVersion::new("1").expect("a version");
    Metadata::new(name, version, LayerKind::Software)
}

#[test]
fn a_directory_becomes_a_layer() {
    let bench = Bench::set_up();
    let (root, scripts) = (bench.path("root"), bench.path("scripts"));
    fs::create_dir_all(root.join("run")).expect("a directory");
    fs::create_dir(&scripts).expect("a directory");
    let socket = UnixListener::bind(root.join("run/socket")).expect("a socket");
    write(&root.join("file"), b"content");
    fs::hard_link(root.join("file"), bench.path("a-name-outside")).expect("a link");
    write(&scripts.join("post-install"), b"#!/bin/sh\n");
    let build = |root: &Path, scripts: Option<&Path>| {
        let limits = TreeLimits::default();
        build(&bench.store, &bench.repository, metadata(), root, scripts, limits)
    };
    let imported = build(&root, Some(&scripts)).expect("a good tree");
    let (unit, manifest) = bench.unit(&imported);
    assert_same(&manifest, &scan(&root));
    assert_same(&scan(&unit.join("filesystem")), &manifest);
    assert_eq!(manifest.get(b"file").map(|entry| entry.link_count), Some(1));
    assert!(unit.join("scripts/post-install").is_file());
    assert!(!build(&root, Some(&scripts)).expect("the same again").new);
    assert!(matches!(build(&root, None), Err(BuildError::Store(_))), "other content");
    for text in [&b""[..], b"echo x\n", b"#!sh\n", b"\n#!/bin/sh\n"] {
        write(&scripts.join("pre-remove"), text);
        let built = build(&root, Some(&scripts));
        assert!(matches!(built, Err(BuildError::NotRunnable(_))), "{text:?}");
    }
    fs::remove_file(scripts.join("pre-remove")).expect("removed");
    std::os::unix::fs::symlink("post-install", scripts.join("pre-remove")).expect("a link");
    assert!(matches!(build(&root, Some(&scripts)), Err(BuildError::NotRunnable(_))));
    fs::remove_file(scripts.join("pre-remove")).expect("removed");
    write(&scripts.join("postinst"), b"#!/bin/sh\n");
    assert!(matches!(build(&root, Some(&scripts)), Err(BuildError::Script(_))));
    let above = bench.directory.path();
    assert!(matches!(build(above, None), Err(BuildError::HoldsStore { .. })));
    assert!(matches!(build(&root.join("file"), None), Err(BuildError::Tree { .. })));
    bench.assert_clean();
    drop(socket);
}
