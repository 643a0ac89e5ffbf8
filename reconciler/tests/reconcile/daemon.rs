//! The real program: its loop, its signals, its end by SIGKILL.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use strata_core::GenerationId;

use crate::support::{World, mac, wait_until};

/// The program; killed when a test fails.
pub struct Daemon(Child);

impl Daemon {
    pub fn start(world: &World, arguments: &[&str]) -> Self {
        Self::run(world, &[&["--source", &source(world)], arguments].concat())
    }

    /// With the settings `reconciler.toml`, which say what the source is.
    pub fn configured(world: &World, arguments: &[&str]) -> Self {
        let settings = world.path("reconciler.toml");
        let settings = settings.to_str().expect("UTF-8");
        Self::run(world, &[&["--config", settings], arguments].concat())
    }

    fn run(world: &World, arguments: &[&str]) -> Self {
        Daemon(command(world, arguments).spawn().expect("starts"))
    }

    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.0), signal).expect("alive");
    }

    /// Memory that it has, in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()));
        let status = status.expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.and_then(|number| number.parse().ok()).expect("a number of KiB")
    }

    /// Ends it and returns its exit status.
    pub fn terminate(self) -> Option<i32> {
        self.signal(Signal::TERM);
        self.ended()
    }

    /// Waits for its end and returns its exit status.
    pub fn ended(mut self) -> Option<i32> {
        let mut status = None;
        wait_until("the daemon ends", Duration::from_secs(20), || {
            status = self.0.try_wait().expect("waited");
            status.is_some()
        });
        status.expect("ended").code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Harmless where it has ended.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn source(world: &World) -> String {
    world.path("fleet.git").to_str().expect("UTF-8").to_owned()
}

fn command(world: &World, arguments: &[&str]) -> Command {
    let mut command = Command::new(PathBuf::from(env!("CARGO_BIN_EXE_strata")));
    command
        .arg("reconcile")
        .arg("--store")
        .arg(world.store.root())
        .args(arguments)
        .env_remove("STRATA_LOG")
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(world.path("log")).expect("a log"));
    command
}

pub fn log(world: &World) -> String {
    std::fs::read_to_string(world.path("log")).unwrap_or_default()
}

fn web(version: u32) -> String {
    format!("main/app {version}\nmain/base 1\n")
}

/// Pushes a version of web and waits until the ring has moved; how long that took.
fn roll_out(world: &World, version: u32, limit: Duration) -> Duration {
    let before: Option<GenerationId> = world.ring("web", "everyone");
    world.write("templates/web.ldf", &web(version));
    world.git(&["commit", "-qam", "bump"]);
    world.git(&["push", "-q", "origin", "HEAD:main"]);
    let pushed = Instant::now();
    let what = format!("the ring moves; log:\n{}", log(world));
    wait_until(&what, limit, || world.ring("web", "everyone") != before);
    pushed.elapsed()
}

#[test]
fn with_events_a_push_is_applied_within_a_second() {
    for vas in [0, 10_000] {
        let world = World::new();
        world.claim("web", "everyone", 0..vas);
        let daemon = Daemon::start(&world, &["--poll", "3600"]);
        wait_until("the first pass", Duration::from_secs(60), || world.rings().len() == 4);
        let mut times: Vec<_> =
            (0..6).map(|n| roll_out(&world, 2 - n % 2, Duration::from_secs(30))).collect();
        times.sort_unstable();
        println!("{vas} VAs, push returned → last ring moved: {times:?}");
        assert!(times[times.len() / 2] < Duration::from_secs(1), "{times:?}\n{}", log(&world));
        assert_eq!(daemon.terminate(), Some(0));
    }
}

#[test]
fn without_events_the_poll_floor_finds_it() {
    let world = World::new();
    let daemon = Daemon::start(&world, &["--poll", "1", "--no-events"]);
    wait_until("the first pass", Duration::from_secs(60), || world.rings().len() == 4);
    roll_out(&world, 2, Duration::from_secs(20));
    assert_eq!(daemon.terminate(), Some(0));
}

