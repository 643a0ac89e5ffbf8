//! Imports killed at random moments, alone and two at once on one repository.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime};

use crate::{Bench, text};

const PACKAGES: usize = 12;
const ROUNDS: usize = 16;

/// Splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

impl Bench {
    fn packages(&self) -> Vec<PathBuf> {
        let content = |seed: u32| -> Vec<u8> {
            (0..700_000_u32).map(|n| (n.wrapping_mul(40_503 + seed) >> 8) as u8).collect()
        };
        let numbers = 0..PACKAGES as u32;
        numbers.map(|n| self.package(&format!("sample{n}"), &content(n))).collect()
    }

    fn importing(&self, repository: &str, packages: &[PathBuf]) -> Child {
        let mut arguments = vec!["layer", "import", "--repo", repository];
        arguments.extend(packages.iter().map(|package| text(package)));
        let mut command = self.command(&arguments);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("strata runs")
    }

    /// As a user finds it after the kill: what is listed is whole, and what is whole and
    /// not listed yet is said to be just that.
    fn assert_valid(&self) {
        if !self.path("store/repos/main").exists() {
            return;
        }
        let output = self.strata(&["repo", "verify", "main"]);
        let said = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(output.status.code().is_some_and(|code| code <= 1), "{said}");
        for line in said.lines().filter(|line| !line.starts_with("main: ")) {
            assert!(line.contains(": database: it is not listed"), "{said}");
        }
    }

    fn assert_complete(&self, packages: &[PathBuf]) {
        let again = self.importing("main", packages).wait().expect("it ends");
        assert!(again.success());
        assert_eq!(self.good(&["layer", "list"]).lines().count(), PACKAGES);
        self.good(&["repo", "verify", "main"]);
        assert_eq!(self.leftovers("main"), Vec::<String>::new());
    }
}

#[test]
fn imports_killed_at_random_moments_leave_a_valid_repository() {
    let bench = Bench::set_up();
    let packages = bench.packages();
    // How long one takes, so that the moments lie in it.
    let begun = Instant::now();
    assert!(bench.importing("measured", &packages).wait().expect("it ends").success());
    let whole = begun.elapsed();
    fs::remove_dir_all(bench.path("store/repos/measured")).expect("removed");
    let now = SystemTime::UNIX_EPOCH.elapsed().expect("a time").as_nanos() as u64;
    let mut random = Random(now);
    for round in 0..ROUNDS {
        // Every other time two work at once, and one of them is killed.
        let other = (round % 2 == 1).then(|| bench.importing("main", &packages));
        let moment = Duration::from_micros(random.below(whole.as_micros().max(1) as u64));
        let begun = Instant::now();
        let mut child = bench.importing("main", &packages);
        while begun.elapsed() < moment {
            std::thread::yield_now();
        }
        child.kill().expect("a signal");
        child.wait().expect("it ends");
        eprintln!("round {round}: killed after {moment:?} of {whole:?}");
        if let Some(mut other) = other {
            assert!(other.wait().expect("it ends").success(), "the other one goes on");
            bench.assert_valid();
            bench.assert_complete(&packages);
            fs::remove_dir_all(bench.path("store/repos/main")).expect("removed");
            continue;
        }
        bench.assert_valid();
        if round % 4 == 0 {
            bench.assert_complete(&packages);
            fs::remove_dir_all(bench.path("store/repos/main")).expect("removed");
        }
    }
    bench.assert_complete(&packages);
}
