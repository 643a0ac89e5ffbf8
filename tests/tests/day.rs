//! A whole day in a minute: a fleet lives through a canary, a health check that
//! fails, the automatic rollback, quarantine, a fix, a promotion, suspended and stopped
//! VAs that come back, and `git revert` (§4.4, §6.2). What an operator sees is written
//! down, and must be what `docs/a-day.md` shows.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use strata_tests::git::{commit_all, git, init};
use strata_tests::{Workspace, finish, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);
const ONE_SECOND: Duration = Duration::from_secs(1);
const TRANSCRIPT: &str = "../docs/a-day.md";
/// Set, the test writes the transcript instead of comparing it.
const WRITE: &str = "STRATA_WRITE_TRANSCRIPT";

const CONFIGURATION: &str = r#"[[repository]]
name = "main"

[rollout]
on-failure = "auto-rollback"

[[rollout.ring]]
name = "canary"
soak = "1s"
deadline = "30s"

[[rollout.ring]]
name = "everyone"
deadline = "30s"
"#;

/// The shop sells while its shelf says so.
const HEALTH: &str = r#"[[check]]
command = ["sh", "-c", "read shelf < /etc/shelf; test $shelf != empty"]
deadline = "10s"
retries = 1
"#;

const VAS: [(&str, &str); 4] = [
    ("canary-1", "canary"),
    ("shop-1", "everyone"),
    ("shop-2", "everyone"),
    ("shop-3", "everyone"),
];

struct Day {
    workspace: Workspace,
    git: PathBuf,
    told: String,
    /// Ids and what the transcript calls them.
    names: Vec<(String, String)>,
}

impl Day {
    fn dawn() -> Self {
        let workspace = Workspace::new("day");
        workspace.init_store();
        build_shell(&workspace);
        for (version, shelf) in [("1", "apples"), ("2", "empty"), ("3", "pears")] {
            let shelf = format!("{shelf}\n");
            workspace.build_layer("main", "shop", version, &[("etc/shelf", &shelf)], &[]);
        }
        let files = [
            ("strata.toml", CONFIGURATION),
            ("templates/shop.ldf", "main/shell 1\nmain/shop 1\n"),
            ("templates/shop.health", HEALTH),
        ];
        let git = workspace.write("gitops", &files);
        let commit = init(&git);
        let mut day = Day { workspace, git, told: String::new(), names: Vec::new() };
        day.names.push((commit, "the-first-commit".to_owned()));
        day
    }

    fn say(&mut self, text: &str) {
        self.told.push_str(&format!("\n{text}\n"));
    }

    /// Runs a `strata` command as an operator would, and writes down what it printed.
    fn run(&mut self, code: i32, arguments: &[&str]) {
        let done = finish(self.workspace.strata().args(arguments)).exits(code);
        let shown: Vec<_> = arguments
            .iter()
            .map(|word| if word.contains(' ') { format!("'{word}'") } else { (*word).to_owned() })
            .collect();
        let printed = format!("{}{}", done.stdout, done.stderr);
        let text = self.tidy(&printed);
        self.told.push_str(&format!("\n```\n$ strata {}\n{text}```\n", shown.join(" ")));
    }

    /// Ids by their names, and no times: the transcript is the same every day.
    fn tidy(&self, text: &str) -> String {
        let directory = self.workspace.path("").display().to_string();
        let mut text = text.replace(&directory, "/srv/");
        for (id, name) in &self.names {
            text = text.replace(id.as_str(), name).replace(&id[..12], name);
        }
        let mut lines = String::new();
        for line in text.lines() {
            let mut words: Vec<&str> = line.split(' ').collect();
            while let Some(at) = words.windows(3).position(|w| {
                w[0].parse::<u64>().is_ok()
                    && matches!(w[1], "s" | "min")
                    && w[2].starts_with("ago")
            }) {
                let ago = if words[at + 2].ends_with(':') { "just now:" } else { "just now" };
                words.splice(at..at + 3, [ago]);
            }
            lines.push_str(words.join(" ").trim_end());
            lines.push('\n');
        }
        lines
    }

    fn merge(&mut self, version: &str, message: &str, called: &str) {
        let ldf = format!("main/shell 1\nmain/shop {version}\n");
        fs::write(self.git.join("templates/shop.ldf"), ldf).expect("the template is ours");
        let commit = commit_all(&self.git, message);
        self.names.push((commit, called.to_owned()));
        let shown = format!("\n```\n$ git merge {called}    # {message}\n```\n");
        self.told.push_str(&shown);
    }

