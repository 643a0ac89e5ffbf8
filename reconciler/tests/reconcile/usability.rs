//! What operators type, and misspell: names that are not there, orders that are for
//! nobody, VAs by the names that git gives them; and what strangers make them read.

use std::process::{Command, Output};
use std::time::Duration;

use crate::daemon::Daemon;
use crate::support::{World, mac, name, wait_until};
use strata_store::VaTarget;

fn strata(world: &World, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_strata"))
        .args(arguments)
        .env("STRATA_STORE", world.store.root())
        .env_remove("STRATA_LOG")
        .output()
        .expect("runs")
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const DECLARED: &str = "[[appliance]]\nname = \"web-1\"\nmac = \"02:00:00:00:00:01\"\nldf = \"web\"\nring = \"everyone\"\n";

#[test]
fn a_template_that_is_not_there_is_an_error() {
    let world = World::new();
    world.once();
    for command in [
        &["rollout", "status"][..],
        &["diff"],
        &["history"],
        &["status", "--template"],
        &["events", "--template"],
        &["audit", "list", "--template"],
        &["get", "templates", "--template"],
        &["get", "vas", "--template"],
    ] {
        let unknown = strata(&world, &[command, &["wbe"]].concat());
        assert_eq!(unknown.status.code(), Some(2), "{command:?}: {unknown:?}");
        let error = said(&unknown);
        assert!(error.contains("no commit brought a template wbe"), "{error}");
        assert!(error.contains("hint: there are: sql, web; did you mean web?"), "{error}");
        let known = strata(&world, &[command, &["web"]].concat());
        assert_ne!(known.status.code(), Some(2), "{command:?}: {known:?}");
    }
    let far = strata(&world, &["get", "templates", "--template", "mail"]);
    assert!(said(&far).ends_with("hint: there are: sql, web\n"), "none is like it: {far:?}");
    for command in [
        &["get", "rings"][..],
        &["get", "vas"],
        &["status"],
        &["diff"],
        &["events"],
        &["audit", "list"],
    ] {
        let unknown = strata(&world, &[command, &["--ring", "canari"]].concat());
        assert_eq!(unknown.status.code(), Some(2), "{command:?}: {unknown:?}");
        let error = said(&unknown);
        assert!(error.contains("no template has a ring canari"), "{error}");
        assert!(error.contains("there are: canary, everyone; did you mean canary?"), "{error}");
        let known = strata(&world, &[command, &["--ring", "canary"]].concat());
        assert_ne!(known.status.code(), Some(2), "{command:?}: {known:?}");
    }
    let kind = strata(&world, &["events", "--kind", "rolledback"]);
    assert_eq!(kind.status.code(), Some(2), "{kind:?}");
    assert!(said(&kind).contains("rolled-back"), "the one that is meant: {kind:?}");
}

/// A pipeline that updates what is misspelt must not find all well.
#[test]
fn an_update_of_a_layer_that_is_not_there_is_an_error() {
    let world = World::new();
    world.once();
    let tree = world.path("work");
    let tree = tree.to_str().expect("UTF-8");
    let update = |layer| strata(&world, &["update", tree, "--dry-run", "--layer", layer]);
    let unknown = update("ap");
    assert_eq!(unknown.status.code(), Some(2), "{unknown:?}");
    assert!(said(&unknown).contains("no layer ap\n"), "{unknown:?}");
    assert!(said(&unknown).contains("did you mean app?"), "{unknown:?}");
    assert_eq!(update("app").status.code(), Some(0));
}

/// Whichever host it runs on.
#[test]
fn a_declared_va_is_explained_by_its_name_and_its_address() {
    let world = World::new();
    world.write("appliances.toml", DECLARED);
    world.push("a VA");
    world.once();
    for va in ["web-1", "02:00:00:00:00:01"] {
        let explained = strata(&world, &["va", "explain", va]);
        assert_eq!(explained.status.code(), Some(1), "it has not told: {explained:?}");
        let text = out(&explained);
        assert!(text.contains("web-1 (02:00:00:00:00:01) is "), "{text}");
        assert!(text.contains("rings/web/everyone →"), "{text}");
    }
    let unknown = strata(&world, &["va", "explain", "web-2"]);
    assert_eq!(unknown.status.code(), Some(2), "{unknown:?}");
}

#[test]
fn an_order_says_whom_it_is_for_and_what_came_of_it() {
    let world = World::new();
    world.once();
    for (arguments, words) in [
        (&["abort"][..], "--all-templates; there are: sql, web"),
        (&["promote", "--all"], "--all-templates; there are: sql, web"),
        (&["pause", "wbe"], "no commit brought a template wbe"),
        (&["abort", "--all-templates"], "its target is everywhere"),
        (&["pause", "web", "--reason", " "], "the reason is empty"),
    ] {
        let refused = strata(&world, &[&["rollout"], arguments].concat());
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}: {refused:?}");
        assert!(said(&refused).contains(words), "{arguments:?}: {refused:?}");
    }
    let waits = strata(&world, &["rollout", "pause", "web", "--reason", "lunch"]);
    assert_eq!(waits.status.code(), Some(1), "nobody has taken it: {waits:?}");
    assert!(said(&waits).contains("no reconciler runs"), "{waits:?}");
    let daemon = Daemon::start(&world, &[]);
    let paused = || out(&strata(&world, &["rollout", "status", "web"])).contains("lunch");
    wait_until("the waiting order is taken", Duration::from_secs(20), paused);
    let resumed = strata(&world, &["rollout", "resume", "--all-templates"]);
    assert_eq!(resumed.status.code(), Some(0), "{resumed:?}");
    let printed = out(&resumed);
    assert_eq!(printed, "sql: resumed\nweb: resumed\n");
    let paused = strata(&world, &["rollout", "pause", "web", "--reason", "tea"]);
    assert_eq!(paused.status.code(), Some(0), "{paused:?}");
    let printed = out(&paused);
    assert_eq!(printed, "web: paused: tea\n");
    daemon.terminate();
}

