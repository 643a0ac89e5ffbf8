//! From a merged commit to the layer set that running, suspended and stopped
//! VAs really serve (§4.4, §6.2): asked of the mounted file systems.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use strata_tests::git::{commit_all, git, init};
use strata_tests::{Workspace, finish, wait_until};

/// From the merge to the running VA, and from the resume to the resumed one.
const ONE_SECOND: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(60);

/// A reconciler, its git repository, and a template `web` on the layer `app 1`.
struct Fleet {
    workspace: Workspace,
    git: PathBuf,
}

impl Fleet {
    fn new(name: &str, reconcile: &[&str]) -> Self {
        let mut workspace = Workspace::new(name);
        workspace.init_store();
        for version in ["1", "2"] {
            let files = [("etc/version", version), ("usr/share/same", "unchanged")];
            workspace.build_layer("main", "app", version, &files, &[]);
        }
        let git = workspace.write(
            "gitops",
            &[
                ("strata.toml", "[[repository]]\nname = \"main\"\n"),
                ("templates/web.ldf", "main/app 1\n"),
            ],
        );
        init(&git);
        commit_all(&git, "the first definition");
        let mut command = workspace.strata();
        command.args(["reconcile", "--source"]).arg(&git).args(reconcile);
        workspace.spawn("reconcile", &mut command);
        let ring = workspace.path("store/rings/web/everyone");
        wait_until("the ring has its first generation", PATIENCE, || ring.exists());
        Fleet { workspace, git }
    }

    fn va(&self, arguments: &[&str]) -> String {
        finish(self.workspace.strata().arg("va").args(arguments)).ok()
    }

    fn provision(&self, name: &str) {
        self.va(&["provision", "--template", "web", name]);
    }

    /// Changes the template to `app <version>` and commits. Returns when.
    fn merge(&self, version: &str) -> Instant {
        std::fs::write(self.git.join("templates/web.ldf"), format!("main/app {version}\n"))
            .expect("the template is ours");
        let merged = Instant::now();
        commit_all(&self.git, &format!("app {version}"));
        merged
    }

    fn root(&self, name: &str) -> PathBuf {
        self.workspace.path(format!("store/machines/{name}/run/root"))
    }

    /// What a program in the VA reads.
    fn version(&self, name: &str) -> String {
        std::fs::read_to_string(self.root(name).join("etc/version")).unwrap_or_default()
    }

    fn status(&self, name: &str) -> Value {
        let text = finish(self.workspace.strata().args(["status", "--output", "json"])).stdout;
        let status: Value = serde_json::from_str(&text).expect("valid JSON");
        let vas = status["vas"].as_array().expect("a list of VAs");
        vas.iter().find(|va| va["name"] == name).expect("the VA is listed").clone()
    }

    /// The generation that a VA's link names.
    fn desired(&self, name: &str) -> String {
        let record = self.workspace.path(format!("store/machines/{name}/va.json"));
        let record = std::fs::read_to_string(record).expect("the VA has a record");
        let record: Value = serde_json::from_str(&record).expect("valid JSON");
        let mac = record["mac"].as_str().expect("a MAC address");
        let target = self.workspace.path("store/va").join(mac).canonicalize();
        let target = target.expect("the link does not dangle");
        let generation = target.parent().and_then(Path::file_name).expect("a generation");
        generation.to_string_lossy().into_owned()
    }

