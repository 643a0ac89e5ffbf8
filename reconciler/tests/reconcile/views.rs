//! What `get`, `diff`, `history`, `events`, `status` and `audit` print, held against
//! `docs/schemas/`. What `plan` prints is in [`crate::plan`].

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::World;

const COMMANDS: [(&str, &[&str]); 16] = [
    ("status-1", &["status"]),
    ("get-1", &["get", "templates"]),
    ("get-1", &["get", "rings"]),
    ("get-1", &["get", "vas"]),
    ("get-1", &["get", "generations"]),
    ("get-1", &["get", "layers"]),
    ("get-1", &["get", "repositories"]),
    ("get-1", &["get", "pins"]),
    ("diff-1", &["diff"]),
    ("rollout-status-1", &["rollout", "status"]),
    ("explain-1", &["va", "explain", "web-1"]),
    ("explain-1", &["va", "explain", "w9"]),
    ("history-1", &["history", "web"]),
    ("events-1", &["events"]),
    ("audit-list-1", &["audit", "list"]),
    ("audit-verify-1", &["audit", "verify"]),
];

fn strata(world: &World, arguments: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_strata"))
        .args(arguments)
        .env("STRATA_STORE", world.store.root())
        .output()
        .expect("runs");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(matches!(output.status.code(), Some(0 | 1)), "{arguments:?}: {said}");
    (output.status.code().expect("ended"), text)
}

fn json(world: &World, arguments: &[&str]) -> Value {
    let (_, text) = strata(world, &[arguments, &["--output", "json"]].concat());
    serde_json::from_str(&text).expect("JSON")
}

pub fn schema(name: &str) -> Value {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/schemas");
    let text = std::fs::read(directory.join(format!("{name}.json"))).expect("a schema");
    serde_json::from_slice(&text).expect("JSON")
}

/// Where a value is not as its schema says.
pub fn faults(schema: &Value, value: &Value) -> Vec<String> {
    let validator = jsonschema::validator_for(schema).expect("a schema");
    validator
        .iter_errors(value)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect()
}

/// A fleet in which something of everything happened.
fn eventful() -> World {
    let world = World::new();
    world.write(
        "appliances.toml",
        "[[appliance]]\nname = \"web-1\"\nmac = \"02:00:00:00:00:01\"\nldf = \"templates/web\"\nring = \"canary\"\n",
    );
    world.push("declares a VA");
    world.once();
    world.claim("web", "everyone", 2..5);
    strata(&world, &["va", "provision", "--template", "web", "--ring", "everyone", "w9"]);
    strata(&world, &["va", "pin", "w9", "--reason", "a look", "--expires", "2h"]);
    world.write("templates/web.ldf", "main/app 2\nmain/base 1\n");
    world.push("an update");
    world.once();
    world.write("templates/web.ldf", "main/nothing 2\n");
    world.push("a fault");
    world.once();
    world
}

#[test]
fn what_is_printed_is_what_the_schemas_say() {
    let world = eventful();
    for (name, arguments) in COMMANDS {
        let (schema, value) = (schema(name), json(&world, arguments));
        assert_eq!(faults(&schema, &value), Vec::<String>::new(), "{arguments:?}: {value:#}");
        // A schema that takes anything proves nothing.
        let mut other = value.clone();
        other["version"] = 2.into();
        assert_ne!(faults(&schema, &other), Vec::<String>::new(), "{arguments:?}");
        let mut more = value.clone();
        more["surprise"] = 1.into();
        assert_ne!(faults(&schema, &more), Vec::<String>::new(), "{arguments:?}");
        if !name.starts_with("audit") {
            let (_, yaml) = strata(&world, &[arguments, &["--output", "yaml"]].concat());
            let read = yaml_rust2::YamlLoader::load_from_str(&yaml).expect("YAML");
            assert_eq!(read[0]["version"].as_i64(), Some(1), "{yaml}");
        }
    }
}

#[test]
fn every_kind_of_event_has_a_schema() {
    let record = &schema("events-1")["$defs"]["record"]["oneOf"];
    let known: Vec<_> = record
        .as_array()
        .expect("kinds")
        .iter()
        .map(|kind| kind["properties"]["event"]["const"].as_str().expect("a kind"))
        .collect();
    let source = include_str!("../../../vlfs/core/src/event.rs");
    let kinds: Vec<_> = source
        .lines()
        .filter_map(|line| {
            line.trim().strip_prefix("Event::")?.split_once(" => \"")?.1.strip_suffix("\",")
        })
        .collect();
    assert!(kinds.len() > 25, "{kinds:?}");
    assert_eq!(known, kinds);
}

/// What a command prints is what its schema says.
pub fn holds(world: &World, name: &str, arguments: &[&str]) -> Value {
    let value = json(world, arguments);
    assert_eq!(faults(&schema(name), &value), Vec::<String>::new(), "{arguments:?}: {value:#}");
    value
}

