//! `strata store gc` on a store whose layers come from somewhere else.

use std::fs;

use strata_core::links::VaTarget;
use strata_core::report::{Report, ServingState, VERSION};
use strata_core::{GenerationId, MacAddr};
use strata_store::write_report;

use crate::passes::{commit, pass};
use crate::support::{Bench, text};

const AT_ONCE: [&str; 6] = ["store", "gc", "--grace-hours", "0", "--generations", "0"];

fn gc(bench: &Bench, more: &[&str]) -> String {
    bench.good(&bench.reader, &[&AT_ONCE[..], more].concat())
}

fn definition(bench: &Bench, ldf: &str) {
    fs::write(bench.path("gitops/templates/web.ldf"), ldf).expect("written");
    commit(bench);
    let (output, report) = pass(bench);
    assert_eq!(report["result"], "applied", "{output:?}");
}

fn ring(bench: &Bench) -> GenerationId {
    let (template, ring) = ("web".parse().expect("a name"), "everyone".parse().expect("a name"));
    bench.reader.ring(&template, &ring).expect("read").expect("a ring")
}

/// The ring has gone from `app 1` to `app 2`; the former generation, too.
fn two_versions() -> (Bench, [GenerationId; 2]) {
    let bench = Bench::new();
    bench.layer("app", "2", "two");
    bench.publish();
    bench.configure(text(&bench.path("published/main")), "");
    definition(&bench, "main/app 1\nmain/lib 1:2\n");
    let first = ring(&bench);
    definition(&bench, "main/app 2\nmain/lib 1:2\n");
    let second = ring(&bench);
    assert_ne!(first, second);
    (bench, [first, second])
}

fn mac() -> MacAddr {
    "52:54:00:00:00:01".parse().expect("an address")
}

#[test]
fn what_nothing_needs_goes_and_comes_back_with_a_revert() {
    let (bench, _) = two_versions();
    let young = bench.good(&bench.reader, &["store", "gc", "--apply"]);
    assert!(young.starts_with("nothing to remove"), "{young}");
    let dry = gc(&bench, &[]);
    assert!(dry.contains("unit main/app 1: mirrored again when needed\n"), "{dry}");
    assert!(!dry.contains("main/app 2") && !dry.contains("main/lib"), "{dry}");
    assert!(bench.unit("app", "1").exists(), "nothing was removed");
    let kept = gc(&bench, &["--apply", "--keep-mirrored"]);
    assert!(bench.unit("app", "1").exists(), "{kept}");
    let done = gc(&bench, &["--apply"]);
    assert!(done.starts_with("unit main/app 1") && done.contains("1 layer unit"), "{done}");
    assert!(!bench.unit("app", "1").exists());
    assert!(bench.unit("app", "2").exists() && bench.unit("lib", "1:2").exists());
    bench.assert_nothing_half();
    bench.assert_mirrored();
    // The database still says what there is: a revert fetches the layer again.
    definition(&bench, "main/app 1\nmain/lib 1:2\n");
    assert!(bench.unit("app", "1").exists());
}

#[test]
fn what_a_va_serves_is_pinned_to_or_a_generation_has_stays() {
    for root in ["a report", "a pin", "a kept generation"] {
        let (bench, [first, _]) = two_versions();
        let mut arguments = AT_ONCE[..4].to_vec();
        arguments.push("--apply");
        let kept = if root == "a kept generation" { "2" } else { "0" };
        arguments.extend(["--generations", kept]);
        match root {
            "a report" => report(&bench, first),
            "a pin" => {
                let composition = "web".parse().expect("a name");
                let target = VaTarget::Pinned { generation: first, composition };
                bench.reader.claim_va(mac(), &target).expect("linked");
            }
            _ => {}
        }
        let said = bench.good(&bench.reader, &arguments);
        assert!(said.starts_with("nothing to remove"), "{root}: {said}");
        assert!(bench.unit("app", "1").exists(), "{root}");
    }
}

#[test]
fn what_the_source_lists_no_more_goes_when_nothing_needs_it() {
    let (bench, [first, _]) = two_versions();
    let withdraw = ["layer", "withdraw", "main/app", "1", "--reason", "CVE-2026-1"];
    bench.good(&bench.owner, &withdraw);
    bench.good(&bench.owner, &[&AT_ONCE[..], &["--apply"]].concat());
    bench.publish();
    bench.sync();
    report(&bench, first);
    assert!(gc(&bench, &["--apply"]).starts_with("nothing to remove"));
    let strange = bench.refused(&["repo", "verify", "main"]);
    assert!(strange.contains("app_1") && strange.contains("lists it no more"), "{strange}");
    fs::remove_file(bench.reader.reports().join(mac().to_string())).expect("removed");
    let done = gc(&bench, &["--apply"]);
    assert!(done.contains("unit main/app 1: its source lists it no more\n"), "{done}");
    assert!(!bench.unit("app", "1").exists());
    bench.assert_mirrored();
}

fn report(bench: &Bench, serves: GenerationId) {
    let report = Report {
        version: VERSION,
        mac: mac(),
        state: ServingState::Serving,
        generation: Some(serves),
        composition: Some("web".parse().expect("a name")),
        layers: 2,
        desired: Some(serves),
        error: None,
        pid: 1,
        host: "host".to_owned(),
        mount_point: "/".to_owned(),
        swaps: 0,
        started_at_ms: 1,
        written_at_ms: 2,
        interval_s: 60,
        scripts: Default::default(),
    };
    write_report(&bench.reader.reports(), &report).expect("a report");
}