/// An idle daemon writes nothing and logs nothing.
#[test]
fn an_idle_daemon_is_silent() {
    let world = World::new();
    let daemon = Daemon::start(&world, &["--poll", "1"]);
    let applied = || world.applied().is_some();
    // What it did is logged after it is done, a template at a time.
    let told = || log(&world).matches("rollout-done").count() == 2;
    wait_until("the first pass", Duration::from_secs(60), || applied() && told());
    let (before, logged) = (world.snapshot(), log(&world));
    let passes = world.store.state("mirror.git").join("HEAD");
    assert!(passes.exists());
    // Three polls and a hint that brings nothing.
    let end = Instant::now() + Duration::from_millis(3_500);
    world.git_at(&world.path("fleet.git"), &["branch", "other", "main"]);
    wait_until("the polls", Duration::from_secs(10), || Instant::now() > end);
    world.assert_unchanged(&before);
    assert_eq!(log(&world), logged);
    assert_eq!(daemon.terminate(), Some(0));
}

#[test]
fn a_source_that_goes_away_and_returns_is_retried() {
    let world = World::new();
    let daemon = Daemon::start(&world, &["--poll", "1", "--no-events"]);
    wait_until("the first pass", Duration::from_secs(60), || world.rings().len() == 4);
    let rings = world.rings();
    std::fs::rename(world.path("fleet.git"), world.path("away.git")).expect("moved away");
    let state = || std::fs::read_to_string(world.store.state("reconcile.json")).unwrap_or_default();
    wait_until("the failure is told", Duration::from_secs(20), || {
        state().contains("could not fetch")
    });
    assert_eq!(world.rings(), rings);
    std::fs::rename(world.path("away.git"), world.path("fleet.git")).expect("moved back");
    roll_out(&world, 2, Duration::from_secs(30));
    assert_eq!(daemon.terminate(), Some(0));
}

/// Acceptance of the whole line: killed 100 times at random moments during
/// rollouts, each restart ends where an undisturbed run ends.
#[test]
fn killed_a_hundred_times_it_ends_in_the_same_state() {
    let world = World::new();
    world.claim("web", "everyone", 0..20);
    world.once();
    let mut expected = Vec::new();
    for version in [2, 1] {
        world.write("templates/web/etc/motd", &format!("version {version}\n"));
        world.write("templates/web.ldf", &web(version));
        world.push("bump");
        if expected.len() < 2 {
            world.once();
            expected.push(world.rings());
        }
    }
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut finished = 0;
    for round in 0..100_u32 {
        let at = usize::from(round % 2 == 1);
        world.write("templates/web/etc/motd", &format!("version {}\n", 2 - at));
        world.write("templates/web.ldf", &web(2 - u32::from(round % 2 == 1)));
        world.push("bump");
        let mut child =
            command(&world, &["--source", &source(&world), "--once"]).spawn().expect("starts");
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let end = Instant::now() + Duration::from_micros(random % 120_000);
        while Instant::now() < end && child.try_wait().expect("waited").is_none() {
            std::thread::yield_now();
        }
        finished += u32::from(child.try_wait().expect("waited").is_some());
        // Harmless where it has ended.
        let _ended = child.kill();
        child.wait().expect("reaped");
        for number in 0..20 {
            let desired = world.store.desired(mac(number)).expect("readable").expect("a ring");
            world.store.generation(&desired).expect("no link ever dangles");
        }
        // Now and then a crash meets what an earlier crash left.
        if round % 4 != 0 {
            world.once();
            assert_eq!(world.rings(), expected[at], "round {round}");
        }
    }
    println!("{finished} of 100 ended before they were killed");
    assert!(finished < 90, "the kills came too late to mean anything");
    let leftovers = world.snapshot().into_keys().filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.starts_with(".new-") || name.starts_with(".staging-")
    });
    assert_eq!(leftovers.collect::<Vec<_>>(), Vec::<PathBuf>::new());
}
