//! `strata layer build -- COMMAND`.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::{Bench, text};

const HEAD: [&str; 6] = ["layer", "build", "--name", "tool", "--version", "1"];

impl Bench {
    /// Arguments that build the layer `tool 1` by a line of shell.
    fn by_shell<'a>(&self, options: &[&'a str], script: &'a str) -> Vec<&'a str> {
        let command = ["--", "sh", "-ec", script];
        HEAD.iter().chain(options).chain(&command).copied().collect()
    }

    /// Where staging directories of commands are made.
    fn scratch(&self) -> std::path::PathBuf {
        let scratch = self.path("scratch");
        fs::create_dir_all(&scratch).expect("a directory");
        scratch
    }

    fn staged(&self) -> usize {
        fs::read_dir(self.scratch()).expect("the directory").count()
    }
}

#[test]
fn what_a_command_installs_becomes_a_layer_with_its_scripts() {
    let bench = Bench::set_up();
    let scratch = bench.scratch();
    fs::write(bench.path("tool"), "#!/bin/sh\n").expect("written");
    let scripts = bench.path("scripts");
    fs::create_dir(&scripts).expect("a directory");
    fs::write(scripts.join("post-install"), "#!/bin/sh\nexit 0\n").expect("written");
    // As `make install` would; this machine may have no make.
    let install = "mkdir -p \"$DESTDIR\"/usr/bin; cp tool \"$DESTDIR\"/usr/bin/tool; chmod 4755 \"$DESTDIR\"/usr/bin/tool; echo installed; pwd";
    let arguments = bench.by_shell(&["--scripts", text(&scripts)], install);
    let mut command = bench.command(&arguments);
    let output = command.env("TMPDIR", &scratch).current_dir(bench.directory.path()).output();
    let output = output.expect("strata runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "built main/tool 1 (4 entries, 10 B)\n");
    assert!(said.starts_with("installed\n"), "its output is passed on: {said}");
    assert!(said.contains(text(bench.directory.path())), "it runs where strata does: {said}");
    let files = bench.good(&["layer", "show", "main/tool", "--files"]);
    assert!(files.contains("d 0755 0:0                  /\n"), "{files}");
    assert!(files.contains("- 4755 0:0               10 /usr/bin/tool\n"), "{files}");
    assert!(bench.path("store/repos/main/tool_1/scripts/post-install").is_file());
    assert_eq!(bench.staged(), 0);
}

#[test]
fn a_command_that_fails_makes_no_layer_and_leaves_nothing() {
    let bench = Bench::set_up();
    let scratch = bench.scratch();
    for (script, status, hint) in [
        ("touch \"$DESTDIR\"/x; echo no rule >&2; exit 3", "(exit status: 3)", "stands above"),
        ("kill -9 $$", "(signal: 9", "stands above"),
        ("exit 0", "installed nothing below $DESTDIR", "honour DESTDIR"),
    ] {
        let arguments = bench.by_shell(&[], script);
        let output = bench.command(&arguments).env("TMPDIR", &scratch).output().expect("runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{said}");
        assert!(said.contains(status) && said.contains(hint), "{script}: {said}");
        assert_eq!(bench.staged(), 0, "{script}");
    }
    let missing: Vec<_> = HEAD.into_iter().chain(["--", "/nowhere/make"]).collect();
    assert!(bench.bad(&missing).contains("hint: the words after -- are a program"));
    assert!(!bench.path("store/repos/main").exists());
    let both: Vec<_> = HEAD.into_iter().chain(["--root", "/tmp", "--", "true"]).collect();
    assert!(bench.bad(&both).contains("cannot be used with"));
    assert!(bench.bad(&HEAD).contains("--root"), "one of the two is needed");
}

#[test]
fn an_interrupted_command_is_ended_with_its_children_and_leaves_nothing() {
    let bench = Bench::set_up();
    let scratch = bench.scratch();
    let pids = bench.path("pids");
    let script = format!(
        "touch \"$DESTDIR\"/x; sleep 600 & echo $! $$ > {0}.new; mv {0}.new {0}; wait",
        pids.display()
    );
    let arguments = bench.by_shell(&[], &script);
    let child = bench
        .command(&arguments)
        .env("TMPDIR", &scratch)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("strata runs");
    let deadline = Instant::now() + Duration::from_secs(30);
    while !pids.exists() && Instant::now() < deadline {
        std::thread::yield_now();
    }
    rustix::process::kill_process(Pid::from_child(&child), Signal::INT).expect("signalled");
    let output = child.wait_with_output().expect("ended");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("interrupted while `sh` ran"), "{said}");
    assert_eq!(bench.staged(), 0);
    assert!(!bench.path("store/repos/main").exists());
    let pids = fs::read_to_string(&pids).expect("the command began");
    for pid in pids.split_whitespace() {
        // Killed it is; the kernel may need a moment, and a zombie waits for its new parent.
        let state = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let gone =
            |state: &str| state.is_empty() || [") Z ", ") X "].iter().any(|s| state.contains(s));
        while !gone(&state()) && Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert!(gone(&state()), "{pid} still runs: {}", state());
    }
}