    fn ring(&self, ring: &str) -> String {
        let link = self.workspace.path("store/rings/shop").join(ring);
        let target = fs::read_link(link).unwrap_or_default();
        target.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Gives the generation that a ring is on a name for the transcript.
    fn call(&mut self, ring: &str, name: &str) -> String {
        let id = self.ring(ring);
        self.names.push((id.clone(), name.to_owned()));
        id
    }

    fn rollout(&self) -> Value {
        let mut command = self.workspace.strata();
        let text = finish(command.args(["rollout", "status", "--output", "json"])).stdout;
        let status: Value = serde_json::from_str(&text).unwrap_or_default();
        status["rollouts"][0].clone()
    }

    fn await_phase(&self, phase: &str) {
        wait_until(&format!("the rollout is {phase}"), PATIENCE, || {
            self.rollout()["phase"] == phase
        });
    }

    fn root(&self, name: &str) -> PathBuf {
        self.workspace.path(format!("store/machines/{name}/run/root"))
    }

    fn shelf(&self, name: &str) -> String {
        let text = fs::read_to_string(self.root(name).join("etc/shelf")).unwrap_or_default();
        text.trim().to_owned()
    }

    fn va_state(&self, name: &str) -> Value {
        let text = finish(self.workspace.strata().args(["status", "--output", "json"])).stdout;
        let status: Value = serde_json::from_str(&text).expect("valid JSON");
        let vas = status["vas"].as_array().expect("a list of VAs");
        vas.iter().find(|va| va["name"] == name).expect("the VA is listed")["state"].clone()
    }

    fn va(&self, arguments: &[&str]) {
        finish(self.workspace.strata().arg("va").args(arguments)).ok();
    }
}

/// A layer with a shell of the host and what it needs.
fn build_shell(workspace: &Workspace) {
    let root = workspace.write("shell", &[]);
    for name in ["usr/bin", "usr/lib", "usr/lib64", "proc", "sys", "dev", "run", "tmp"] {
        fs::create_dir_all(root.join(name)).expect("made");
    }
    fs::copy("/usr/bin/sh", root.join("usr/bin/sh")).expect("copied");
    for word in finish(Command::new("ldd").arg("/usr/bin/sh")).ok().split_whitespace() {
        if let Some(path) = word.strip_prefix('/') {
            let target = root.join("usr").join(path);
            fs::create_dir_all(target.parent().expect("a parent")).expect("made");
            fs::copy(word, target).expect("copied");
        }
    }
    for name in ["bin", "lib", "lib64"] {
        std::os::unix::fs::symlink(format!("usr/{name}"), root.join(name)).expect("linked");
    }
    let mut command = workspace.strata();
    command.args(["layer", "build", "--repo", "main", "--name", "shell", "--version", "1"]);
    finish(command.arg("--root").arg(root)).ok();
}

/// The generation that a mounted VLFS says it serves.
fn serves(root: &Path) -> String {
    let mut value = [0; 64];
    match rustix::fs::getxattr(root, "user.strata.generation", &mut value) {
        Ok(length) => String::from_utf8_lossy(&value[..length]).into_owned(),
        Err(_) => String::new(),
    }
}

#[test]
fn a_whole_day_in_a_minute() {
    let mut day = Day::dawn();
    let mut command = day.workspace.strata();
    command.args(["reconcile", "--source"]).arg(&day.git).env_remove("STRATA_LOG");
    day.workspace.spawn("reconcile", &mut command);
    let everyone = day.workspace.path("store/rings/shop/everyone");
    wait_until("the first generation is everywhere", PATIENCE, || everyone.exists());
    morning(&mut day);
    a_bad_commit(&mut day);
    the_fix(&mut day);
    evening(&mut day);
    compare(&day.told);
    for (name, _) in VAS {
        day.va(&["stop", name]);
    }
    day.workspace.finish();
}

fn morning(day: &mut Day) {
    day.say("## Morning: four shops, one of them a canary");
    for (number, (name, ring)) in (1..).zip(VAS) {
        let mac = format!("52:54:00:00:00:{number:02x}");
        day.va(&["provision", "--template", "shop", "--ring", ring, "--mac", &mac, name]);
        day.va(&["start", name]);
    }
    day.call("everyone", "apples");
    for (name, _) in VAS {
        wait_until("a shop is in sync", PATIENCE, || day.va_state(name) == "in-sync");
    }
    day.say("One shop is suspended, another is stopped for the day.");
    day.run(0, &["va", "suspend", "shop-2"]);
    day.run(0, &["va", "stop", "shop-3"]);
    day.run(0, &["rollout", "status"]);
}

fn a_bad_commit(day: &mut Day) {
    day.say("## Ten o'clock: a bad commit\n\nThe new shelf is empty. The canary takes it, its health check fails, and the canary goes back by itself; no other shop ever saw it.");
    let apples = day.ring("everyone");
    let shop = day.root("shop-1");
    day.merge("2", "Clear the shelf", "a-bad-commit");
    wait_until("the canary is moved", PATIENCE, || day.ring("canary") != apples);
    day.call("canary", "empty");
    // What is decided is on the disk before the links say so.
    day.await_phase("quarantined");
    wait_until("the canary is moved back", PATIENCE, || day.ring("canary") == apples);
    wait_until("the canary sells apples", PATIENCE, || day.shelf("canary-1") == "apples");
    assert_eq!((serves(&shop), day.shelf("shop-1")), (apples, "apples".to_owned()));
    wait_until("the canary is in sync", PATIENCE, || day.va_state("canary-1") == "in-sync");
    day.run(1, &["rollout", "status"]);
    day.say("Nothing of it is tried again; a new commit decides.");
}

fn the_fix(day: &mut Day) {
    day.say("## Noon: the fix\n\nThe fix goes to the canary first. It is healthy and soaks; the operator has seen enough and promotes it.");
    let apples = day.ring("everyone");
    day.run(0, &["rollout", "pause", "shop", "--reason", "lunch"]);
    day.merge("3", "Put pears on the shelf", "the-fix");
    day.await_phase("paused");
    wait_until("the fix is the target", PATIENCE, || day.rollout()["quarantined"].is_null());
    assert_eq!(day.ring("canary"), apples, "paused, nothing moves");
    day.run(0, &["rollout", "resume", "shop", "--reason", "after lunch"]);
    wait_until("the canary is moved", PATIENCE, || day.ring("canary") != apples);
    day.call("canary", "pears");
    wait_until("the canary is healthy", PATIENCE, || day.shelf("canary-1") == "pears");
    let promoted = finish(day.workspace.strata().args([
        "rollout",
        "promote",
        "shop",
        "--reason",
        "it looks good",
    ]));
    // It may have soaked for long enough by itself meanwhile.
    assert!(matches!(promoted.code, 0 | 2), "{promoted:?}");
    day.told.push_str("\n```\n$ strata rollout promote shop --reason 'it looks good'\n```\n");
    day.await_phase("done");
    wait_until("the running shop sells pears", PATIENCE, || day.shelf("shop-1") == "pears");
    for name in ["canary-1", "shop-1"] {
        wait_until("a shop is in sync", PATIENCE, || day.va_state(name) == "in-sync");
    }
    day.say("The suspended and the stopped shop count as pending, never as failed.");
    day.run(0, &["rollout", "status"]);
    day.run(1, &["status", "--ring", "everyone"]);
}

fn evening(day: &mut Day) {
    day.say("## Afternoon: the others come back\n\nThe suspended shop serves the new shelf within a second of being resumed; the stopped one starts with it.");
    let pears = day.ring("everyone");
    let resumed = Instant::now();
    day.run(0, &["va", "resume", "shop-2"]);
    wait_until("the resumed shop sells pears", PATIENCE, || serves(&day.root("shop-2")) == pears);
    let took = resumed.elapsed();
    assert!(took < ONE_SECOND, "the resumed shop swapped after {took:?}");
    day.run(0, &["va", "start", "shop-3"]);
    for (name, _) in VAS {
        wait_until("a shop is in sync", PATIENCE, || day.va_state(name) == "in-sync");
        assert_eq!(day.shelf(name), "pears");
    }
    day.run(0, &["rollout", "status"]);
    day.say("## Evening: back to apples\n\nA revert is a commit like any other: canary first, then everyone, and the former generation is exactly the one of the morning.");
    git(&day.git, &["revert", "--no-commit", "HEAD", "HEAD~1"]);
    let commit = commit_all(&day.git, "Back to apples");
    day.names.push((commit, "the-revert".to_owned()));
    day.told.push_str("\n```\n$ git revert the-fix a-bad-commit\n```\n");
    let apples = day.names.iter().find(|(_, name)| name == "apples").expect("named").0.clone();
    wait_until("everyone is back", PATIENCE, || {
        day.ring("everyone") == apples && day.rollout()["phase"] == "done"
    });
    for (name, _) in VAS {
        wait_until("a shop is in sync", PATIENCE, || day.va_state(name) == "in-sync");
        assert_eq!(day.shelf(name), "apples");
    }
    day.run(0, &["rollout", "status"]);
}

/// What the operator saw must be what the documentation shows.
fn compare(told: &str) {
    let head = "# A day\n\nWhat `strata` shows while a fleet lives through a day: written by `tests/tests/day.rs`, which runs it in a minute and\nfails where this page differs (`STRATA_WRITE_TRANSCRIPT=1 cargo test --workspace --test day` writes it anew). Generations and\ncommits have names here, as their ids differ each time. How rollouts work is in [rollouts.md](rollouts.md).\n";
    let page = format!("{head}{told}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(TRANSCRIPT);
    if std::env::var_os(WRITE).is_some() {
        fs::write(&path, page).expect("the documentation can be written");
        return;
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(page, written, "{TRANSCRIPT} is not what happened: set {WRITE}=1 to write it");
}
