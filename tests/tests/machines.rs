//! A VA on its real VLFS, by the commands an operator has: what runs goes on
//! while its layers change, what is suspended takes the change when it is resumed
//! (§4.4), and nothing is left when it has stopped.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use strata_core::data_paths::DataPaths;
use strata_core::generation::{Generation, LayerSetEntry};
use strata_core::{
    CompositionName, GenerationId, LayerName, LayerVersion, RepositoryName, RingName,
};
use strata_store::Store;
use strata_tests::{Finished, Workspace, finish, leaks, wait_until};

const DEADLINE: Duration = Duration::from_secs(10);

fn va(workspace: &Workspace, arguments: &[&str]) -> Finished {
    finish(workspace.strata().arg("va").args(arguments))
}

fn sh(workspace: &Workspace, script: &str) -> Finished {
    va(workspace, &["exec", "web", "--", "sh", "-c", script])
}

fn status(workspace: &Workspace) -> serde_json::Value {
    let text = va(workspace, &["status", "web", "--output", "json"]).ok();
    serde_json::from_str(&text).expect("JSON")
}

/// A layer with a shell and a few programs of the host, and `etc/version`.
fn build_tiny(workspace: &Workspace, version: &str) {
    let root = workspace.write(format!("tiny-{version}"), &[("etc/version", version)]);
    for name in ["usr/bin", "proc", "sys", "dev", "run", "tmp"] {
        fs::create_dir_all(root.join(name)).expect("made");
    }
    for name in ["sh", "cat", "sleep"] {
        let program = Path::new("/usr/bin").join(name);
        fs::copy(&program, root.join("usr/bin").join(name)).expect("copied");
        for word in finish(Command::new("ldd").arg(&program)).ok().split_whitespace() {
            if let Some(path) = word.strip_prefix('/') {
                let target = root.join("usr").join(path);
                fs::create_dir_all(target.parent().expect("a parent")).expect("made");
                fs::copy(word, target).expect("copied");
            }
        }
    }
    for name in ["bin", "lib", "lib64"] {
        fs::create_dir_all(root.join("usr").join(name)).expect("made");
        std::os::unix::fs::symlink(format!("usr/{name}"), root.join(name)).expect("linked");
    }
    let mut command = workspace.strata();
    command.args(["layer", "build", "--repo", "main", "--name", "tiny", "--version", version]);
    finish(command.arg("--root").arg(root)).ok();
}

/// Rolls a version out, as the reconciler does.
fn roll_out(workspace: &Workspace, version: &str) -> GenerationId {
    roll_out_with(workspace, version, &[])
}

fn roll_out_with(workspace: &Workspace, version: &str, data: &[&str]) -> GenerationId {
    let store = Store::open(&workspace.store()).expect("a store");
    let repository = RepositoryName::new("main").expect("valid");
    let layer = LayerName::new("tiny").expect("valid");
    let version = LayerVersion::new(version).expect("valid");
    let database = store.database(&repository).expect("a database");
    let unit = database.get(&layer, &version).expect("it was built");
    let (kind, digest) = (unit.metadata.kind, unit.digest);
    let ldf = format!("main/tiny {version}\n");
    let entry = LayerSetEntry { kind, repository, layer, version, digest };
    let web = CompositionName::new("web").expect("valid");
    let generation = Generation::new(web.clone(), vec![entry], ldf).expect("one layer");
    let data = data.iter().map(|path| path.parse().expect("a data path")).collect();
    let generation = generation.with_data(DataPaths::new(data).expect("none nested"));
    let (id, _) = store.seal_generation(&generation, "test").expect("sealed");
    store.move_ring(&web, &RingName::new("everyone").expect("valid"), &id).expect("moved");
    id
}

