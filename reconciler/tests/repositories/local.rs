//! Local repositories: verification, users, permissions, priorities.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;

use crate::support::{Bench, mac};

#[test]
fn verification_names_each_difference() {
    let bench = Bench::new();
    bench.layer("main", "app", "1", &[("usr/bin/app", "one"), ("etc/app", "two")]);
    bench.layer("main", "lib", "1", &[("usr/lib/lib", "three")]);
    let clean = bench.good(&["repo", "verify", "main"]);
    assert!(clean.ends_with(": no difference\n"), "{clean}");
    let root = bench.unit("main", "app", "1").join("filesystem");
    let file = root.join("usr/bin/app");
    let times = fs::metadata(&file).expect("there").modified().expect("a time");
    fs::write(&file, "eno").expect("damaged");
    fs::File::open(&file).expect("there").set_modified(times).expect("as before");
    fs::write(root.join("stranger"), "").expect("written");
    fs::remove_file(root.join("etc/app")).expect("removed");
    fs::create_dir(bench.path("store/repos/main/ghost_1")).expect("made");
    let found = bench.differs(&["repo", "verify", "main"]);
    for line in [
        "app 1: /etc/app: missing\n",
        "app 1: /stranger: extra\n",
        "app 1: /usr/bin/app: content is ",
        "ghost_1: database: it is no unit: move it out of the repository",
    ] {
        assert!(found.contains(line), "{line:?} in {found}");
    }
    assert!(!found.contains("lib 1"), "{found}");
    let json = bench.differs(&["repo", "verify", "main", "--output", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((json["units"].as_u64(), json["checked_units"].as_u64()), (Some(2), Some(2)));
    let sample = bench.strata(&["repo", "verify", "main", "--sample", "1", "--seed", "1"]);
    let sample = String::from_utf8(sample.stdout).expect("UTF-8");
    assert!(sample.contains("1 of 2 units (seed 1)"), "{sample}");
    fs::write(bench.unit("main", "lib", "1").join("manifest.new"), "").expect("not looked at");
    fs::remove_file(bench.unit("main", "lib", "1").join("manifest")).expect("removed");
    assert!(bench.differs(&["repo", "verify", "main"]).contains("lib 1: unit: "));
}

#[test]
fn an_index_takes_no_unit_that_was_changed_unless_it_is_named() {
    let bench = Bench::new();
    bench.layer("main", "app", "1", &[("usr/bin/app", "one")]);
    bench.layer("main", "lib", "1", &[("usr/lib/lib", "two")]);
    let metadata = bench.unit("main", "app", "1").join("metadata");
    let text = fs::read_to_string(&metadata).expect("there");
    fs::write(&metadata, text + "Depends: zz\n").expect("changed");
    let said = bench.bad(&["repo", "index", "main"]);
    assert!(said.contains("others than its database says") && said.contains(": app 1\n"), "{said}");
    assert!(said.contains("hint: ") && said.contains("--accept 'app 1'"), "{said}");
    bench.bad(&["repo", "index", "main", "--accept", "lib 1"]);
    assert!(bench.bad(&["repo", "index", "main", "--accept", "app"]).contains("names no version"));
    bench.differs(&["repo", "verify", "main"]);
    bench.good(&["repo", "index", "main", "--accept", "app 1"]);
    bench.good(&["repo", "verify", "main"]);
    fs::create_dir(bench.path("store/repos/main/stranger")).expect("made");
    let said = bench.bad(&["repo", "index", "main"]);
    assert!(said.contains("move its directory out of the repository"), "{said}");
}

#[test]
fn what_an_index_without_a_database_loses_is_said() {
    let bench = Bench::new();
    bench.layer("main", "app", "1", &[("usr/bin/app", "one")]);
    bench.good(&["layer", "withdraw", "main/app", "1", "--reason", "CVE-2026-1"]);
    let note = |arguments: &[&str]| {
        let output = bench.strata(arguments);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).expect("UTF-8")
    };
    assert_eq!(note(&["repo", "index", "main"]), "", "the marks stay");
    fs::remove_file(bench.path("store/repos/main/database")).expect("moved away");
    let said = note(&["repo", "index", "main"]);
    assert!(said.starts_with("note: there was no database, and marks of withdrawal"), "{said}");
}

/// Of a rule that cannot be read nobody knows what it would have kept out.
#[test]
fn a_configuration_with_faults_writes_no_ldf() {
    let bench = Bench::new();
    bench.layer("main", "app", "2", &[("usr/bin/app", "two")]);
    bench.layer("main", "app", "4", &[("usr/bin/app", "four")]);
    let gitops = bench.path("gitops");
    fs::create_dir_all(gitops.join("templates")).expect("made");
    let directory = gitops.to_str().expect("UTF-8").to_owned();
    let ldf = gitops.join("templates/web.ldf");
    for fault in [
        "[[repository.deny]]\nname = \"app\"\nversions = \">= 4\"\n",
        "[[repository.deny]]\nname = \"app\"\nversion = \"> 2\"\n",
        "priority = \"high\"\n",
        "[[pin]]\nlayer = \"app\"\nversions = \"2*\"\n",
    ] {
        let text = format!("[[repository]]\nname = \"main\"\n{fault}");
        fs::write(gitops.join("strata.toml"), text).expect("written");
        fs::write(&ldf, "main/app\n").expect("written");
        let said = bench.differs(&["resolve", &directory]);
        assert!(said.contains("strata.toml:") && said.ends_with("0 of 1 LDFs changed\n"), "{said}");
        assert_eq!(fs::read_to_string(&ldf).expect("there"), "main/app\n", "{fault}");
        let said = bench.bad(&["resolve", &directory, "--why-not", "app 4"]);
        assert!(said.contains("hint: see them all: strata check"), "{said}");
        let create = ["template", "create", &directory, "sql", "--layer", "main/app"];
        assert!(bench.bad(&create).contains("strata.toml:"));
        assert!(!gitops.join("templates/sql.ldf").exists());
    }
}

#[test]
fn what_resolves_and_cannot_run_is_told_at_once() {
    let bench = Bench::new();
    bench.layer("main", "one", "1", &[("usr/bin/same", "one")]);
    bench.layer("main", "two", "1", &[("usr/bin/same", "two")]);
    let gitops = bench.path("gitops");
    fs::create_dir_all(gitops.join("templates")).expect("made");
    fs::write(gitops.join("strata.toml"), "[[repository]]\nname = \"main\"\n").expect("written");
    fs::write(gitops.join("templates/web.ldf"), "main/one\nmain/two\n").expect("written");
    let directory = gitops.to_str().expect("UTF-8").to_owned();
    for _ in 0..2 {
        let said = bench.differs(&["resolve", &directory]);
        assert!(said.contains("share the path /usr/bin/same"), "{said}");
    }
}

#[test]
fn what_a_layer_hides_is_shown_with_its_files() {
    use strata_core::manifest::{Entry, Kind, Manifest, Timestamp};
    use strata_core::metadata::{LayerKind, Metadata};

    let bench = Bench::new();
    let repository = crate::support::name("main");
    let staged = bench.store.stage_unit(&repository).expect("staged");
    let hidden = strata_core::whiteouts::Whiteouts::new(vec![b"etc/old".to_vec()]);
    fs::write(staged.scripts().join("whiteouts"), hidden.print()).expect("written");
    let (name, version) = (crate::support::name("tuning"), crate::support::name("1"));
    let metadata = Metadata::new(name, version, LayerKind::Configuration);
    let root = Entry {
        path: Vec::new(),
        kind: Kind::Directory,
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: Timestamp::default(),
        link_count: 1,
        xattrs: Default::default(),
    };
    let mut writer = bench.store.write_repository(&repository).expect("a writer");
    let manifest = Manifest::new(vec![root]).expect("valid");
    writer.publish(staged, metadata, &manifest).expect("published");
    writer.commit().expect("written");
    let shown = bench.good(&["layer", "show", "main/tuning", "--files"]);
    assert!(
        shown.contains("\nHides: 1 path\n") && shown.ends_with("\nhides /etc/old\n"),
        "{shown}"
    );
    let json = bench.good(&["layer", "show", "main/tuning", "--files", "--output", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["hidden"], serde_json::json!(["/etc/old"]));
}

#[test]
fn old_spellings_of_relations_are_refused_where_people_write_them() {
    let bench = Bench::new();
    for option in ["--depends", "--pre-depends", "--conflicts", "--provides"] {
        let build =
            ["layer", "build", "--name", "x", "--version", "1", "--root", "/", option, "z (< 2)"];
        let said = bench.bad(&build);
        assert!(said.contains("`<` is Debian's old spelling of `<=`"), "{said}");
    }
}

#[test]
fn a_damaged_database_hides_no_other_repository() {
    let bench = Bench::new();
    bench.layer("main", "app", "1", &[("usr/bin/app", "one")]);
    bench.layer("other", "app", "1", &[("usr/bin/app", "one")]);
    fs::write(bench.path("store/repos/main/database"), "Layer: app\nVer").expect("damaged");
    let listed = bench.differs(&["repo", "list"]);
    assert!(listed.contains("repos/main/database") && listed.contains("1 unit"), "{listed}");
    let json = bench.differs(&["repo", "list", "--output", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((&json[1]["repository"], &json[1]["units"]), (&"other".into(), &1.into()));
    // Nothing is collected on the strength of what cannot be read, and an index mends it.
    bench.bad(&["store", "gc"]);
    fs::remove_file(bench.path("store/repos/main/database")).expect("moved away");
    bench.good(&["repo", "index", "main"]);
    bench.good(&["repo", "list"]);
}

#[test]
fn reasons_are_plain_text() {
    let bench = Bench::new();
    bench.layer("main", "app", "1", &[("usr/bin/app", "one")]);
    let withdraw = |reason| ["layer", "withdraw", "main/app", "1", "--reason", reason];
    assert!(bench.bad(&withdraw("a\u{1b}[2Jb")).contains("the reason has control characters"));
    let said = bench.good(&withdraw(" CVE-2026-1,\n see the list "));
    assert!(said.starts_with("withdrew main/app 1: CVE-2026-1, see the list\n"), "{said}");
}

#[test]
fn who_still_uses_a_withdrawn_unit_is_listed() {
    let bench = Bench::new();
    bench.layer("main", "app", "1", &[("usr/bin/app", "one")]);
    let withdraw = ["layer", "withdraw", "main/app", "1", "--reason", "CVE-2026-1"];
    assert!(bench.good(&withdraw).ends_with("nothing uses it\n"));
    bench.good(&["layer", "restore", "main/app", "1"]);
    let id = bench.generation(&[("app", "1")]);
    bench.roll_out(&id);
    bench.report(id);
    let told = bench.good(&withdraw);
    for line in ["1 generation: web ", "1 ring: web/everyone", "1 VA that reports it: 52:54"] {
        assert!(told.contains(line), "{line:?} in {told}");
    }
    let json = bench.good(&["layer", "users", "main/app", "1", "--output", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["generations"][id.to_string()], "web");
    assert_eq!(json["active"][0]["mac"], mac().to_string());
}

#[test]
fn a_plain_database_is_read_and_a_damaged_one_is_told() {
    let bench = Bench::new();
    bench.layer("main", "app", "1", &[("usr/bin/app", "one")]);
    let database = bench.path("store/repos/main/database");
    let compressed = fs::read(&database).expect("there");
    assert!(compressed.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]), "a zstd frame");
    let plain = zstd::decode_all(compressed.as_slice()).expect("zstd");
    fs::write(&database, plain).expect("written");
    assert!(bench.good(&["layer", "list"]).contains("main/app"));
    fs::write(&database, &compressed[..compressed.len() - 3]).expect("written");
    let told = bench.bad(&["layer", "list"]);
    assert!(told.contains("cannot be decompressed") && told.contains("hint: "), "{told}");
}

#[test]
fn file_permissions_decide_who_reads_a_repository() {
    let bench = Bench::new();
    bench.layer("main", "app", "1", &[("usr/bin/app", "one")]);
    bench.layer("secret", "app", "1", &[("usr/bin/app", "two")]);
    let secret = bench.path("store/repos/secret");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o750)).expect("a mode");
    fs::set_permissions(bench.directory.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
    // The program itself may lie where nobody else gets to.
    let program = bench.path("strata");
    // A copy made by this process could be busy: other tests' children inherit it.
    let copied = std::process::Command::new("cp")
        .args([env!("CARGO_BIN_EXE_strata"), crate::support::text(&program)])
        .status();
    assert!(copied.expect("cp runs").success());
    let stranger = |arguments: &[&str]| {
        std::process::Command::new(&program)
            .args(arguments)
            .env("STRATA_STORE", bench.path("store"))
            .current_dir("/")
            .uid(65534)
            .gid(65534)
            .output()
            .expect("strata runs")
    };
    let refused = stranger(&["layer", "list", "--repo", "secret"]);
    let told = String::from_utf8(refused.stderr).expect("UTF-8");
    assert_eq!(refused.status.code(), Some(2), "{told}");
    assert!(told.contains("no permission to read the repository secret"), "{told}");
    assert!(told.contains("hint: file permissions decide"), "{told}");
    assert!(stranger(&["layer", "list", "--repo", "main"]).status.success());
    let listed = String::from_utf8(stranger(&["repo", "list"]).stdout).expect("UTF-8");
    assert!(listed.contains("main ") && listed.contains("no permission"), "{listed}");
    // The next writer keeps the mode that the operator chose.
    bench.layer("secret", "app", "2", &[("usr/bin/app", "three")]);
    let mode = fs::metadata(&secret).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o750);
}

#[test]
fn two_layers_of_one_name_are_told_apart_as_the_ldf_says() {
    let bench = Bench::new();
    bench.layer("main", "app", "1", &[("usr/bin/app", "main")]);
    bench.layer("local", "app", "1", &[("usr/bin/app", "local")]);
    let gitops = bench.path("gitops");
    fs::create_dir_all(gitops.join("templates")).expect("made");
    let configuration = "[[repository]]\nname = \"main\"\npriority = 900\n\n[[repository]]\nname = \"local\"\npriority = 100\n";
    fs::write(gitops.join("strata.toml"), configuration).expect("written");
    let ldf = gitops.join("templates/web.ldf");
    let directory = gitops.to_str().expect("UTF-8").to_owned();
    for repository in ["main", "local"] {
        fs::write(&ldf, format!("{repository}/app\n")).expect("written");
        bench.good(&["resolve", &directory]);
        let resolved = fs::read_to_string(&ldf).expect("readable");
        assert_eq!(resolved, format!("{repository}/app 1\n"));
        bench.good(&["check", &directory]);
    }
}

#[test]
fn a_filter_is_told_where_something_cannot_be_resolved() {
    let bench = Bench::new();
    bench.layer("main", "app", "1", &[("usr/bin/app", "one")]);
    bench.layer("main", "app", "2", &[("usr/bin/app", "two")]);
    let gitops = bench.path("gitops");
    fs::create_dir_all(gitops.join("templates")).expect("made");
    let directory = gitops.to_str().expect("UTF-8").to_owned();
    let rules = |rules: &str| {
        let text = format!("[[repository]]\nname = \"main\"\n{rules}");
        fs::write(gitops.join("strata.toml"), text).expect("written");
        fs::write(gitops.join("templates/web.ldf"), "main/app\n").expect("written");
    };
    rules("[[repository.deny]]\nname = \"app\"\nversion = \">= 2\"\nreason = \"not yet\"\n");
    bench.good(&["resolve", &directory]);
    let resolved = fs::read_to_string(gitops.join("templates/web.ldf")).expect("readable");
    assert_eq!(resolved, "main/app 1\n", "the newest that is allowed");
    fs::write(gitops.join("templates/web.ldf"), "main/app 2\n").expect("written");
    let told = bench.differs(&["check", &directory]);
    assert!(told.contains("strata.toml:3 denies name app, version >= 2: not yet"), "{told}");
    rules("[[repository.deny]]\nname = \"a*\"\n");
    let told = bench.differs(&["resolve", &directory]);
    assert!(told.contains("main/app"), "{told}");
}