/// Two VAs of one name would be the same to every command.
#[test]
fn a_name_that_git_gives_to_an_address_is_no_other_vas() {
    let world = World::new();
    let numbered = DECLARED.replace("web-1", "web-0001");
    world.write("appliances.toml", &format!("{DECLARED}\n{}", numbered.replace(":01", ":02")));
    world.push("declares two VAs");
    world.once();
    let provision = ["va", "provision", "--template", "web", "--ring", "everyone"];
    let other = strata(&world, &[&provision[..], &["other"]].concat());
    assert_eq!(other.status.code(), Some(0), "{other:?}");
    for command in [
        &[&provision[..], &["web-1"]].concat()[..],
        &[&provision[..], &["--mac", "02:00:00:00:00:09", "web-1"]].concat(),
        &["va", "clone", "other", "web-1"],
        &["va", "clone", "--private", "other", "web-1"],
        &["va", "rename", "other", "web-1"],
    ] {
        let refused = strata(&world, command);
        assert_eq!(refused.status.code(), Some(2), "{command:?}: {refused:?}");
        let error = said(&refused);
        assert!(error.contains("declares a VA web-1, with the MAC address 02:00:"), "{error}");
        assert!(error.contains("--mac 02:00:00:00:00:01"), "{error}");
    }
    let many = strata(&world, &[&provision[..], &["--count", "2"]].concat());
    assert!(out(&many).starts_with("web-0002 "), "{many:?}");
    let its_own = [&provision[..], &["--mac", "02:00:00:00:00:01", "web-1"]].concat();
    let made = strata(&world, &its_own);
    assert_eq!(made.status.code(), Some(0), "{made:?}");
}

/// The link of a batch is no ring that anybody named.
#[test]
fn vas_that_swap_in_a_batch_are_those_of_their_ring() {
    let world = World::new();
    world.once();
    let provision = ["va", "provision", "--template", "web", "--ring", "everyone"];
    let made = strata(&world, &[&provision[..], &["--mac", &mac(1).to_string(), "web-1"]].concat());
    assert_eq!(made.status.code(), Some(0), "{made:?}");
    let target = world.ring("web", "everyone").expect("rolled out");
    let batch = name::<strata_core::RingName>("everyone+next");
    world.store.move_ring(&name("web"), &batch, &target).expect("moved");
    let staged = VaTarget::Ring { composition: name("web"), ring: batch };
    world.store.move_va(mac(1), &staged).expect("moved");
    for command in [&["va", "list"][..], &["va", "status", "web-1"], &["get", "rings"], &["status"]]
    {
        let shown = out(&strata(&world, command));
        assert!(shown.contains("everyone") && !shown.contains("+next"), "{command:?}: {shown}");
    }
}