#[test]
fn a_va_takes_updates_running_and_suspended() {
    let workspace = Workspace::new("machines");
    workspace.init_store();
    build_tiny(&workspace, "1");
    build_tiny(&workspace, "2");
    let first = roll_out(&workspace, "1").to_string();
    va(&workspace, &["provision", "--template", "web", "web"]).ok();
    va(&workspace, &["start", "web"]).ok();
    assert_eq!(sh(&workspace, "cat /etc/version").ok(), "1");
    assert_eq!(status(&workspace)["active"], first);
    assert_eq!(sh(&workspace, "exit 42").code, 42);

    // Running: served within a second, without a restart, what was written kept.
    sh(&workspace, "echo kept >/etc/mine; sleep 1000 >/run/log 2>&1 &").ok();
    let init = status(&workspace)["init"].clone();
    let second = roll_out(&workspace, "2").to_string();
    let began = Instant::now();
    wait_until("the new version is served", DEADLINE, || {
        sh(&workspace, "cat /etc/version").stdout == "2"
    });
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(status(&workspace)["init"], init);
    assert_eq!(status(&workspace)["active"], second);

    // Suspended: its link says the new generation, it itself does when resumed.
    va(&workspace, &["suspend", "web"]).ok();
    roll_out(&workspace, "1");
    let suspended = status(&workspace);
    assert_eq!(suspended["state"], "suspended");
    assert_eq!((&suspended["desired"], &suspended["active"]), (&first.clone().into(), &().into()));
    assert_eq!(sh(&workspace, "true").code, 2);
    let began = Instant::now();
    va(&workspace, &["resume", "web"]).ok();
    assert_eq!(status(&workspace)["active"], first);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(sh(&workspace, "cat /etc/version /etc/mine").ok(), "1kept\n");

    va(&workspace, &["stop", "web"]).ok();
    assert_eq!(leaks::everything(&workspace.path("")), [""; 0]);
    // Stopped: composed afresh.
    roll_out(&workspace, "2");
    va(&workspace, &["start", "web"]).ok();
    assert_eq!(sh(&workspace, "cat /etc/version /etc/mine").ok(), "2kept\n");
    va(&workspace, &["stop", "web"]).ok();
    va(&workspace, &["destroy", "--yes", "web"]).ok();
    assert_eq!(va(&workspace, &["list", "--output", "json"]).ok().trim(), "[]");
    workspace.finish();
}

/// §6.4: declared with the template, on the private disk, through updates and restarts.
#[test]
fn data_directories_of_a_va() {
    let workspace = Workspace::new("data");
    workspace.init_store();
    build_tiny(&workspace, "1");
    build_tiny(&workspace, "2");
    roll_out_with(&workspace, "1", &["/srv/db"]);
    va(&workspace, &["provision", "--template", "web", "web"]).ok();
    va(&workspace, &["start", "web"]).ok();
    sh(&workspace, "echo rows >/srv/db/rows").ok();
    let kept = workspace.store().join("machines/web/private/data/srv%2fdb");
    assert_eq!(fs::read_to_string(kept.join("rows")).expect("on the private disk"), "rows\n");

    // Nobody in the VA can make one; should one be there, nobody can open it.
    let device = rustix::fs::makedev(1, 3);
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    let kind = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(rustix::fs::CWD, kept.join("null"), kind, mode, device).expect("made");
    let opened = sh(&workspace, "cat /srv/db/null");
    assert!(opened.code != 0 && opened.stderr.contains("Permission denied"), "{opened:?}");

    let second = roll_out_with(&workspace, "2", &["/srv/db"]).to_string();
    wait_until("the new version is served", DEADLINE, || status(&workspace)["active"] == second);
    assert_eq!(sh(&workspace, "cat /etc/version /srv/db/rows").ok(), "2rows\n");
    va(&workspace, &["stop", "web"]).ok();
    assert_eq!(leaks::everything(&workspace.path("")), [""; 0]);
    va(&workspace, &["start", "web"]).ok();
    assert_eq!(sh(&workspace, "cat /srv/db/rows").ok(), "rows\n");
    va(&workspace, &["stop", "web"]).ok();
    workspace.finish();
}