#[test]
fn rollouts_and_explanations_are_wide_and_watched() {
    use std::io::{BufRead, BufReader};
    let world = eventful();
    for arguments in [&["rollout", "status"][..], &["va", "explain", "web-1"]] {
        let (_, narrow) = strata(&world, arguments);
        let (_, wide) = strata(&world, &[arguments, &["-o", "wide"]].concat());
        assert!(wide.len() > narrow.len(), "{narrow}\n{wide}");
        let mut watching = Command::new(env!("CARGO_BIN_EXE_strata"))
            .args([arguments, &["--watch", "-o", "json"]].concat())
            .env("STRATA_STORE", world.store.root())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("starts");
        let mut line = String::new();
        let read = BufReader::new(watching.stdout.take().expect("piped")).read_line(&mut line);
        let _ended = watching.kill();
        let _reaped = watching.wait();
        read.expect("readable");
        let value: Value = serde_json::from_str(&line).expect("one document a line");
        assert_eq!(value["version"], 1);
    }
}

#[test]
fn tables_and_exit_codes() {
    let world = eventful();
    let (status, text) = strata(&world, &["get", "vas", "web-1", "--output", "wide"]);
    assert!(status == 0 && text.contains("02:00:00:00:00:01"), "a commit names it: {text}");
    let (status, text) = strata(&world, &["get", "vas", "web-99", "--output", "wide"]);
    assert!(status == 1, "nothing has that name: {text}");
    let (status, text) = strata(&world, &["get", "vas", "02:00:00:00:00:01", "--output", "wide"]);
    assert_eq!(status, 0);
    assert!(text.starts_with("NAME") && text.contains("02:00:00:00:00:01"), "{text}");
    let (_, text) = strata(&world, &["get", "templates"]);
    assert_eq!(text.lines().count(), 3, "{text}");
    let (status, text) = strata(&world, &["diff", "web"]);
    assert_eq!(status, 1);
    assert!(text.contains("everyone") && text.contains("pending"), "{text}");
    assert_eq!(strata(&world, &["diff", "sql"]), (0, "no difference\n".to_owned()));
    let entries = json(&world, &["history", "web"])["entries"].clone();
    let entries = entries.as_array().expect("entries");
    assert_eq!(entries.len(), 2, "{entries:#?}");
    assert_eq!(entries[1]["commit"], world.git(&["rev-parse", "HEAD~1"]).as_str());
    assert!(entries.iter().all(|entry| entry["author"] == "Ann <ann@example.org>"));
    let va = json(&world, &["history", "--va", "w9"])["entries"].clone();
    assert_eq!(va.as_array().and_then(|all| all.last()).expect("one")["way"], "pin");
    let (_, text) = strata(&world, &["events", "--importance", "error"]);
    assert!(text.contains("commit-refused") && !text.contains("ring-moved"), "{text}");
    let conditions = json(&world, &["status"])["conditions"].clone();
    let head = world.head();
    for condition in conditions.as_array().expect("conditions") {
        assert_eq!(condition["observed_commit"], head.as_str(), "{condition}");
    }
    assert_eq!(conditions[2]["type"], "Stalled");
    assert_eq!(conditions[2]["status"], true);
}

#[test]
fn events_are_followed_as_they_happen() {
    use std::io::{BufRead, BufReader};
    let world = World::new();
    world.once();
    let mut child = Command::new(env!("CARGO_BIN_EXE_strata"))
        .args(["events", "--watch", "--output", "json", "--kind", "ring-moved", "--since", "0s"])
        .env("STRATA_STORE", world.store.root())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let record = schema("events-1");
    world.write("templates/web.ldf", "main/app 2\nmain/base 1\n");
    world.push("an update");
    let (sender, receiver) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        // Whoever waits for it may have given up.
        let _sent = sender.send(lines.next().expect("a line").expect("readable"));
    });
    // The follower may start after the pass: then the next update is the one it sees.
    let (mut version, mut line) = (2, None);
    crate::support::wait_until("an event", std::time::Duration::from_secs(20), || {
        world.once();
        line = receiver.recv_timeout(std::time::Duration::from_millis(200)).ok();
        if line.is_some() {
            return true;
        }
        version = 3 - version;
        world.write("templates/web.ldf", &format!("main/app {version}\nmain/base 1\n"));
        world.push("another update");
        false
    });
    let line = line.expect("just read");
    reader.join().expect("ends");
    let _ended = child.kill();
    let _reaped = child.wait();
    let event: Value = serde_json::from_str(&line).expect("JSON");
    let whole = serde_json::json!({"version": 1, "events": [event]});
    assert_eq!(faults(&record, &whole), Vec::<String>::new(), "{line}");
}
