//! `strata plan` and `strata inventory export`, as an operator and as a pipeline
//! without access to the store run them.

use std::process::{Command, Output};

use serde_json::Value;

use crate::support::{World, mac, name};
use crate::views::{faults, schema};
use strata_store::VaTarget;

fn strata(world: &World, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_strata"))
        .args(arguments)
        .current_dir(world.path("work"))
        .env_remove("STRATA_STORE")
        .env_remove("STRATA_LOG")
        .output()
        .expect("runs")
}

fn store(world: &World) -> String {
    world.store.root().to_str().expect("UTF-8").to_owned()
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// A fleet of 5 VAs on web, one of them pinned, whose branch bumps `app`.
fn fleet() -> World {
    let world = World::new();
    world.once();
    world.claim("web", "canary", 0..1);
    world.claim("web", "everyone", 1..3);
    let generation = world.ring("web", "everyone").expect("rolled out");
    // One is moved in a batch of its ring.
    world.store.move_ring(&name("web"), &name("everyone+next"), &generation).expect("moved");
    world.claim("web", "everyone+next", 3..4);
    let pin = VaTarget::Pinned { composition: name("web"), generation };
    world.store.claim_va(mac(9), &pin).expect("claimed");
    world.git(&["checkout", "-q", "-b", "bump"]);
    world.write("templates/web.ldf", "main/app 2\nmain/base 1\n");
    world.write("templates/web/etc/motd", "hello\n");
    world.git(&["add", "-A"]);
    world.git(&["commit", "-q", "-m", "bump"]);
    // The branch main goes on meanwhile: no part of what the bump brings.
    world.git(&["checkout", "-q", "main"]);
    world.write("templates/sql.ldf", "main/base 1\nmain/app 1\n");
    world.push("sql gets app");
    world.git(&["checkout", "-q", "bump"]);
    world
}

#[test]
fn what_a_branch_brings() {
    let world = fleet();
    let arguments = ["plan", "--base", "origin/main", "--head", "HEAD", "--store"];
    let output = strata(&world, &[&arguments[..], &[&store(&world)]].concat());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let printed = text(&output);
    for line in [
        "templates/web: changed",
        "VAs: 1 elsewhere in canary, 3 elsewhere in everyone",
        "1 VA pinned and stay",
        "↑ main/app 1 → 2",
        "added /etc/motd (web)",
        "blast radius: 4 of 5 VAs (80 %)",
        "verdict: can be taken",
    ] {
        assert!(printed.contains(line), "{line:?} in:\n{printed}");
    }
    assert!(!printed.contains("templates/sql"), "{printed}");
    let store = store(&world);
    let again = [&arguments[..], &[&store, "--exit-code", "--output", "json"]].concat();
    let output = strata(&world, &again);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let plan = json(&output);
    assert_eq!(plan["version"], 1);
    assert_eq!(plan["compositions"][0]["layers"][0]["change"], "upgraded");
    assert_eq!(plan["blast_radius"]["touched_vas"], 4);
}

#[test]
fn an_inventory_serves_as_well_as_the_store() {
    let world = fleet();
    let file = world.path("inventory.json.zst");
    let file = file.to_str().expect("UTF-8");
    let exported =
        strata(&world, &["inventory", "export", "--store", &store(&world), "--file", file]);
    assert_eq!(exported.status.code(), Some(0), "{exported:?}");
    // As the help has it: a plain name is a file of the working directory.
    let plain = ["inventory", "export", "--store", &store(&world), "--file", "plain.json.zst"];
    let exported = strata(&world, &plain);
    assert_eq!(exported.status.code(), Some(0), "{exported:?}");
    world.remove("plain.json.zst");
    let compare = ["plan", "--base", "origin/main", "--head", "HEAD", "--output", "json"];
    let live = json(&strata(&world, &[&compare[..], &["--store", &store(&world)]].concat()));
    let mut offline = json(&strata(&world, &[&compare[..], &["--inventory", file]].concat()));
    assert!(offline["inventory_exported_at_ms"].as_u64() > Some(1_700_000_000_000));
    offline["inventory_exported_at_ms"] = serde_json::Value::Null;
    assert_eq!(live, offline);
    let plain =
        strata(&world, &["inventory", "export", "--store", &store(&world), "--no-manifests"]);
    let printed = text(&plain);
    for secret in [mac(9).to_string(), world.directory.path().display().to_string()] {
        assert!(!printed.contains(&secret), "{secret}");
    }
    let small = world.path("small.json");
    std::fs::write(&small, printed).expect("written");
    let small = small.to_str().expect("UTF-8");
    let output = strata(&world, &["check", ".", "--inventory", small]);
    assert_eq!(output.status.code(), Some(0), "missing manifests are warnings: {output:?}");
    assert!(text(&output).contains("[no-manifest]"), "{output:?}");
    std::fs::write(world.path("bad.json"), "{\n \"version\": 7}\n").expect("written");
    let bad = world.path("bad.json");
    let output = strata(&world, &["plan", "--inventory", bad.to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is of version 7"), "{output:?}");
}

#[test]
fn edits_that_are_not_committed_are_compared_with_head() {
    let world = fleet();
    let store = store(&world);
    let unchanged = strata(&world, &["plan", ".", "--store", &store, "--exit-code"]);
    assert_eq!(unchanged.status.code(), Some(0), "{unchanged:?}");
    assert!(text(&unchanged).contains("verdict: changes nothing"));
    world.write("templates/web.ldf", "main/app 3\n");
    let refused = strata(&world, &["plan", ".", "--store", &store]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let printed = text(&refused);
    assert!(printed.contains("templates/web.ldf:1:1: error:"), "{printed}");
    assert!(printed.contains("verdict: refused: 1 error"), "{printed}");
    world.write("templates/web.ldf", "main/base 1\n");
    world.write("strata.toml", "[[repository]]\nname = \"main\"\n[limits]\ntouched-vas = 3\n");
    let over = strata(&world, &["plan", ".", "--store", &store]);
    assert_eq!(over.status.code(), Some(1), "{over:?}");
    assert!(text(&over).contains("OVER the limit of 3 VAs"), "{over:?}");
}

#[test]
fn a_comment_is_inert_whatever_the_commit_holds() {
    let world = fleet();
    world.write("templates/web/etc/a`b<img src=x>|[c](d) @all", "x\n");
    let arguments = ["plan", ".", "--store", &store(&world), "--output", "markdown"];
    let printed = text(&strata(&world, &arguments));
    assert!(printed.starts_with("<!-- strata plan -->\n### Strata plan: "), "{printed}");
    assert!(printed.contains("``/etc/a`b<img src=x>|[c](d) @all``"), "{printed}");
}

#[test]
fn what_is_missing_is_said_with_a_hint() {
    let world = fleet();
    let store = store(&world);
    for (arguments, words) in [
        (vec!["plan", "."], "neither a store nor an inventory"),
        (
            vec!["plan", ".", "--store", &store, "--base", "nowhere"],
            "there is no revision \"nowhere\"",
        ),
        (vec!["plan", "/", "--store", &store], "/ is in no git repository"),
        (vec!["plan", ".", "--inventory", "gone.json"], "read gone.json"),
    ] {
        let output = strata(&world, &arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(said.contains(words) && said.contains("hint: "), "{said}");
    }
}

#[test]
fn a_change_that_moves_no_layer_is_shown_all_the_same() {
    let world = fleet();
    let store = store(&world);
    world.write(
        "strata.toml",
        "rings = [\"everyone\"]\n[[repository]]\nname = \"main\"\n[rollout]\non-failure = \"halt\"\n",
    );
    world.write("templates/web.health", "[[check]]\ncommand = [\"sh\", \"-c\", \"x | sh\"]\n");
    let output = strata(&world, &["plan", ".", "--store", &store, "--exit-code"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let printed = text(&output);
    for line in [
        "settings in strata.toml\n",
        "+ rollout.on-failure: \"halt\"",
        "health checks\n  + web: command [\"sh\", \"-c\", \"x | sh\"] (10 s, 3 retries), run in 5 VAs",
        "verdict: can be taken",
    ] {
        assert!(printed.contains(line), "{line:?} in:\n{printed}");
    }
    let comment = text(&strata(&world, &["plan", ".", "--store", &store, "--output", "markdown"]));
    assert!(comment.contains("**health checks**\n\n- `+ web: command [\"sh\""), "{comment}");
    let plan = json(&strata(&world, &["plan", ".", "--store", &store, "--output", "json"]));
    assert_eq!(plan["health"][0]["command"][2], "x | sh");
    assert!(plan["settings"].as_array().is_some_and(|all| !all.is_empty()), "{plan}");
}

/// A base and a head between which everything changes that a plan tells of.
fn everything() -> World {
    let world = fleet();
    world.git(&["checkout", "-q", "main"]);
    world.write(
        "appliances.toml",
        &format!(
            "[[appliance]]\nname = \"stays\"\nmac = \"{}\"\nldf = \"web\"\nlabels = {{ site = \"a\" }}\n\n[[appliance]]\nname = \"goes\"\nmac = \"{}\"\nldf = \"web\"\n",
            mac(20),
            mac(21)
        ),
    );
    world.write("templates/gone.ldf", "main/app 1\n");
    world.write("templates/web.data", "/var/lib/old\n");
    world.write("templates/web.health", "[[check]]\nhttp = \"http://127.0.0.1/\"\n");
    world.push("the base");
    world.git(&["tag", "base"]);
    world.write(
        "appliances.toml",
        &format!(
            "[[appliance]]\nname = \"stays\"\nmac = \"{}\"\nldf = \"sql\"\n\n[[appliance]]\nname = \"comes\"\nmac = \"{}\"\nldf = \"web\"\n",
            mac(20),
            mac(22)
        ),
    );
    world.remove("templates/gone.ldf");
    world.write("templates/new.ldf", "= main/app 1\n");
    world.write("templates/web.ldf", "main/app 2\nmain/base 1\n");
    world.write("templates/web/app", "it lies over the file of the layer\n");
    world.write("templates/web.data", "/var/lib/new\n");
    let checks = "[[check]]\ncommand = [\"true\"]\n\n[[check]]\ntcp = \"127.0.0.1:5432\"\n";
    world.write("templates/web.health", checks);
    world.write("templates/faulty.ldf", "main/nothing 1\n");
    let limits = "[limits]\ntouched-vas = 100\ntouched-percent = 90\n";
    world.write("strata.toml", &format!("[[repository]]\nname = \"main\"\n{limits}"));
    world.push("the head");
    world
}

#[test]
fn what_a_plan_prints_is_what_the_schema_says() {
    let world = everything();
    let schema = schema("plan-1");
    let store = store(&world);
    let plan = |more: &[&str]| {
        let arguments = [&["plan", ".", "--store", &store, "--output", "json"], more].concat();
        let output = strata(&world, &arguments);
        assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
        json(&output)
    };
    let full = plan(&["--base", "base", "--head", "HEAD"]);
    // Nothing of what the schema describes goes unseen.
    for (pointer, least) in [
        ("/diagnostics", 1),
        ("/compositions", 3),
        ("/unknown", 1),
        ("/appliances", 3),
        ("/settings", 1),
        ("/health", 3),
    ] {
        let found = full.pointer(pointer).and_then(Value::as_array).map_or(0, Vec::len);
        assert!(found >= least, "{pointer}: {full:#}");
    }
    let all = full["compositions"].as_array().expect("compositions");
    for member in ["layers", "held", "data", "vas"] {
        let is_there = |one: &Value| one[member].as_array().is_some_and(|all| !all.is_empty());
        assert!(all.iter().any(is_there), "{member}: {full:#}");
    }
    for member in ["appear", "vanish", "configuration", "shadowed"] {
        let is_there =
            |one: &Value| one["paths"][member].as_array().is_some_and(|all| !all.is_empty());
        assert!(all.iter().any(is_there), "{member}: {full:#}");
    }
    let unchanged = plan(&["--base", "HEAD", "--head", "HEAD"]);
    let as_it_stands = plan(&[]);
    for value in [&full, &unchanged, &as_it_stands] {
        assert_eq!(faults(&schema, value), Vec::<String>::new(), "{value:#}");
    }
    // A schema that takes anything proves nothing.
    let refused = |pointer: &str, value: Value| {
        let mut other = full.clone();
        let place = other.pointer_mut(pointer).and_then(Value::as_object_mut);
        place.unwrap_or_else(|| panic!("{pointer}")).insert("surprise".to_owned(), value);
        assert_ne!(faults(&schema, &other), Vec::<String>::new(), "{pointer}");
    };
    for pointer in [
        "",
        "/base",
        "/diagnostics/0",
        "/compositions/0",
        "/compositions/0/paths",
        "/appliances/0",
        "/settings/0",
        "/health/0",
        "/blast_radius",
    ] {
        refused(pointer, 1.into());
    }
    let mut other = full.clone();
    other["version"] = 2.into();
    assert_ne!(faults(&schema, &other), Vec::<String>::new());
}
