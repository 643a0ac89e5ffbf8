use super::*;
use crate::digest::Digest;

const MAC: &str = "52:54:00:12:34:56";

fn id(text: &str) -> GenerationId {
    Digest::of(text.as_bytes())
}

fn report(generation: &str) -> Report {
    let mac = MAC.parse().expect("valid");
    let text = include_str!("../../golden/report");
    let report = Report::parse(text.as_bytes(), mac).expect("the golden report");
    let generation = Some(id(generation));
    Report { generation, desired: generation, error: None, interval_s: 10, ..report }
}

fn va(run_state: Option<RunState>, report: Option<(Report, u64)>) -> ObservedVa {
    ObservedVa {
        name: Some("web-1".parse().expect("valid")),
        mac: MAC.parse().expect("valid"),
        target: VaTarget::Ring {
            composition: "web".parse().expect("valid"),
            ring: "everyone".parse().expect("valid"),
        },
        desired: Some(id("new")),
        ring_age_ms: Some(60_000),
        report: match report {
            None => ReportView::Missing,
            Some((report, age_ms)) => ReportView::Read { report: Box::new(report), age_ms },
        },
        run_state,
    }
}

fn verdict(va: &ObservedVa) -> String {
    let status = va_status(va);
    match status.reason {
        None => status.state.to_string(),
        Some(reason) => format!("{}: {reason}", status.state),
    }
}

const RUNNING: Option<RunState> = Some(RunState::Running);
const SUSPENDED: Option<RunState> = Some(RunState::Suspended);
const STOPPED: Option<RunState> = Some(RunState::Stopped);

/// What runs before a swap may take longer than a swap, and says so.
#[test]
fn a_va_whose_scripts_run_is_no_drift() {
    use crate::rollout::health::{CheckOutcome, VaHealth, va_health};
    let scripts = |state| crate::scripts::outcome::ScriptsReport {
        state,
        failures: Vec::new(),
        failure_count: 0,
    };
    let runs = Some(scripts(ScriptsState::Running));
    let before = Report { desired: Some(id("new")), scripts: runs.clone(), ..report("old") };
    let before = va(RUNNING, Some((before, 10)));
    assert_eq!(verdict(&before), "pending: swap under way");
    let health = |va: &ObservedVa, expected_ms| {
        va_health(va, &va_status(va), &CheckOutcome::None, expected_ms)
    };
    assert_eq!(health(&before, 3_600_000), VaHealth::Swapping);
    // Those of an earlier swap say nothing of this one.
    let other = Report { scripts: runs.clone(), ..report("old") };
    assert_eq!(verdict(&va(RUNNING, Some((other, 10)))), "drifted: serves another generation");
    // Those after it belong to it.
    let after = va(RUNNING, Some((Report { scripts: runs, ..report("new") }, 10)));
    assert_eq!((verdict(&after).as_str(), health(&after, 0)), ("in-sync", VaHealth::Swapping));
    let idle = Some(scripts(ScriptsState::Idle));
    let done = va(RUNNING, Some((Report { scripts: idle, ..report("new") }, 10)));
    assert_eq!(health(&done, 0), VaHealth::Healthy);
}

/// Who has just come back has the time of a swap, however long ago its ring moved.
#[test]
fn a_va_that_comes_back_is_no_drift_for_its_ring() {
    use crate::rollout::health::{CheckOutcome, VaHealth, va_health};
    let health = |report: Report, expected_ms| {
        let va = va(RUNNING, Some((report, 10)));
        va_health(&va, &va_status(&va), &CheckOutcome::None, expected_ms)
    };
    let failed = |desired: &str| Report {
        error: Some("layer missing".to_owned()),
        desired: Some(id(desired)),
        ..report("old")
    };
    assert_eq!(health(report("old"), SWAP_GRACE_MS), VaHealth::Swapping);
    assert!(matches!(health(report("old"), SWAP_GRACE_MS + 1), VaHealth::Unhealthy(_)));
    assert_eq!(health(failed("old"), SWAP_GRACE_MS), VaHealth::Swapping);
    assert!(matches!(health(failed("old"), SWAP_GRACE_MS + 1), VaHealth::Unhealthy(_)));
    assert!(matches!(health(failed("new"), 0), VaHealth::Unhealthy(_)), "it tried this one");
}