#[test]
fn whatever_is_killed_stop_cleans_up() {
    let workspace = Workspace::new("killed");
    workspace.init_store();
    build_tiny(&workspace, "1");
    roll_out(&workspace, "1");
    va(&workspace, &["provision", "--template", "web", "web"]).ok();
    for suspended in [false, true] {
        for victims in [&["init"][..], &["vlfs"], &["vlfs", "init"]] {
            let busy = "while :; do echo >/x; cat /etc/version >/y; done";
            va(&workspace, &["start", "web", "--", "sh", "-c", busy]).ok();
            if suspended {
                va(&workspace, &["suspend", "web"]).ok();
            }
            let status = status(&workspace);
            for victim in victims {
                let pids = match *victim {
                    "init" => status["init"].to_string(),
                    _ => status["vlfs_processes"].to_string(),
                };
                let pids = pids.replace(['[', ']', ','], " ").replace('\n', " ");
                finish(Command::new("kill").arg("-KILL").args(pids.split_whitespace())).ok();
            }
            va(&workspace, &["stop", "web", "--timeout", "2"]).ok();
            let left = leaks::everything(&workspace.path(""));
            assert_eq!(left, [""; 0], "{victims:?}, suspended: {suspended}");
        }
    }
    workspace.finish();
}

#[test]
fn a_va_is_renamed_and_cloned_with_what_it_wrote() {
    let workspace = Workspace::new("cloned");
    workspace.init_store();
    build_tiny(&workspace, "1");
    roll_out_with(&workspace, "1", &["/srv/db"]);
    va(&workspace, &["provision", "--template", "web", "first"]).ok();
    va(&workspace, &["start", "first"]).ok();
    let run = |name: &str, script: &str| va(&workspace, &["exec", name, "--", "sh", "-c", script]);
    run("first", "echo mine >/etc/mine; echo changed >/etc/version; echo rows >/srv/db/rows").ok();
    let running = va(&workspace, &["rename", "first", "web"]).exits(2);
    assert!(running.stderr.contains("hint: stop it first"), "{running:?}");
    va(&workspace, &["stop", "first"]).ok();
    va(&workspace, &["rename", "first", "web"]).ok();
    let made = va(&workspace, &["clone", "--private", "--output", "json", "web", "copy"]).ok();
    let made: serde_json::Value = serde_json::from_str(&made).expect("JSON");
    assert_eq!((&made[0]["name"], &made[0]["template"]), (&"copy".into(), &"web".into()));
    va(&workspace, &["clone", "web", "fresh"]).ok();
    for name in ["web", "copy", "fresh"] {
        va(&workspace, &["start", name]).ok();
    }
    for name in ["web", "copy"] {
        let seen = run(name, "cat /etc/mine /etc/version /srv/db/rows");
        assert_eq!(seen.ok(), "mine\nchanged\nrows\n", "{name}");
    }
    // Each has its own from now on.
    run("copy", "echo other >/etc/mine; echo none >/srv/db/rows").ok();
    assert_eq!(run("web", "cat /etc/mine /srv/db/rows").ok(), "mine\nrows\n");
    assert_eq!(run("fresh", "cat /etc/version; cat /etc/mine || echo none").stdout, "1none\n");
    for name in ["web", "copy", "fresh"] {
        va(&workspace, &["stop", name]).ok();
    }
    workspace.finish();
}