    fn finish(self, names: &[&str]) {
        for name in names {
            self.va(&["stop", name]);
        }
        self.workspace.finish();
    }
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
fn a_merge_reaches_running_suspended_and_stopped_vas() {
    let fleet = Fleet::new("rollout", &[]);
    for name in ["running", "suspended", "stopped"] {
        fleet.provision(name);
        fleet.va(&["start", name]);
        assert_eq!(fleet.version(name), "1");
    }
    let first = fleet.desired("running");
    fleet.va(&["suspend", "suspended"]);
    fleet.va(&["stop", "stopped"]);

    // §4.4: the running VA has the update at once, without a restart.
    let merged = fleet.merge("2");
    let running = fleet.root("running");
    wait_until("the running VA serves the new generation", PATIENCE, || {
        fleet.version("running") == "2"
    });
    let took = merged.elapsed();
    assert!(took < ONE_SECOND, "the running VA was served after {took:?}");
    let second = fleet.desired("running");
    assert_ne!(second, first);
    assert_eq!(serves(&running), second);

    // §6.2: the suspended VA's definition has moved in the same second.
    assert_eq!(fleet.desired("suspended"), second);
    let status = fleet.status("suspended");
    assert_eq!(status["state"], "pending", "{status}");
    assert!(status.to_string().contains("suspended"), "it says why: {status}");
    assert_eq!(fleet.status("stopped")["state"], "pending");

    let resumed = Instant::now();
    fleet.va(&["resume", "suspended"]);
    wait_until("the resumed VA serves the new generation", PATIENCE, || {
        serves(&fleet.root("suspended")) == second
    });
    let took = resumed.elapsed();
    assert!(took < ONE_SECOND, "the resumed VA was served after {took:?}");
    assert_eq!(fleet.version("suspended"), "2");
    wait_until("the resumed VA is in sync", PATIENCE, || {
        fleet.status("suspended")["state"] == "in-sync"
    });

    // §4.4: a stopped VA composes the new layer set when it boots.
    fleet.va(&["start", "stopped"]);
    assert_eq!(serves(&fleet.root("stopped")), second);
    assert_eq!(fleet.version("stopped"), "2");

    // A revert brings exactly the former generation back.
    git(&fleet.git, &["revert", "--no-edit", "HEAD"]);
    for name in ["running", "suspended", "stopped"] {
        wait_until("the former generation is served", PATIENCE, || {
            serves(&fleet.root(name)) == first
        });
        assert_eq!(fleet.version(name), "1");
    }
    let explained = fleet.va(&["explain", "running"]);
    assert!(explained.contains(&first[..12]), "{explained}");

    // A bad commit is refused with its reasons, and nothing moves.
    std::fs::write(fleet.git.join("templates/web.ldf"), "main/nothing 1\n").expect("ours");
    let bad = commit_all(&fleet.git, "a bad commit");
    let state = fleet.workspace.path("store/state/reconcile.json");
    wait_until("the commit is refused", PATIENCE, || {
        let text = std::fs::read_to_string(&state).unwrap_or_default();
        let state: Value = serde_json::from_str(&text).unwrap_or_default();
        state["refused"]["commit"] == bad.trim()
            && state["refused"]["problems"].to_string().contains("templates/web.ldf:1")
    });
    assert_eq!(fleet.desired("running"), first);
    fleet.finish(&["running", "suspended", "stopped"]);
}

#[test]
fn without_events_a_merge_arrives_within_the_poll_interval() {
    let fleet = Fleet::new("polling", &["--no-events", "--poll", "3"]);
    fleet.provision("web-01");
    fleet.va(&["start", "web-01"]);
    let merged = fleet.merge("2");
    wait_until("the VA serves the new generation", PATIENCE, || fleet.version("web-01") == "2");
    let took = merged.elapsed();
    // The reconciler's interval with its jitter, and the VA's look at its link.
    assert!(took < Duration::from_secs(3) + ONE_SECOND, "{took:?}");
    fleet.finish(&["web-01"]);
}

#[test]
fn the_private_layer_is_the_vas_own() {
    let fleet = Fleet::new("private", &[]);
    for name in ["changed", "untouched"] {
        fleet.provision(name);
        fleet.va(&["start", name]);
    }
    let changed = fleet.root("changed");
    std::fs::write(changed.join("etc/version"), "mine").expect("copied up");
    std::fs::write(changed.join("etc/new"), "new").expect("made");
    std::fs::remove_file(changed.join("usr/share/same")).expect("whited out");
    assert_eq!(fleet.version("untouched"), "1");
    assert!(fleet.root("untouched").join("usr/share/same").exists());

    // §5.5: the copy survives the swap, the white-out of the replaced unit does not.
    fleet.merge("2");
    let second =
        || serves(&changed) == fleet.desired("changed") && fleet.version("untouched") == "2";
    wait_until("both VAs serve the new generation", PATIENCE, second);
    assert_eq!(fleet.version("changed"), "mine");
    assert!(changed.join("usr/share/same").exists());
    let mut revert = Command::new(strata_tests::program("strata-vlfs"));
    finish(revert.arg("revert").arg(changed.join("etc/version"))).ok();
    assert_eq!(fleet.version("changed"), "2");

    // A restart composes the same file system again.
    fleet.va(&["stop", "changed"]);
    fleet.va(&["start", "changed"]);
    assert_eq!(std::fs::read_to_string(changed.join("etc/new")).expect("kept"), "new");
    fleet.finish(&["changed", "untouched"]);
}