#[test]
fn vas_have_the_names_that_git_gives_them() {
    let world = World::new();
    world.write("appliances.toml", DECLARED);
    world.push("declares a VA");
    world.once();
    let status = out(&strata(&world, &["status"]));
    assert!(status.contains("web-1 "), "{status}");
    let events = strata(&world, &["events", "--va", "web-1"]);
    assert!(out(&events).contains("web-1 follows web/everyone"), "{events:?}");
    let history = strata(&world, &["history", "--va", "web-1"]);
    assert_eq!(history.status.code(), Some(0), "{history:?}");
    let silent = strata(&world, &["va", "pin", "web-1", "--reason", ""]);
    assert_eq!(silent.status.code(), Some(2), "a pin has a reason: {silent:?}");
    let pinned = strata(&world, &["va", "pin", "web-1", "--reason", "a look"]);
    assert_eq!(pinned.status.code(), Some(0), "{pinned:?}");
    assert!(out(&strata(&world, &["get", "pins"])).contains("web-1"));
    let unknown = strata(&world, &["va", "pin", "web-2", "--reason", "a look"]);
    assert_eq!(unknown.status.code(), Some(2), "{unknown:?}");
    assert!(said(&unknown).contains("there is no VA web-2"), "{unknown:?}");
}

#[test]
fn a_pin_does_not_outlive_its_va() {
    let world = World::new();
    world.once();
    let provision = ["va", "provision", "--template", "web", "--ring", "everyone", "w1"];
    for command in [&provision[..], &["va", "pin", "w1", "--reason", "a look"]] {
        let done = strata(&world, command);
        assert_eq!(done.status.code(), Some(0), "{done:?}");
    }
    let pins = || std::fs::read_dir(world.store.state("pins")).expect("a directory").count();
    assert_eq!(pins(), 1);
    let destroyed = strata(&world, &["va", "destroy", "--yes", "w1"]);
    assert_eq!(destroyed.status.code(), Some(0), "{destroyed:?}");
    assert_eq!(pins(), 0);
    assert_eq!(out(&strata(&world, &["get", "pins"])), "none\n");
    let events = out(&strata(&world, &["events", "--kind", "va-unpinned"]));
    assert_eq!(events.matches("va-unpinned").count(), 1, "{events}");
}

#[test]
fn a_short_pin_ends_in_time() {
    let world = World::new();
    world.write("appliances.toml", DECLARED);
    world.push("declares a VA");
    let daemon = Daemon::start(&world, &["--poll", "600", "--no-events"]);
    let target = || world.store.va_target("02:00:00:00:00:01".parse().expect("a MAC"));
    let linked = || matches!(target(), Ok(Some(VaTarget::Ring { .. })));
    wait_until("it is linked", Duration::from_secs(20), linked);
    // Nor does a source that is out of reach delay it.
    std::fs::rename(world.path("fleet.git"), world.path("away.git")).expect("moved away");
    let pin = ["va", "pin", "web-1", "--reason", "a look", "--expires", "1s"];
    let pinned = strata(&world, &pin);
    assert_eq!(pinned.status.code(), Some(0), "{pinned:?}");
    assert!(out(&pinned).contains(" until "), "{pinned:?}");
    wait_until("the pin ends", Duration::from_secs(15), linked);
    daemon.terminate();
}

#[test]
fn what_strangers_write_does_nothing_to_a_terminal() {
    let world = World::new();
    let hostile = "An\u{202e}n\u{1b}[31m";
    let author = format!("--author={hostile} <a@example.org>");
    world.git(&["commit", "-q", "--allow-empty", "-m", "x", &author]);
    world.git(&["push", "-q", "origin", "HEAD:main"]);
    world.once();
    world.claim("web", "everyone", 1..2);
    let generation = world.ring("web", "everyone").expect("rolled out");
    let now_ms = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now_ms = now_ms.expect("after 1970").as_millis();
    let forged = "\\u001b[2J\\u001b[1;31mALL GOOD\\u001b[0m\\r\\nfake  02:00:00:00:00:99  web  in-sync\\u202e";
    let report = format!(
        "{{\"version\":1,\"mac\":\"{}\",\"state\":\"failed\",\"generation\":null,\"composition\":null,\"layers\":0,\"desired\":\"{generation}\",\"error\":\"{forged}\",\"pid\":1,\"host\":\"x\",\"mount_point\":\"/\",\"swaps\":0,\"started_at_ms\":{now_ms},\"written_at_ms\":{now_ms},\"interval_s\":10}}",
        mac(1)
    );
    std::fs::write(world.store.reports().join(mac(1).to_string()), report).expect("written");
    let reason = "x\u{1b}[31m\nforged line\u{2066}";
    strata(&world, &["rollout", "pause", "web", "--reason", reason]);
    world.once();
    for command in [
        &["status"][..],
        &["get", "vas", "-o", "wide"],
        &["rollout", "status"],
        &["events", "-o", "wide"],
        &["audit", "list"],
        &["history", "web", "-o", "wide"],
    ] {
        let output = strata(&world, command);
        let printed = out(&output) + &said(&output);
        let bad = |c: char| c != '\n' && strata_core::printable::is_unprintable(c);
        assert!(!printed.chars().any(bad), "{command:?}: {printed:?}");
        let forged = |line: &str| line.starts_with("fake") || line.starts_with("forged");
        assert!(!printed.lines().any(forged), "{command:?}: {printed}");
    }
    let status = out(&strata(&world, &["status"]));
    assert!(status.contains("\\u{1b}[2J") && status.contains("ALL GOOD"), "it is shown: {status}");
}