/// §4.5, and `docs/drill.md`: found from outside, reset, salvaged, back in service.
#[test]
fn a_compromised_va_is_found_reset_and_salvaged() {
    let workspace = Workspace::new("drill");
    workspace.init_store();
    build_tiny(&workspace, "1");
    roll_out(&workspace, "1");
    va(&workspace, &["provision", "--template", "web", "web"]).ok();
    va(&workspace, &["start", "web"]).ok();
    sh(&workspace, "echo 'a year of work' >/etc/work").ok();
    // The intruder: a program replaced, one added that gives root away, a trace removed.
    sh(&workspace, "cat /usr/bin/cat >/usr/bin/sleep; cat /usr/bin/sh >/usr/bin/back").ok();
    let private = workspace.store().join("machines/web/private");
    let back = private.join("upper/usr/bin/back");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o4755);
    fs::set_permissions(&back, mode).expect("set");

    // Nothing in it runs while it is looked at, and nothing of it is asked.
    va(&workspace, &["suspend", "web"]).ok();
    let mut diff = workspace.vlfs();
    let found = finish(diff.arg("diff").arg(&private)).exits(1).stdout;
    for line in ["A usr/bin/back", "M usr/bin/sleep", "A etc/work"] {
        assert!(found.lines().any(|found| found.starts_with(line)), "{line}: {found}");
    }
    let watched = ["drift", "web", "--watch", "usr/**", "--watch", "setuid", "--output", "json"];
    let drift = va(&workspace, &watched).exits(1).stdout;
    assert!(drift.contains("usr/bin/back") && drift.contains("setuid"), "{drift}");

    // Out of service at once, a fresh private layer, and back.
    va(&workspace, &["stop", "web", "--timeout", "0"]).ok();
    let mac = status(&workspace)["mac"].as_str().expect("an address").to_owned();
    let mut reset = workspace.vlfs();
    finish(reset.arg("reset").arg(&private)).ok();
    va(&workspace, &["start", "web"]).ok();
    assert_eq!(sh(&workspace, "cat /etc/version").ok(), "1");
    assert_ne!(sh(&workspace, "test -e /usr/bin/back").code, 0);
    va(&workspace, &["drift", "web", "--watch", "usr/**", "--watch", "setuid"]).ok();

    // What it held is read and copied, never run: the old files read-only, beside it.
    let mut former = fs::read_dir(private.join("former")).expect("kept");
    let former = former.next().expect("one").expect("listed").path();
    let rescue = workspace.path("rescue");
    fs::create_dir(&rescue).expect("made");
    let mut mount = workspace.vlfs();
    mount.args(["mount", "--va", &mac, "--former"]).arg(&former).arg(&rescue);
    finish(&mut mount).ok();
    let work = fs::read_to_string(rescue.join("etc/work")).expect("salvaged");
    assert_eq!(work, "a year of work\n");
    assert!(fs::write(rescue.join("etc/work"), "x").is_err(), "read-only");
    finish(Command::new("umount").arg(&rescue)).ok();
    va(&workspace, &["stop", "web"]).ok();
    workspace.finish();
}

/// What a provisioned VA has for itself: its name, its address, and where it writes.
fn identities(workspace: &Workspace, provisioned: &str) -> BTreeSet<(String, String, PathBuf)> {
    let printed: Vec<serde_json::Value> = serde_json::from_str(provisioned).expect("JSON");
    let identity = |va: &serde_json::Value| {
        let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
        let (name, mac) = (text(&va["name"]), text(&va["mac"]));
        let directory = workspace.store().join("machines").join(&name);
        let record = fs::read(directory.join("va.json")).expect("a record");
        let record: serde_json::Value = serde_json::from_slice(&record).expect("JSON");
        assert_eq!((text(&record["name"]), text(&record["mac"])), (name.clone(), mac.clone()));
        assert!(workspace.store().join("va").join(&mac).is_symlink(), "{mac}");
        (name, mac, directory.join(text(&record["private"])))
    };
    let identities: BTreeSet<_> = printed.iter().map(identity).collect();
    assert_eq!(identities.len(), printed.len(), "no VA is printed twice");
    identities
}

/// No two VAs have a name, an address or a place to write in common.
fn assert_distinct(identities: &[(String, String, PathBuf)]) {
    let names: BTreeSet<_> = identities.iter().map(|(name, _, _)| name).collect();
    let macs: BTreeSet<_> = identities.iter().map(|(_, mac, _)| mac).collect();
    let disks: BTreeSet<_> = identities.iter().map(|(_, _, disk)| disk).collect();
    assert_eq!([names.len(), macs.len(), disks.len()], [identities.len(); 3]);
}

fn listed(workspace: &Workspace) -> Vec<serde_json::Value> {
    let text = va(workspace, &["list", "--output", "json"]).ok();
    serde_json::from_str(&text).expect("JSON")
}

