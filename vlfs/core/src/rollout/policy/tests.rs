use super::*;
use crate::configuration::{Configuration, read_appliances};
use crate::diagnostic::Severity;

const GOOD: &str = "[[rollout.ring]]\nname = \"canary\"\nsize = \"10%\"\nsuccess = \"90%\"\nunhealthy = \"2\"\nsoak = \"10m\"\ndeadline = \"1h\"\nswapping = 5\n\n[[rollout.ring]]\nname = \"vienna\"\nlabels = { site = \"vienna\" }\n\n[[rollout.ring]]\nname = \"everyone\"\n\n[rollout]\non-failure = \"auto-rollback\"\nsilent-days = 30\n\n[prune]\nlimit = 3\n\n[drift]\nlinks = \"warn\"\nprivate = \"warn\"\nwatch = [\"etc/**\", \"setuid\"]\nignore = [\"etc/mtab\"]\n";

#[test]
fn a_whole_policy() {
    let (configuration, faults) = Configuration::read(GOOD.as_bytes());
    assert_eq!(faults, []);
    let policy = configuration.rollout;
    let names: Vec<_> = policy.rings.iter().map(|ring| ring.name.as_str()).collect();
    assert_eq!(names, ["canary", "vienna", "everyone"]);
    let gate = policy.rings[0].gate.expect("a gate");
    assert_eq!((gate.soak_ms, gate.deadline_ms), (600_000, 3_600_000));
    assert_eq!((gate.success, gate.unhealthy), (Percent(90), Some(Share::Number(2))));
    assert_eq!(policy.rings[2].gate, Some(Gate::default()));
    assert_eq!((policy.on_failure, policy.prune), (OnFailure::AutoRollback, Some(3)));
    assert_eq!(policy.drift.links, DriftMode::Warn);
}

#[test]
fn every_fault_has_its_line() {
    let text = "[[rollout.ring]]\nname = \"a+next\"\nsoak = \"10\"\nsuccess = \"101%\"\ncolour = 1\n[[rollout.window]]\nfrom = \"25:00\"\nto = \"1:0\"\nzone = \"Mars/Olympus\"\nrings = [\"nobody\"]\n[[rollout.freeze]]\nfrom = \"2026-12-02 00:00\"\nto = \"2026-12-01 00:00\"\nzone = \"UTC\"\n[rollout]\non-failure = \"pray\"\n[prune]\nlimit = -1\n[drift]\nlinks = \"maybe\"\n";
    let (_, faults) = Configuration::read(text.as_bytes());
    let mut lines: Vec<_> = faults.iter().map(|fault| (fault.line, fault.code)).collect();
    lines.sort_unstable();
    let expected = [
        (2, "ring"),
        (3, "value"),
        (4, "value"),
        (5, "unknown-key"),
        (7, "value"),
        (8, "value"),
        (9, "value"),
        (10, "unknown-ring"),
        (13, "value"),
        (16, "value"),
        (18, "value"),
        (20, "value"),
    ];
    assert_eq!(lines, expected);
}

#[test]
fn what_would_mean_something_else_is_a_fault() {
    let text = "[[rollout.ring]]\nname = \"all\"\nswapping = 0\n[[rollout.window]]\nfrom = \"22:00\"\nto = \"23:00\"\nzone = \"UTC\"\ndays = []\nrings = []\n[[rollout.freeze]]\nfrom = \"2026-12-01 00:00\"\nto = \"2026-12-02 00:00\"\nzone = \"UTC\"\ntemplates = []\n[drift]\nwatch = [\"etc/**\", \"\"]\nignore = [\"/\"]\n";
    let (_, faults) = Configuration::read(text.as_bytes());
    let mut lines: Vec<_> = faults.iter().map(|fault| (fault.line, fault.code)).collect();
    lines.sort_unstable();
    assert_eq!(lines, [3, 8, 9, 14, 16, 17].map(|line| (line, "value")), "{faults:?}");
}

#[test]
fn labels_and_sizes_choose_the_rings_of_declared_vas() {
    let (configuration, _) = Configuration::read(GOOD.as_bytes());
    let mut text = String::new();
    for number in 0..40 {
        text.push_str(&format!(
            "[[appliance]]\nname = \"web-{number}\"\nmac = \"52:54:00:00:00:{number:02x}\"\nldf = \"web\"\n"
        ));
        match number {
            0 => text.push_str("ring = \"canary\"\n"),
            1 => text.push_str("labels = { site = \"vienna\" }\n"),
            _ => {}
        }
    }
    let rings = |text: &str| {
        let (appliances, faults) = read_appliances(text.as_bytes(), &configuration);
        assert_eq!(faults, []);
        let rings = appliances.by_name.into_iter();
        rings.map(|(name, appliance)| (name, appliance.ring)).collect::<BTreeMap<_, _>>()
    };
    let first = rings(&text);
    let count = |ring: &str| first.values().filter(|found| found.as_str() == ring).count();
    assert_eq!((count("canary"), count("vienna"), count("everyone")), (4, 1, 35));
    let more = "[[appliance]]\nname = \"new\"\nmac = \"52:54:00:00:01:00\"\nldf = \"web\"\n";
    let second = rings(&(text + more));
    let moved = first.iter().filter(|(name, ring)| second[*name] != **ring).count();
    assert!(moved <= 1, "one more VA moves {moved}");
}

#[test]
fn numbers_of_vas_are_written_with_quotes_or_without() {
    let ring = |more: &str| {
        let ring = format!("[[rollout.ring]]\nname = \"a\"\n{more}\n");
        let text = format!("[[repository]]\nname = \"main\"\n{ring}");
        let (configuration, faults) = Configuration::read(text.as_bytes());
        let ring = configuration.rollout.rings[0].clone();
        (ring.selector.size, ring.gate.and_then(|gate| gate.unhealthy), faults.len())
    };
    let five = Some(Share::Number(5));
    assert_eq!(
        ring("success = \"50%\"\nsize = 5\nunhealthy = 0"),
        (five, Some(Share::Number(0)), 0)
    );
    assert_eq!(ring("size = \"5\""), (five, None, 0));
    for wrong in ["size = -1", "size = 1.5", "size = 0x10", "size = true", "size = 99999999999"] {
        assert_eq!(ring(wrong), (None, None, 1), "{wrong}");
    }
}

#[test]
fn what_would_wait_for_ever_is_a_warning() {
    for (keys, warned) in [("100 1", true), ("100 0", false), ("90 10%", false), ("90 11%", true)] {
        let (success, bad) = keys.split_once(' ').expect("two");
        let ring = format!("name = \"a\"\nsuccess = \"{success}%\"\nunhealthy = \"{bad}\"\n");
        let text = format!("[[repository]]\nname = \"main\"\n[[rollout.ring]]\n{ring}");
        let (_, faults) = Configuration::read(text.as_bytes());
        let found: Vec<_> = faults.iter().map(|f| (f.line, f.severity)).collect();
        assert_eq!(found, [(6, Severity::Warning)][..usize::from(warned)], "{text}");
    }
}

#[test]
fn staged_links() {
    let ring: RingName = "all".parse().expect("valid");
    assert_eq!(base_ring(&staged_ring(&ring)), (ring.clone(), true));
    assert_eq!(base_ring(&ring), (ring.clone(), false));
}
