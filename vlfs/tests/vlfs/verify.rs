//! `verify`, and `--verify-open`: a damaged layer is named, and not served.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Output};

use strata_core::generation::LayerSetEntry;

use crate::fixture::{PROGRAM, read, wait_for};
use crate::store::{Va, mac};

/// The `filesystem` directory of a unit.
fn files(va: &Va, unit: &LayerSetEntry) -> PathBuf {
    va.store.unit_path(&unit.repository, &unit.layer, &unit.version).join("filesystem")
}

fn verify(va: &Va, more: &[&str]) -> Output {
    Command::new(PROGRAM)
        .args(["verify", "--store"])
        .arg(va.store.root())
        .args(more)
        .output()
        .expect("the program runs")
}

fn json(output: &Output) -> serde_json::Value {
    assert_ne!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn every_kind_of_damage_is_named() {
    let va = Va::new();
    let names = ["content", "time", "size", "gone", "kind", "mode", "owner", "attribute"];
    let units: Vec<_> = names.iter().map(|name| va.unit(name, "1", name, "text")).collect();
    let extra = va.unit("extra", "1", "expected", "text");
    let missing = va.unit("missing", "1", "whole", "text");
    let sound = va.unit("sound", "1", "sound", "text");
    let mut all = units.clone();
    all.extend([extra.clone(), missing.clone(), sound]);
    let id = va.roll_out(all).to_string();
    let clean = verify(&va, &["--generation", &id]);
    assert_eq!(clean.status.code(), Some(0), "{}", String::from_utf8_lossy(&clean.stdout));

    let at = |index: usize| files(&va, &units[index]).join(names[index]);
    let dated = |path: &PathBuf| {
        let file = std::fs::File::open(path).expect("opened");
        file.set_modified(std::time::UNIX_EPOCH).expect("set");
    };
    std::fs::write(at(0), "TEXT").expect("written");
    dated(&at(0));
    std::fs::write(at(1), "text").expect("written");
    std::fs::write(at(2), "longer text").expect("written");
    dated(&at(2));
    std::fs::remove_file(at(3)).expect("removed");
    std::fs::remove_file(at(4)).expect("removed");
    symlink("/etc/passwd", at(4)).expect("linked");
    for index in [3, 4] {
        dated(&files(&va, &units[index]));
    }
    std::fs::set_permissions(at(5), std::fs::Permissions::from_mode(0o4755)).expect("set");
    std::os::unix::fs::chown(at(6), Some(7), None).expect("set");
    rustix::fs::setxattr(at(7), "user.evil", b"1", rustix::fs::XattrFlags::empty()).expect("set");
    std::fs::write(files(&va, &extra).join("implant"), "x").expect("written");
    dated(&files(&va, &extra));
    std::fs::remove_dir_all(files(&va, &missing).parent().expect("the unit")).expect("removed");

    let found = verify(&va, &["--va", &mac().to_string(), "--output", "json"]);
    assert_eq!(found.status.code(), Some(1));
    let found = json(&found);
    let mut listed: Vec<String> = Vec::new();
    for difference in found["differences"].as_array().expect("a list") {
        let faults: Vec<_> = difference["faults"].as_array().expect("a list").iter().collect();
        let whats: Vec<_> = faults.iter().map(|f| f["what"].as_str().expect("a word")).collect();
        let path = difference["path"].as_str().unwrap_or("-");
        listed.push(format!(
            "{} {path} {}",
            difference["layer"].as_str().expect("a name"),
            whats.join("+")
        ));
    }
    listed.sort();
    assert_eq!(
        listed,
        [
            "main/attribute 1 attribute xattrs",
            "main/content 1 content content",
            "main/extra 1 implant extra",
            "main/gone 1 gone missing",
            "main/kind 1 kind type",
            "main/missing 1 - unit",
            "main/mode 1 mode mode",
            "main/owner 1 owner owner",
            "main/size 1 size size",
            "main/time 1 time mtime",
        ]
    );
}

#[test]
fn a_sample_is_repeatable_and_of_the_size_asked_for() {
    let va = Va::new();
    let units = (0..20).map(|n| va.unit(&format!("unit{n}"), "1", &format!("file{n}"), "x"));
    let id = va.roll_out(units.collect()).to_string();
    let sample = |more: &[&str]| {
        let mut arguments = vec!["--generation", &id, "--output", "json"];
        arguments.extend(more);
        json(&verify(&va, &arguments))
    };
    let seven = sample(&["--sample", "7", "--seed", "3"]);
    assert_eq!(seven["checked_paths"], 7);
    assert_eq!(seven["seed"], 3);
    let share = sample(&["--sample", "50%", "--seed", "3"]);
    let checked = share["checked_paths"].as_u64().expect("a number");
    assert!((5..35).contains(&checked), "about half of 40: {checked}");
    assert_eq!(share, sample(&["--sample", "50%", "--seed", "3"]));
    for none in ["0%", "0"] {
        let refused = verify(&va, &["--generation", &id, "--sample", none]);
        assert_eq!(refused.status.code(), Some(2), "{none}");
    }
}

#[test]
fn a_mount_is_verified_by_the_generation_it_serves() {
    let va = Va::new();
    let unit = va.unit("library", "1", "lib", "one");
    va.roll_out(vec![unit.clone()]);
    va.mount();
    let mount_point = va.path("").display().to_string();
    let run = || Command::new(PROGRAM).args(["verify", &mount_point]).output().expect("it runs");
    assert_eq!(run().status.code(), Some(0));
    std::fs::write(files(&va, &unit).join("lib"), "two").expect("damaged");
    let damaged = run();
    assert_eq!(damaged.status.code(), Some(1));
    let text = String::from_utf8_lossy(&damaged.stdout).into_owned();
    assert!(text.contains("main/library 1 /lib: mtime is"), "{text}");
    assert!(text.contains("content is"), "{text}");
}

#[test]
fn a_damaged_file_is_refused_at_its_first_open() {
    let mut va = Va::new();
    va.mount.extra = vec!["--verify-open".to_owned()];
    let bad = va.unit("bad", "1", "bad", "right");
    let good = va.unit("good", "1", "good", "right");
    va.roll_out(vec![bad.clone(), good]);
    std::fs::write(files(&va, &bad).join("bad"), "wrong").expect("damaged");
    va.mount();
    assert_eq!(read(va.path("good")), "right");
    for _ in 0..2 {
        let refused = std::fs::read(va.path("bad")).expect_err("refused");
        assert_eq!(refused.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    }
    let written = std::fs::OpenOptions::new().append(true).open(va.path("bad"));
    assert!(written.is_err(), "a copy would carry the damage on");
    let status: serde_json::Value = serde_json::from_str(&va.mount.status()).expect("JSON");
    assert_eq!(status["damaged_files"][0], "main/bad 1: /bad");
    wait_for("the report", || {
        let error = va.report().and_then(|report| report.error);
        error.is_some_and(|error| error.contains("main/bad 1: /bad"))
    });
    let log = read(va.mount.private().join("vlfs.log"));
    assert_eq!(log.matches("not the manifest's").count(), 1, "logged once: {log}");
    std::fs::write(va.path("bad"), "anew").expect("its content is not needed");
    assert_eq!(read(va.path("bad")), "anew");
}