fn nothing_is_left(workspace: &Workspace) {
    for directory in ["machines", "va"] {
        let left = fs::read_dir(workspace.store().join(directory)).expect("listed");
        assert_eq!(left.count(), 0, "{directory}");
    }
    assert_eq!(listed(workspace).len(), 0);
}

/// §6.1: a VA is a name, an address and a link, so a thousand are one command.
#[test]
fn a_thousand_vas_are_provisioned_listed_and_destroyed_by_a_command_each() {
    let workspace = Workspace::new("thousand");
    workspace.init_store();
    workspace.build_layer("main", "tiny", "1", &[("etc/version", "1")], &[]);
    roll_out(&workspace, "1");
    let many = ["provision", "--template", "web", "--count", "1000", "--output", "json"];
    let made = identities(&workspace, &va(&workspace, &many).ok());
    assert_eq!(made.len(), 1000);
    assert_distinct(&made.iter().cloned().collect::<Vec<_>>());
    let listed = listed(&workspace);
    assert_eq!(listed.len(), 1000);
    for row in &listed {
        assert_eq!((&row["state"], &row["template"]), (&"stopped".into(), &"web".into()), "{row}");
    }
    let names: Vec<&str> = made.iter().map(|(name, _, _)| name.as_str()).collect();
    let destroyed = va(&workspace, &[&["destroy", "--yes"][..], names.as_slice()].concat()).ok();
    assert_eq!(destroyed.lines().count(), 1000);
    nothing_is_left(&workspace);
    workspace.finish();
}

#[test]
fn provision_commands_at_once_never_collide() {
    let workspace = Workspace::new("at-once");
    workspace.init_store();
    workspace.build_layer("main", "tiny", "1", &[("etc/version", "1")], &[]);
    roll_out(&workspace, "1");
    let at_once = |commands: &[&[&str]]| -> Vec<Finished> {
        let workspace = &workspace;
        std::thread::scope(|scope| {
            let start = |arguments: &&[&str]| {
                let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
                scope.spawn(move || finish(workspace.strata().arg("va").args(arguments)))
            };
            let running: Vec<_> = commands.iter().map(start).collect();
            running.into_iter().map(|one| one.join().expect("no panic")).collect()
        })
    };
    // The same names are wanted by all, on two kinds of machine.
    let many: &[&str] = &["provision", "--template", "web", "--count", "100", "--output", "json"];
    let virtual_machines = [many, &["--driver", "qemu"][..]].concat();
    let mut all = Vec::new();
    for finished in at_once(&[many, &virtual_machines, many, &virtual_machines]) {
        let made = identities(&workspace, &finished.ok());
        assert_eq!(made.len(), 100);
        all.extend(made);
    }
    assert_distinct(&all);
    assert_eq!(listed(&workspace).len(), 400);
    // One name, and one address, for several: one command wins, the others say why not.
    let named: &[&str] = &["provision", "--template", "web", "one"];
    let results = at_once(&[named; 4]);
    let refused: Vec<_> = results.iter().filter(|finished| finished.code != 0).collect();
    assert_eq!(refused.len(), 3, "{results:?}");
    assert!(refused.iter().all(|finished| finished.stderr.contains("there is a VA one already")));
    let addressed = |name| ["provision", "--template", "web", "--mac", "52:54:00:00:00:07", name];
    let commands = [addressed("a"), addressed("b"), addressed("c"), addressed("d")];
    let commands: Vec<&[&str]> = commands.iter().map(|command| command.as_slice()).collect();
    let results = at_once(&commands);
    let refused: Vec<_> = results.iter().filter(|finished| finished.code != 0).collect();
    assert_eq!(refused.len(), 3, "{results:?}");
    assert!(refused.iter().all(|finished| finished.stderr.contains("belongs to")), "{refused:?}");
    let names: Vec<String> = listed(&workspace)
        .iter()
        .map(|row| row["name"].as_str().expect("a name").to_owned())
        .collect();
    assert_eq!(names.len(), 402);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    va(&workspace, &[&["destroy", "--yes"][..], names.as_slice()].concat()).ok();
    nothing_is_left(&workspace);
    workspace.finish();
}