#[test]
fn flags_that_choose_nothing_are_refused() {
    let world = World::new();
    world.write("appliances.toml", DECLARED);
    world.write("strata.toml", crate::rollouts::GATED);
    world.push("a VA");
    world.once();
    for (arguments, words) in [
        (&["get", "layers", "--template", "web"][..], "layers belong to no template"),
        (&["get", "repositories", "--template", "web"], "repositories belong to no template"),
        (&["get", "generations", "--ring", "everyone"], "generations belong to no ring"),
        (&["va", "pin", "web-1", "--reason", "x", "--generation", ""], "at least 4"),
        (&["va", "pin", "web-1", "--reason", "x", "--generation", "zzzz"], "at least 4"),
        (&["va", "pin", "web-1", "--reason", "x", "--expires", "0s"], "holds nothing"),
        (&["update", ".", "--branch", "a b"], "is no name of a branch"),
    ] {
        let arguments: Vec<_> = arguments
            .iter()
            .map(|argument| match *argument {
                "." => world.path("work").to_str().expect("UTF-8").to_owned(),
                other => other.to_owned(),
            })
            .collect();
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let refused = strata(&world, &arguments);
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}: {refused:?}");
        assert!(said(&refused).contains(words), "{arguments:?}: {refused:?}");
    }
    assert_eq!(out(&strata(&world, &["get", "pins"])), "none\n");
    // Two documented rules, of which nobody expects the sum.
    let pinned = strata(&world, &["va", "pin", "web-1", "--reason", "a look"]);
    assert!(said(&pinned).contains("no other VA of web follows everyone"), "{pinned:?}");
    world.claim("web", "everyone", 7..8);
    let again = strata(&world, &["va", "pin", "web-1", "--reason", "another look"]);
    assert_eq!((again.status.code(), said(&again).as_str()), (Some(0), ""), "{again:?}");
    let of_web = out(&strata(&world, &["get", "pins", "--template", "web"]));
    assert!(of_web.contains("another look"), "{of_web}");
    assert_eq!(out(&strata(&world, &["get", "pins", "--template", "sql"])), "none\n");
}

/// What an operator reads first of a commit that is not taken.
#[test]
fn a_refusal_says_in_lines_what_to_do() {
    let world = World::new();
    world.once();
    world.write("templates/web.ldf", "main/app 9\nmain/base 1\n");
    world.push("a version that is not there");
    world.once();
    let invalid = out(&strata(&world, &["status"]));
    assert!(invalid.contains("\n           hint: ") && !invalid.contains("\\n"), "{invalid}");
    world.git(&["commit", "-q", "--amend", "-m", "rewritten"]);
    world.git(&["reset", "-q", "--hard", "HEAD~1"]);
    world.git(&["commit", "-q", "--amend", "--allow-empty", "-m", "rewritten"]);
    world.git(&["push", "-qf", "origin", "HEAD:main"]);
    let source = world.path("fleet.git");
    let source = source.to_str().expect("UTF-8");
    let refused = strata(&world, &["reconcile", "--source", source, "--branch", "main", "--once"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    for text in [out(&refused), out(&strata(&world, &["status"]))] {
        assert!(
            text.contains("hint: reset the branch") && text.contains("--allow-rewrite"),
            "{text}"
        );
    }
}
