//! `strata resolve`: edits, questions and what an upgrade keeps back (§5.2).

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::{CONFIGURATION, World};

struct Fleet {
    world: World,
    directory: PathBuf,
}

impl Fleet {
    fn new(files: &[(&str, &str)]) -> Self {
        let world = World::without_commit();
        let directory = world.path("fleet");
        fs::create_dir_all(directory.join("templates")).expect("made");
        fs::write(directory.join("strata.toml"), CONFIGURATION).expect("written");
        for (path, text) in files {
            fs::write(directory.join(path), text).expect("written");
        }
        Fleet { world, directory }
    }

    fn resolve(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_strata"))
            .arg("resolve")
            .arg(&self.directory)
            .args(arguments)
            .env("STRATA_STORE", self.world.store.root())
            .env_remove("STRATA_LOG")
            .output()
            .expect("runs")
    }

    /// Standard output, where the exit status is the expected one.
    fn prints(&self, status: i32, arguments: &[&str]) -> String {
        let output = self.resolve(arguments);
        assert_eq!(output.status.code(), Some(status), "{arguments:?} {output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    fn template(&self) -> String {
        fs::read_to_string(self.directory.join("templates/web.ldf")).expect("read")
    }
}

#[test]
fn layers_are_added_upgraded_and_removed() {
    let fleet = Fleet::new(&[("templates/web.ldf", "main/base 1\n")]);
    fleet.prints(1, &["--add", "app", "--check"]);
    assert_eq!(fleet.template(), "main/base 1\n", "--check writes nothing");
    fleet.prints(0, &["--add", "main/app 1"]);
    assert_eq!(fleet.template(), "main/base 1\nmain/app 1\n");
    fleet.prints(0, &["--upgrade", "app"]);
    assert_eq!(fleet.template(), "main/base 1\nmain/app 2\n");
    let printed = fleet.prints(0, &["--remove", "base"]);
    assert!(printed.contains("  - main/base 1\n"), "{printed}");
    assert_eq!(fleet.template(), "main/app 2\n");
    for wrong in [["--remove", "app"], ["--remove", "base"], ["--add", "nothing"]] {
        let output = fleet.resolve(&wrong);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("\nhint: "), "{output:?}");
    }
}

#[test]
fn several_ldfs_need_a_name() {
    let files = [("templates/web.ldf", "main/base 1\n"), ("templates/sql.ldf", "main/base 1\n")];
    let fleet = Fleet::new(&files);
    assert_eq!(fleet.resolve(&["--add", "app"]).status.code(), Some(2));
    assert_eq!(fleet.resolve(&["--add", "app", "--ldf", "nobody"]).status.code(), Some(2));
    // What it would not hold to a name, it refuses.
    for ignored in
        [&["--ldf", "web"][..], &["--upgrade", "--ldf", "web"], &["--check", "--ldf", "web"]]
    {
        let refused = fleet.resolve(ignored);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(2) && said.contains("--why-not"), "{refused:?}");
    }
    fleet.prints(0, &["--add", "app", "--ldf", "web"]);
    assert_eq!(fleet.template(), "main/base 1\nmain/app 2\n");
}

#[test]
fn questions_are_answered_and_write_nothing() {
    let text = "=main/app 1\nmain/base 1\n";
    let fleet = Fleet::new(&[("templates/web.ldf", text)]);
    let printed = fleet.prints(0, &["--why", "app"]);
    assert_eq!(printed, "web:\n  main/app 1 (explicit, templates/web.ldf:1)\n");
    fleet.prints(1, &["--why", "nothing"]);
    let printed = fleet.prints(1, &["--why-not", "app 2"]);
    assert!(
        printed.contains("=main/app 1 (line 1) and main/app 2 cannot go together"),
        "{printed}"
    );
    let json = fleet.prints(1, &["--why-not", "app 2", "--output", "json"]);
    let answer: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(answer["compositions"]["web"]["answer"], "impossible");
    let json = fleet.prints(0, &["--upgrade", "--output", "json"]);
    let report: Value = serde_json::from_str(&json).expect("JSON");
    let kept = &report["kept_back"]["templates/web.ldf"][0];
    assert_eq!((&kept["best"], &kept["reason"]), (&"main/app 2".into(), &"line 1 holds it".into()));
    assert_eq!(fleet.template(), text);
}