#[test]
fn the_table() {
    let failed = |desired: &str| Report {
        state: ServingState::Failed,
        error: Some("layer missing".to_owned()),
        desired: Some(id(desired)),
        ..report("old")
    };
    let stopped = |generation| Report { state: ServingState::Stopped, ..report(generation) };
    let cases = [
        (RUNNING, Some((report("new"), 9_000)), "in-sync"),
        (RUNNING, Some((report("new"), 30_000)), "in-sync"),
        (RUNNING, Some((report("new"), 30_001)), "unknown: last report 30 s ago"),
        (RUNNING, Some((report("old"), 9_000)), "drifted: serves another generation"),
        (RUNNING, Some((report("old"), 86_400_000 * 3)), "unknown: last report 3 days ago"),
        (RUNNING, Some((failed("new"), 10)), "failed: layer missing"),
        (RUNNING, Some((stopped("new"), 10)), "drifted: serves another generation"),
        (RUNNING, None, "unknown: runs and has not reported"),
        (SUSPENDED, Some((report("new"), 7_200_000)), "in-sync: suspended, last report 2 h ago"),
        (SUSPENDED, Some((report("old"), 10)), "pending: suspended"),
        (SUSPENDED, None, "pending: suspended"),
        (STOPPED, Some((stopped("new"), 120_000)), "in-sync: stopped, last report 2 min ago"),
        (STOPPED, Some((stopped("old"), 10)), "pending: stopped"),
        (STOPPED, None, "pending: never started"),
        (None, None, "pending: never started"),
        (None, Some((report("new"), 10)), "in-sync"),
        (None, Some((report("new"), 60_000)), "unknown: last report 60 s ago"),
        (None, Some((stopped("old"), 86_400_000)), "pending: stopped"),
    ];
    for (run_state, report, expected) in cases {
        let va = va(run_state, report);
        assert_eq!(verdict(&va), expected, "{va:?}");
    }
}

#[test]
fn right_after_a_move_another_generation_is_no_drift() {
    let old_error = Report {
        error: Some("an earlier fault".to_owned()),
        desired: Some(id("old")),
        ..report("older")
    };
    for (report, expected) in [
        (report("old"), "pending: swap under way"),
        (report("new"), "in-sync"),
        (old_error.clone(), "pending: swap under way"),
        (Report { desired: Some(id("new")), ..old_error }, "failed: an earlier fault"),
    ] {
        let va = ObservedVa { ring_age_ms: Some(29_000), ..va(RUNNING, Some((report, 10))) };
        assert_eq!(verdict(&va), expected);
    }
}

#[test]
fn a_report_cannot_claim_to_be_fresh_for_ever() {
    let report = Report { interval_s: u32::MAX, ..report("new") };
    assert_eq!(verdict(&va(RUNNING, Some((report, 901_000)))), "unknown: last report 15 min ago");
    let report = Report { interval_s: 0, ..self::report("new") };
    assert_eq!(verdict(&va(RUNNING, Some((report, 2_000)))), "in-sync");
}

#[test]
fn a_report_that_is_none_is_told_and_never_believed() {
    for run_state in [RUNNING, SUSPENDED, STOPPED, None] {
        let report = ReportView::Unreadable("the report has 65537 bytes".to_owned());
        let va = ObservedVa { report, ..va(run_state, None) };
        assert_eq!(verdict(&va), "unknown: the report has 65537 bytes");
    }
}

#[test]
fn a_ring_without_a_generation() {
    let va = ObservedVa { desired: None, ..va(RUNNING, Some((report("old"), 10))) };
    assert_eq!(verdict(&va), "pending: its ring has no generation yet");
}

#[test]
fn the_json_form() {
    let status = va_status(&va(RUNNING, Some((report("new"), 40_000))));
    let json = serde_json::to_value(&status).expect("serialises");
    assert_eq!(json["state"], "unknown");
    assert_eq!(json["reason"], "stale");
    assert_eq!(json["age_ms"], 40_000);
    assert_eq!(json["ring"], "everyone");
    assert_eq!(json["run_state"], "running");
    let summary = Summary::of([&status]);
    assert_eq!((summary.total, summary.unknown, summary.all_in_sync()), (1, 1, false));
}

/// §5.1: a script that fails does not undo the swap, and is not kept quiet either.
#[test]
fn scripts_that_failed_are_a_condition() {
    let mac = MAC.parse().expect("valid");
    let golden = Report::parse(include_bytes!("../../golden/report-2"), mac).expect("golden");
    let with = Report { version: 2, scripts: golden.scripts.clone(), ..report("new") };
    let status = va_status(&va(RUNNING, Some((with.clone(), 0))));
    assert_eq!(status.state, SyncState::InSync);
    let [condition] = status.conditions.as_slice() else { panic!("{:?}", status.conditions) };
    assert_eq!(condition.reason, VaConditionReason::KeptGoing);
    assert_eq!(
        condition.message,
        "main/mysql-server 5.0.51a-3 post-install: exit status 3: no such user"
    );
    let mut back = Report { generation: Some(id("old")), error: Some("it failed".into()), ..with };
    if let Some(scripts) = &mut back.scripts {
        scripts.state = ScriptsState::SwappedBack;
        scripts.failure_count = 3;
    }
    let status = va_status(&va(RUNNING, Some((back, 0))));
    assert_eq!(status.state, SyncState::Failed);
    assert_eq!(status.conditions[0].reason, VaConditionReason::SwappedBack);
    assert!(status.conditions[0].message.ends_with(" (and 2 more)"));
    assert_eq!(va_status(&va(RUNNING, Some((report("new"), 0)))).conditions, []);
}
