use strata_core::Severity;
use tempfile::TempDir;

use super::*;

/// A store that mirrors `main` from a directory, which is not there yet.
struct Bench {
    directory: TempDir,
    store: Store,
    configuration: Configuration,
    mirrors: Mirrors,
}

impl Bench {
    fn new() -> Self {
        let directory = TempDir::new().expect("a directory");
        let store = Store::init(&directory.path().join("store")).expect("a store");
        let url = directory.path().join("remote");
        let text = format!(
            "[[repository]]\nname = \"main\"\nurl = \"{}\"\nunsigned = true\n",
            url.display()
        );
        let (configuration, faults) = Configuration::read(text.as_bytes());
        assert_eq!(faults, []);
        Bench { directory, store, configuration, mirrors: Mirrors::default() }
    }

    fn bring(&mut self) -> Vec<Diagnostic> {
        let (wanted, cancelled) = (Wanted::new(), AtomicBool::new(false));
        let brought = self.mirrors.bring(&self.store, &self.configuration, &wanted, &cancelled);
        brought.expect("the store is readable")
    }

    fn attempts(&mut self) -> &mut Attempts {
        self.mirrors.attempts.values_mut().next().expect("it was tried")
    }

    fn publish(&self) {
        let remote = self.directory.path().join("remote");
        std::fs::create_dir_all(&remote).expect("made");
        let database = include_bytes!("../../../../vlfs/core/golden/database");
        std::fs::write(remote.join("database"), database).expect("written");
    }
}

#[test]
fn a_repository_that_fails_is_left_alone_for_a_while() {
    let mut bench = Bench::new();
    assert!(bench.mirrors.is_due(&bench.configuration));
    let faults = bench.bring();
    assert_eq!((faults[0].code, faults[0].severity), ("mirror", Severity::Error), "{faults:?}");
    assert!(!bench.mirrors.is_due(&bench.configuration));
    assert_eq!(bench.bring(), faults, "the same is said, and nothing tried");
    assert_eq!(bench.attempts().failures, 1);

    bench.attempts().next = Instant::now();
    bench.bring();
    assert_eq!(bench.attempts().failures, 2);
    let pause = bench.attempts().next.saturating_duration_since(Instant::now());
    assert!(pause > FIRST_PAUSE && pause <= FIRST_PAUSE * 2, "the pause grows: {pause:?}");

    bench.publish();
    bench.attempts().next = Instant::now();
    assert_eq!(bench.bring(), []);
    assert_eq!(bench.attempts().failures, 0);
    assert!(!bench.mirrors.is_due(&bench.configuration));
}

#[test]
fn out_of_reach_is_a_warning_as_long_as_nothing_is_missing() {
    let mut bench = Bench::new();
    bench.publish();
    assert_eq!(bench.bring(), []);
    std::fs::remove_dir_all(bench.directory.path().join("remote")).expect("removed");
    bench.attempts().next = Instant::now();
    let faults = bench.bring();
    assert_eq!((faults[0].code, faults[0].severity), ("mirror", Severity::Warning), "{faults:?}");
}

#[test]
fn another_url_is_tried_at_once() {
    let mut bench = Bench::new();
    bench.bring();
    bench.publish();
    let remote = bench.configuration.repositories[0].remote.as_mut().expect("a remote");
    let other = bench.directory.path().join("other");
    std::fs::rename(bench.directory.path().join("remote"), &other).expect("renamed");
    remote.location = other.to_str().expect("UTF-8").parse().expect("a location");
    assert!(bench.mirrors.is_due(&bench.configuration));
    assert_eq!(bench.bring(), []);
}
