//! Scripts of layers in VAs (§5.1): in order, once, with their failures shown, whatever
//! happens around them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use strata_core::generation::{Generation, LayerSetEntry};
use strata_core::scripts::policy::{OnFailure, ScriptPolicy};
use strata_core::{CompositionName, GenerationId, LayerName, LayerVersion, RingName};
use strata_store::Store;
use strata_tests::git::{commit_all, init};
use strata_tests::{Finished, Workspace, finish, leaks, program, wait_until};

const DEADLINE: Duration = Duration::from_secs(20);
/// Notes in the VA's private layer which script ran, and for what.
const NOTE: &str = "#!/bin/sh\nread -r version </etc/version\n\
    echo \"$STRATA_SCRIPT $STRATA_LAYER $* on $version\" >>/log\n";
const SCRIPTS: [&str; 4] = ["pre-remove", "pre-install", "post-remove", "post-install"];

/// A store, and one VA called `web`.
struct Bench {
    workspace: Workspace,
}

impl Bench {
    fn new(name: &str) -> Bench {
        let workspace = Workspace::new(name);
        workspace.init_store();
        let bench = Bench { workspace };
        bench.base("1");
        bench.base("2");
        bench
    }

    /// A layer with a shell and a few programs of the host, and `etc/version`.
    fn base(&self, version: &str) {
        let root = self.workspace.write(format!("base-{version}"), &[("etc/version", version)]);
        fs::write(root.join("etc/version"), format!("{version}\n")).expect("written");
        for name in ["usr/bin", "proc", "sys", "dev", "run", "tmp"] {
            fs::create_dir_all(root.join(name)).expect("made");
        }
        for name in ["sh", "cat", "sleep", "seq", "setsid", "readlink"] {
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
        let mut command = self.workspace.strata();
        command.args(["layer", "build", "--repo", "main", "--name", "base"]);
        finish(command.args(["--version", version, "--root"]).arg(root)).ok();
    }

    /// A layer with these scripts and nothing else but a file of its name.
    fn unit(&self, name: &str, version: &str, scripts: &[(&str, &str)], options: &[&str]) {
        let directory = self.workspace.write(format!("scripts-{name}-{version}"), scripts);
        let file = format!("usr/share/{name}");
        let mut further = vec!["--scripts", directory.to_str().expect("UTF-8")];
        further.extend(options);
        self.workspace.build_layer("main", name, version, &[(&file, version)], &further);
    }

    /// One whose scripts all note that they ran.
    fn noting(&self, name: &str, version: &str, options: &[&str]) {
        self.unit(name, version, &SCRIPTS.map(|script| (script, NOTE)), options);
    }

    fn store(&self) -> Store {
        Store::open(&self.workspace.store()).expect("a store")
    }

    /// Rolls these units out, as the reconciler does.
    fn roll_out(&self, units: &[(&str, &str)], policy: ScriptPolicy) -> GenerationId {
        let store = self.store();
        let repository = "main".parse().expect("valid");
        let database = store.database(&repository).expect("a database");
        let mut units = units.to_vec();
        units.sort_unstable();
        let entry = |(layer, version): &(&str, &str)| {
            let layer = LayerName::new(*layer).expect("valid");
            let version = LayerVersion::new(*version).expect("valid");
            let unit = database.get(&layer, &version).expect("it was built");
            let (kind, digest) = (unit.metadata.kind, unit.digest);
            LayerSetEntry { kind, repository: repository.clone(), layer, version, digest }
        };
        let entries: Vec<_> = units.iter().map(entry).collect();
        let ldf = entries.iter().map(|entry| format!("{entry}\n")).collect();
        let web = CompositionName::new("web").expect("valid");
        let generation = Generation::new(web.clone(), entries, ldf).expect("a set");
        let generation = generation.with_scripts(policy);
        let (id, _) = store.seal_generation(&generation, "test").expect("sealed");
        store.move_ring(&web, &RingName::new("everyone").expect("valid"), &id).expect("moved");
        id
    }

    fn va(&self, arguments: &[&str]) -> Finished {
        finish(self.workspace.strata().arg("va").args(arguments))
    }

    fn start(&self) {
        self.va(&["provision", "--template", "web", "web"]).ok();
        self.va(&["start", "web"]).ok();
    }

    fn root(&self) -> PathBuf {
        self.workspace.store().join("machines/web/run/root")
    }

    fn sh(&self, script: &str) -> Finished {
        self.va(&["exec", "web", "--", "sh", "-c", script])
    }

    /// What the scripts have noted, and from now on nothing.
    fn log(&self) -> Vec<String> {
        let text = self.sh("cat /log; >/log").stdout;
        text.lines().map(str::to_owned).collect()
    }

    fn vlfs(&self, arguments: &[&str]) -> Finished {
        let mut command = self.workspace.vlfs();
        finish(command.args(arguments).arg(self.root()))
    }

    fn scripts(&self) -> Value {
        let mut command = self.workspace.vlfs();
        let listed = command.args(["scripts", "list"]).arg(self.root()).args(["--output", "json"]);
        serde_json::from_str(&finish(listed).stdout).unwrap_or_default()
    }

    /// The VA as `strata status` has it.
    fn status(&self) -> Value {
        let text = finish(self.workspace.strata().args(["status", "--output", "json"])).stdout;
        let status: Value = serde_json::from_str(&text).expect("JSON");
        status["vas"][0].clone()
    }

    fn serves(&self) -> String {
        let mut value = [0; 64];
        match rustix::fs::getxattr(self.root(), "user.strata.generation", &mut value) {
            Ok(length) => String::from_utf8_lossy(&value[..length]).into_owned(),
            Err(_) => String::new(),
        }
    }

    /// Waits until the generation is served, and the mount is done with it: a mount that went
    /// back serves the former one before it has seen that the link names that again.
    #[track_caller]
    fn settled(&self, what: &str, generation: &GenerationId) {
        let generation = generation.to_string();
        wait_until(what, DEADLINE, || {
            self.serves() == generation && self.scripts()["state"] == "idle"
        });
    }

    fn finish(self) {
        self.va(&["stop", "web"]).ok();
        self.workspace.finish();
    }
}

fn keep_going() -> ScriptPolicy {
    ScriptPolicy::new(OnFailure::KeepGoing, 20).expect("valid")
}

fn swap_back() -> ScriptPolicy {
    ScriptPolicy::new(OnFailure::SwapBack, 20).expect("valid")
}

/// §5.1, §5.2: before and after the swap, Pre-Depends first, leaving in reverse, each once.
#[test]
fn scripts_run_once_in_order_around_boot_and_swaps() {
    let bench = Bench::new("scripts-order");
    bench.noting("app", "1", &["--pre-depends", "lib", "--depends", "base"]);
    bench.noting("app", "2", &["--pre-depends", "lib"]);
    bench.noting("lib", "1", &[]);
    let first = bench.roll_out(&[("base", "1"), ("app", "1"), ("lib", "1")], keep_going());
    bench.start();
    // `va start` returns when they have run: nothing is to be waited for.
    assert_eq!(
        bench.log(),
        [
            "pre-install main/lib install 1 on 1",
            "pre-install main/app install 1 on 1",
            "post-install main/lib install 1 on 1",
            "post-install main/app install 1 on 1",
        ]
    );
    bench.settled("the first generation", &first);

    let second = bench.roll_out(&[("base", "2"), ("app", "2"), ("lib", "1")], keep_going());
    bench.settled("the second generation", &second);
    assert_eq!(
        bench.log(),
        [
            "pre-remove main/app upgrade 1 2 on 1",
            "pre-install main/app upgrade 2 1 on 1",
            "post-remove main/app upgrade 1 2 on 2",
            "post-install main/app upgrade 2 1 on 2",
        ]
    );
    let third = bench.roll_out(&[("base", "2")], keep_going());
    bench.settled("the third generation", &third);
    assert_eq!(
        bench.log(),
        [
            "pre-remove main/app remove 2 on 2",
            "pre-remove main/lib remove 1 on 2",
            "post-remove main/app remove 2 on 2",
            "post-remove main/lib remove 1 on 2",
        ]
    );
    // A restart and a swap of others run nothing; what changed meanwhile runs at the start.
    bench.va(&["stop", "web"]).ok();
    assert_eq!(leaks::everything(&bench.workspace.path("")), [""; 0]);
    bench.va(&["start", "web"]).ok();
    assert_eq!(bench.log(), [""; 0]);
    bench.va(&["stop", "web"]).ok();
    bench.roll_out(&[("base", "1"), ("lib", "1")], keep_going());
    bench.va(&["start", "web", "--", "sh", "-c", "cat /log >/seen; sleep 1000"]).ok();
    // §4.4: before the appliance's command.
    wait_until("the command has begun", DEADLINE, || bench.sh("cat /seen").code == 0);
    let installed = ["pre-install main/lib install 1 on 1", "post-install main/lib install 1 on 1"];
    wait_until("the command has read", DEADLINE, || {
        bench.sh("cat /seen").stdout.lines().eq(installed)
    });
    // Another private layer has nothing integrated.
    bench.va(&["stop", "web"]).ok();
    finish(
        bench
            .workspace
            .vlfs()
            .arg("reset")
            .arg(bench.workspace.store().join("machines/web/private")),
    )
    .ok();
    bench.va(&["start", "web"]).ok();
    assert_eq!(bench.log(), installed);
    bench.finish();
}

/// §4.4: a suspended VA takes the change, and its scripts, when it is resumed.
#[test]
fn a_suspended_va_runs_them_when_it_is_resumed() {
    let bench = Bench::new("scripts-suspended");
    bench.noting("app", "1", &[]);
    bench.noting("app", "2", &[]);
    bench.roll_out(&[("base", "1"), ("app", "1")], keep_going());
    bench.start();
    bench.log();
    bench.va(&["suspend", "web"]).ok();
    let second = bench.roll_out(&[("base", "2"), ("app", "2")], keep_going());
    bench.va(&["resume", "web"]).ok();
    bench.settled("the second generation", &second);
    let log = bench.log();
    assert_eq!(log.len(), 4, "{log:?}");
    assert_eq!(log[0], "pre-remove main/app upgrade 1 2 on 1");
    assert_eq!(log[3], "post-install main/app upgrade 2 1 on 2");
    // Suspended in the middle of a script: its time stands still with it.
    let slow = "#!/bin/sh\n>/began\nsleep 1\necho ended >>/log\n";
    bench.unit("slow", "1", &[("post-install", slow)], &[]);
    let policy = ScriptPolicy::new(OnFailure::KeepGoing, 3).expect("valid");
    let third = bench.roll_out(&[("base", "2"), ("app", "2"), ("slow", "1")], policy);
    wait_until("the script runs", DEADLINE, || bench.root().join("began").exists());
    bench.va(&["suspend", "web"]).ok();
    let began = Instant::now();
    wait_until("more than its time passes", DEADLINE, || {
        began.elapsed() > Duration::from_millis(3500)
    });
    bench.va(&["resume", "web"]).ok();
    bench.settled("the third generation", &third);
    assert_eq!(bench.log(), ["ended"]);
    assert_eq!(
        bench.scripts()["records"]
            .as_array()
            .expect("a list")
            .iter()
            .filter(|r| r["open"] == true)
            .count(),
        0
    );
    bench.finish();
}

/// A failure is kept, shown everywhere, and run again when somebody asks.
#[test]
fn a_failing_script_is_a_condition_and_the_others_run() {
    let bench = Bench::new("scripts-failing");
    let fails = "#!/bin/sh\necho 'adding the user'\nif ! read -r x </allowed; then echo \"$(printf 'no such\\033[2J user')\" >&2; exit 3; fi\n";
    bench.unit("bad", "1", &[("post-install", fails)], &[]);
    bench.noting("good", "1", &["--depends", "bad"]);
    let first = bench.roll_out(&[("base", "1")], keep_going());
    bench.start();
    bench.settled("the first generation", &first);
    let second = bench.roll_out(&[("base", "1"), ("bad", "1"), ("good", "1")], keep_going());
    bench.settled("the second generation", &second);
    assert_eq!(
        bench.log().last().map(String::as_str),
        Some("post-install main/good install 1 on 1")
    );
    wait_until("the status has the condition", DEADLINE, || {
        bench.status()["conditions"][0]["type"] == "ScriptsFailed"
    });
    let status = bench.status();
    assert_eq!(
        (&status["state"], &status["active"]),
        (&"in-sync".into(), &second.to_string().into())
    );
    let condition = &status["conditions"][0];
    assert_eq!(condition["reason"], "KeptGoing");
    let failure = &condition["failures"][0];
    assert_eq!(
        (&failure["layer"], &failure["script"]),
        (&"main/bad 1".into(), &"post-install".into())
    );
    assert_eq!(failure["outcome"], serde_json::json!({"exit": 3}));
    let output = failure["output"].as_str().expect("text");
    assert!(output.starts_with("adding the user\n") && output.contains("no such"), "{output:?}");
    assert!(!output.contains('\u{1b}'));
    let shown = finish(bench.workspace.strata().arg("status")).exits(1).stdout;
    assert!(shown.contains("main/bad 1 post-install: exit status 3"), "{shown}");
    let explained = finish(bench.workspace.strata().args(["va", "explain", "web"])).exits(1).stdout;
    assert!(explained.contains("main/bad 1 post-install: exit status 3"), "{explained}");
    let own = bench.vlfs(&["status"]).ok();
    assert!(
        own.contains("main/bad 1 post-install: exit status 3") && own.contains("| adding the user"),
        "{own}"
    );

    // Kept through a restart, and not run again by it.
    bench.va(&["stop", "web"]).ok();
    bench.va(&["start", "web"]).ok();
    assert_eq!(bench.log(), [""; 0]);
    bench.vlfs(&["scripts", "list"]).exits(1);
    let again = bench.vlfs(&["scripts", "retry"]).ok();
    assert_eq!(again, "1 script runs again\n");
    wait_until("it has failed again", DEADLINE, || {
        bench.scripts()["records"]
            .as_array()
            .is_some_and(|r| r.iter().filter(|r| r["outcome"]["exit"] == 3).count() == 2)
    });
    bench.settled("the second generation", &second);
    bench.sh("echo yes >/allowed").ok();
    bench.vlfs(&["scripts", "retry"]).ok();
    bench.settled("the second generation", &second);
    wait_until("the condition has gone", DEADLINE, || bench.status()["conditions"].is_null());
    finish(bench.workspace.strata().arg("status")).ok();
    bench.vlfs(&["scripts", "list"]).ok();
    let nothing = bench.vlfs(&["scripts", "retry"]).exits(2);
    assert!(nothing.stderr.contains("no script failed"), "{nothing:?}");
    bench.finish();
}

/// The policy's other choice: back to the layers of before, once, and again when asked.
#[test]
fn a_failing_script_swaps_back_and_does_not_loop() {
    let bench = Bench::new("scripts-back");
    let fails = "#!/bin/sh\nread -r x </allowed || exit 3\n";
    bench.noting("app", "1", &[]);
    let scripts = [
        ("pre-remove", NOTE),
        ("pre-install", NOTE),
        ("post-remove", NOTE),
        ("post-install", fails),
    ];
    bench.unit("app", "2", &scripts, &[]);
    let first = bench.roll_out(&[("base", "1"), ("app", "1")], swap_back());
    bench.start();
    bench.log();
    let second = bench.roll_out(&[("base", "2"), ("app", "2")], swap_back());
    wait_until("it has swapped back", DEADLINE, || bench.scripts()["state"] == "swapped-back");
    assert_eq!(bench.serves(), first.to_string());
    let there_and_back = [
        "pre-remove main/app upgrade 1 2 on 1",
        "pre-install main/app upgrade 2 1 on 1",
        "post-remove main/app upgrade 1 2 on 2",
        "pre-remove main/app upgrade 2 1 on 2",
        "pre-install main/app upgrade 1 2 on 2",
        "post-remove main/app upgrade 2 1 on 1",
        "post-install main/app upgrade 1 2 on 1",
    ];
    assert_eq!(bench.log(), there_and_back);
    wait_until("the status says so", DEADLINE, || bench.status()["state"] == "failed");
    let status = bench.status();
    assert_eq!(
        (&status["desired"], &status["active"]),
        (&second.to_string().into(), &first.to_string().into())
    );
    assert_eq!(status["conditions"][0]["reason"], "SwappedBack");
    let error = status["error"].as_str().expect("a text");
    assert!(error.starts_with("main/app 2 post-install: exit status 3: "), "{error}");
    assert!(error.contains("; swapped back to "), "{error}");

    // Not by itself: neither with time nor with a restart.
    bench.va(&["stop", "web"]).ok();
    bench.va(&["start", "web"]).ok();
    assert_eq!((bench.log(), bench.serves()), (vec![], first.to_string()));
    let refused = bench.vlfs(&["scripts", "accept"]).exits(2);
    assert!(refused.stderr.contains("went back"), "{refused:?}");
    // Asked for: the same way.
    bench.vlfs(&["scripts", "retry"]).ok();
    wait_until("it has been tried again", DEADLINE, || {
        bench.scripts()["records"]
            .as_array()
            .is_some_and(|r| r.iter().filter(|r| r["outcome"]["exit"] == 3).count() == 2)
    });
    wait_until("it has swapped back", DEADLINE, || bench.scripts()["state"] == "swapped-back");
    assert_eq!(bench.log(), there_and_back);
    // Another generation is tried at once; the first one was never left.
    bench.sh("echo yes >/allowed").ok();
    bench.roll_out(&[("base", "1"), ("app", "1")], swap_back());
    bench.settled("the first generation", &first);
    wait_until("the condition goes", DEADLINE, || bench.status()["conditions"].is_null());
    assert_eq!(bench.log(), [""; 0]);
    bench.roll_out(&[("base", "2"), ("app", "2")], swap_back());
    bench.settled("the second generation", &second);
    assert_eq!(bench.scripts()["state"], "idle");
    bench.finish();
}

/// The first generation has none before it: the failure shows, and the VA runs.
#[test]
fn at_the_first_start_there_is_nothing_to_go_back_to() {
    let bench = Bench::new("scripts-first");
    bench.unit("app", "1", &[("pre-install", "#!/bin/nothing-here\n")], &[]);
    let first = bench.roll_out(&[("base", "1"), ("app", "1")], swap_back());
    bench.start();
    bench.settled("the first generation", &first);
    wait_until("the condition shows", DEADLINE, || {
        bench.status()["conditions"][0]["reason"] == "KeptGoing"
    });
    assert_eq!(
        bench.status()["conditions"][0]["failures"][0]["outcome"],
        serde_json::json!({"exit": 127})
    );
    let accepted = bench.vlfs(&["scripts", "accept"]).ok();
    assert_eq!(accepted, "1 failure accepted\n");
    wait_until("the condition has gone", DEADLINE, || bench.status()["conditions"].is_null());
    bench.finish();
}

/// All that a script started ends with its time, however stubborn; a flood is bounded;
/// a service that it leaves belongs to the VA.
#[test]
fn time_output_and_what_is_left_are_bounded() {
    let bench = Bench::new("scripts-bounds");
    let stubborn = "#!/bin/sh\ntrap '' TERM\nsetsid sh -c \"trap '' TERM; while :; do sleep 1; done\" &\necho waiting\nwhile :; do sleep 1; done\n";
    bench.unit("a-stubborn", "1", &[("post-install", stubborn)], &[]);
    let flood = "#!/bin/sh\nseq 1 2000000\nexit 1\n";
    bench.unit("b-flood", "1", &[("post-install", flood)], &[]);
    let service =
        "#!/bin/sh\nset -e\nsetsid sh -c 'while :; do echo tick; sleep 0.05; : >>/ticks; done' &\n";
    bench.unit("c-service", "1", &[("post-install", service)], &[]);
    let killed = "#!/bin/sh\nkill -KILL $$\n";
    bench.unit("d-killed", "1", &[("post-install", killed)], &[]);
    let policy = ScriptPolicy::new(OnFailure::KeepGoing, 1).expect("valid");
    let units = [
        ("base", "1"),
        ("a-stubborn", "1"),
        ("b-flood", "1"),
        ("c-service", "1"),
        ("d-killed", "1"),
    ];
    let first = bench.roll_out(&units, policy);
    bench.start();
    bench.settled("the first generation", &first);
    let scripts = bench.scripts();
    let record = |name: &str| {
        let records = scripts["records"].as_array().expect("a list");
        records.iter().find(|record| record["unit"]["layer"] == name).expect("it ran").clone()
    };
    assert_eq!(record("a-stubborn")["outcome"], "time-limit");
    assert!(record("a-stubborn")["took_ms"].as_u64().expect("a number") < 6000);
    assert_eq!(record("a-stubborn")["output"], "waiting\n");
    assert_eq!(record("b-flood")["outcome"], serde_json::json!({"exit": 1}));
    let output = record("b-flood")["output"].as_str().expect("text").to_owned();
    assert!(output.ends_with("1999999\n2000000\n") && output.len() <= 16 << 10, "{}", output.len());
    assert_eq!(record("c-service")["outcome"], "succeeded");
    assert_eq!(record("d-killed")["outcome"], serde_json::json!({"signal": 9}));
    // The service lives, as a process of the VA; nothing of the stubborn one does.
    let status: Value =
        serde_json::from_str(&bench.va(&["status", "web", "--output", "json"]).ok()).expect("JSON");
    assert!(!bench.workspace.store().join("machines/web/run/script").exists());
    let commands: Vec<String> = status["processes"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/cmdline")).ok())
        .map(|command| command.replace('\0', " "))
        .collect();
    assert!(commands.iter().any(|command| command.contains("tick")), "{commands:?}");
    assert!(!commands.iter().any(|command| command.contains("trap")), "{commands:?}");
    let size = || fs::metadata(bench.root().join("ticks")).map_or(0, |meta| meta.len());
    wait_until("the service goes on", DEADLINE, || bench.root().join("ticks").exists());
    let _size = size();
    bench.va(&["stop", "web"]).ok();
    assert_eq!(leaks::everything(&bench.workspace.path("")), [""; 0]);
    bench.workspace.finish();
}

/// Nothing of the daemon's privileges or of the host reaches a script.
#[test]
fn a_script_is_an_ordinary_process_of_the_va() {
    let bench = Bench::new("scripts-ordinary");
    let script = "#!/bin/sh\n{ cat /proc/self/oom_score_adj; ulimit -n; umask; cat /proc/self/status; \
        echo \"pid1 $(cat /proc/1/comm)\"; cat /proc/self/environ | { while read -r x; do echo \"$x\"; done; echo \"$x\"; }; \
        for fd in /proc/$$/fd/*; do echo \"fd $(readlink $fd)\"; done; } >/seen\n";
    bench.unit("app", "1", &[("post-install", script)], &[]);
    bench.roll_out(&[("base", "1"), ("app", "1")], keep_going());
    let mut command = bench.workspace.strata();
    bench.va(&["provision", "--template", "web", "web"]).ok();
    finish(command.args(["va", "start", "web"]).env("SECRET", "of the host")).ok();
    let seen = bench.sh("cat /seen").ok();
    let lines: Vec<_> = seen.lines().collect();
    assert_eq!(&lines[..3], ["0", "1024", "0022"], "{seen}");
    assert!(lines.contains(&"pid1 va-ready"), "{seen}");
    assert!(seen.contains("STRATA_LAYER=main/app") && !seen.contains("SECRET"), "{seen}");
    // CAP_SYS_ADMIN (bit 21) is gone.
    let effective = lines.iter().find_map(|line| line.strip_prefix("CapEff:\t")).expect("told");
    assert_eq!(u64::from_str_radix(effective, 16).expect("hexadecimal") & (1 << 21), 0);
    // Standard streams, the script itself, and what the shell opened.
    let open: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix("fd ")).collect();
    let own = ["/dev/null", "pipe:", "/memfd:script", "/seen", "/proc/"];
    let foreign = |target: &&&str| !own.iter().any(|own| target.starts_with(own));
    assert_eq!(open.iter().find(|target| !target.is_empty() && foreign(target)), None, "{seen}");
    assert!(open.contains(&"/dev/null"), "{seen}");
    bench.finish();
}

/// An interrupted script has run: never twice, and said.
#[test]
fn a_killed_daemon_leaves_an_interrupted_script_and_it_is_not_run_again() {
    let bench = Bench::new("scripts-killed");
    let slow = "#!/bin/sh\n: >/began\nwhile :; do sleep 1; done\n";
    bench.unit("a-slow", "1", &[("post-install", slow)], &[]);
    bench.noting("b-next", "1", &[]);
    let first = bench.roll_out(&[("base", "1")], keep_going());
    bench.start();
    bench.settled("the first generation", &first);
    let second = bench.roll_out(&[("base", "1"), ("a-slow", "1"), ("b-next", "1")], keep_going());
    wait_until("the script runs", DEADLINE, || bench.root().join("began").exists());
    let status: Value =
        serde_json::from_str(&bench.va(&["status", "web", "--output", "json"]).ok()).expect("JSON");
    let daemon = status["vlfs_processes"][0].to_string();
    finish(Command::new("kill").args(["-KILL", &daemon])).ok();
    bench.va(&["stop", "web", "--timeout", "1"]).ok();
    assert_eq!(leaks::everything(&bench.workspace.path("")), [""; 0]);
    bench.va(&["start", "web"]).ok();
    bench.settled("the second generation", &second);
    let records = bench.scripts()["records"].clone();
    let slow: Vec<_> = records
        .as_array()
        .expect("a list")
        .iter()
        .filter(|r| r["unit"]["layer"] == "a-slow")
        .collect();
    assert_eq!(slow.len(), 1, "{records}");
    assert_eq!((&slow[0]["outcome"], &slow[0]["open"]), (&"interrupted".into(), &true.into()));
    let log = bench.log();
    assert_eq!(
        log,
        ["pre-install main/b-next install 1 on 1", "post-install main/b-next install 1 on 1"]
    );

    // The same with the policy that goes back: at the next start.
    let slow = "#!/bin/sh\n: >/began-2\nwhile :; do sleep 1; done\n";
    bench.unit("a-slow", "2", &[("post-install", slow)], &[]);
    bench.roll_out(&[("base", "1"), ("a-slow", "2"), ("b-next", "1")], swap_back());
    wait_until("the script runs", DEADLINE, || bench.root().join("began-2").exists());
    bench.va(&["stop", "web", "--timeout", "0"]).ok();
    bench.va(&["start", "web"]).ok();
    wait_until("it has swapped back", DEADLINE, || bench.scripts()["state"] == "swapped-back");
    assert_eq!(bench.serves(), second.to_string());
    bench.finish();
}

/// Another program takes over between scripts, never during one.
#[test]
fn a_daemon_is_replaced_between_scripts() {
    let bench = Bench::new("scripts-upgrade");
    let slow = "#!/bin/sh\n: >/began\nuntil read -r x </go; do sleep 0.05; done\n";
    bench.unit("a-slow", "1", &[("pre-install", slow)], &[]);
    bench.noting("b-next", "1", &[]);
    let first = bench.roll_out(&[("base", "1")], keep_going());
    bench.start();
    bench.settled("the first generation", &first);
    let second = bench.roll_out(&[("base", "2"), ("a-slow", "1"), ("b-next", "1")], keep_going());
    wait_until("the script runs", DEADLINE, || bench.root().join("began").exists());
    let upgrade = || {
        let mut command = bench.workspace.vlfs();
        finish(command.arg("upgrade").arg(bench.root()).arg("--binary").arg(program("strata-vlfs")))
    };
    let refused = upgrade().exits(2);
    assert!(refused.stderr.contains("a script of a layer runs"), "{refused:?}");
    bench.sh("echo yes >/go").ok();
    // Twice, wherever the change is by now.
    for _ in 0..2 {
        wait_until("it is replaced", DEADLINE, || upgrade().code == 0);
    }
    bench.settled("the second generation", &second);
    assert_eq!(
        bench.log(),
        ["pre-install main/b-next install 1 on 1", "post-install main/b-next install 1 on 2"]
    );
    // The new program knows what is integrated, and runs scripts as the old one did.
    let third = bench.roll_out(&[("base", "2"), ("a-slow", "1")], keep_going());
    bench.settled("the third generation", &third);
    assert_eq!(
        bench.log(),
        ["pre-remove main/b-next remove 1 on 2", "post-remove main/b-next remove 1 on 2"]
    );
    bench.finish();
}

/// From `strata.toml` to `strata status`: a merge whose script fails is gone back from in
/// the VA, and the reconciler's own command says so.
#[test]
fn a_merge_whose_script_fails_shows_in_the_status() {
    let bench = Bench::new("scripts-merge");
    bench.noting("app", "1", &[]);
    bench.unit("app", "2", &[("post-install", "#!/bin/sh\necho 'no such user'\nexit 3\n")], &[]);
    let policy = "[[repository]]\nname = \"main\"\n\n[scripts]\non-failure = \"swap-back\"\ntime-limit-s = 20\n";
    let fleet = bench.workspace.write(
        "fleet",
        &[("strata.toml", policy), ("templates/web.ldf", "main/app 1\nmain/base 1\n")],
    );
    init(&fleet);
    let reconcile = |message: &str| {
        commit_all(&fleet, message);
        let mut command = bench.workspace.strata();
        finish(command.args(["reconcile", "--once", "--source"]).arg(&fleet)).ok();
    };
    reconcile("the first one");
    bench.start();
    finish(bench.workspace.strata().arg("status")).ok();
    let first = bench.serves();
    fs::write(fleet.join("templates/web.ldf"), "main/app 2\nmain/base 1\n").expect("written");
    reconcile("app 2");
    wait_until("the status says it", DEADLINE, || bench.status()["state"] == "failed");
    assert_eq!(bench.serves(), first);
    let status = bench.status();
    assert_eq!(status["conditions"][0]["reason"], "SwappedBack");
    let shown = finish(bench.workspace.strata().arg("status")).exits(1).stdout;
    assert!(shown.contains("main/app 2 post-install: exit status 3: no such user"), "{shown}");
    // Reverted in git, nothing is left to say.
    fs::write(fleet.join("templates/web.ldf"), "main/app 1\nmain/base 1\n").expect("written");
    reconcile("back to app 1");
    wait_until("all is well", DEADLINE, || {
        finish(bench.workspace.strata().arg("status")).code == 0
    });
    bench.finish();
}
