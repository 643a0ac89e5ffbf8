//! Mixed load with a swap a second over a real store: no operation fails, and
//! afterwards nothing is held that was not held before.
//!
//! A few seconds of it in every run of the tests. `ci/soak` runs it for an hour:
//! `STRATA_SOAK_MINUTES` is how long, `STRATA_SOAK_JSON` a file for the figures.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::XattrFlags;
use serde_json::{Value, json};
use strata_core::{CompositionName, GenerationId, RingName};
use strata_vlfs::fuse::worker::WORKERS;

use crate::fixture::{Mapping, wait_for};
use crate::store::Va;

/// How much of the anonymous memory may stay above what it was: an allocator
/// keeps some of what it got.
const MEMORY_SLACK_KIB: u64 = 12 << 10;
/// Descriptors that the median under load may be above what it was.
const DESCRIPTOR_SLACK: u64 = 100;
/// Readings under load below which their course says nothing.
const FEWEST_READINGS: usize = 60;
/// Errors told in full; all are counted.
const TOLD_ERRORS: usize = 20;
/// How long workers may stay that are not needed any more: three times what they wait.
const REST: Duration = Duration::from_secs(30);
const STABLE_FILES: usize = 300;
const VERSIONS: [&str; 3] = ["1", "2", "3"];

type Outcome = Result<(), String>;

/// One kind of load: called again and again, with the number of the call.
type Load = fn(&Path, u64) -> Outcome;

const LOADS: [(&str, Load); 8] = [
    ("read", read_stable),
    ("read of what is swapped", read_swapped),
    ("write", write_files),
    ("rename of the layers' trees", rename_trees),
    ("create and remove", create_and_remove),
    ("map", map_files),
    ("exec", execute),
    ("walk", walk),
];

fn stable_content(number: usize) -> Vec<u8> {
    format!("stable {number}\n").repeat(1 + number * 7 % 900).into_bytes()
}

fn stable_path(number: usize) -> String {
    format!("stable/d{}/f{number}", number % 12)
}

fn told<T, E: std::fmt::Display>(
    what: &str,
    path: &Path,
    result: Result<T, E>,
) -> Result<T, String> {
    result.map_err(|error| format!("{what} {}: {error}", path.display()))
}

fn same(what: &str, path: &Path, expected: &[u8]) -> Outcome {
    let got = told(what, path, fs::read(path))?;
    if got == expected {
        return Ok(());
    }
    Err(format!("{what} {}: {} bytes, not those expected", path.display(), got.len()))
}

fn read_stable(root: &Path, turn: u64) -> Outcome {
    let number = (turn.wrapping_mul(7919) % STABLE_FILES as u64) as usize;
    same("read", &root.join(stable_path(number)), &stable_content(number))
}

/// Files that every generation has, each with another content.
fn read_swapped(root: &Path, turn: u64) -> Outcome {
    let path = root.join(format!("app/data/f{}", turn % 10));
    let got = told("read", &path, fs::read_to_string(&path))?;
    let expected = |version: &&&str| got == swapped_content(version, (turn % 10) as usize);
    match VERSIONS.iter().find(expected) {
        Some(_) => Ok(()),
        None => Err(format!("{}: mixed content", path.display())),
    }
}

fn swapped_content(version: &str, number: usize) -> String {
    format!("version {version} of {number}\n").repeat(300)
}

/// Copies files of the layers up by writing, and gives them back.
fn write_files(root: &Path, turn: u64) -> Outcome {
    let path = root.join(format!("written/f{}", turn % 40));
    let mut file = told("open", &path, OpenOptions::new().append(true).open(&path))?;
    told("append", &path, file.write_all(b"more\n"))?;
    drop(file);
    let expected = [b"written\n".as_slice(), b"more\n"].concat();
    same("read back", &path, &expected)?;
    revert(&root.join("written"), &path)
}

/// Takes a tree of the layers elsewhere, removes it there, and gives it back.
fn rename_trees(root: &Path, _turn: u64) -> Outcome {
    let (from, to) = (root.join("tree"), root.join("moved"));
    told("rename", &from, fs::rename(&from, &to))?;
    same("read", &to.join("d/f1"), b"in a tree\n")?;
    told("remove", &to, fs::remove_dir_all(&to))?;
    revert(root, &from)?;
    same("read", &from.join("d/f1"), b"in a tree\n")
}

fn create_and_remove(root: &Path, turn: u64) -> Outcome {
    let directory = root.join(format!("made-{}", turn % 4));
    told("mkdir", &directory, fs::create_dir(&directory))?;
    for name in 0..8 {
        let path = directory.join(format!("f{name}"));
        told("write", &path, fs::write(&path, turn.to_string()))?;
        let linked = directory.join(format!("l{name}"));
        told("link", &linked, fs::hard_link(&path, &linked))?;
        let renamed = directory.join(format!("r{name}"));
        told("rename", &path, fs::rename(&path, &renamed))?;
        same("read", &linked, turn.to_string().as_bytes())?;
    }
    told("remove", &directory, fs::remove_dir_all(&directory))?;
    let gone = root.join(format!("removed/f{}", turn % 20));
    told("unlink", &gone, fs::remove_file(&gone))?;
    revert(&root.join("removed"), &gone)
}

/// A mapping of a layer's file keeps its bytes; a shared one of a new file is written.
fn map_files(root: &Path, turn: u64) -> Outcome {
    let number = (turn.wrapping_mul(31) % STABLE_FILES as u64) as usize;
    let path = root.join(stable_path(number));
    let mapped = Mapping::new(&told("open", &path, File::open(&path))?);
    if mapped.bytes() != stable_content(number) {
        return Err(format!("{}: mapped bytes differ", path.display()));
    }
    let path = root.join("mapped");
    told("write", &path, fs::write(&path, [b'.'; 8192]))?;
    let file = told("open", &path, OpenOptions::new().read(true).write(true).open(&path))?;
    let mapped = Mapping::writable(&file);
    let text = format!("turn {turn}");
    mapped.write(text.as_bytes());
    drop(mapped);
    let got = told("read", &path, fs::read(&path))?;
    if got.len() != 8192 || !got.starts_with(text.as_bytes()) {
        return Err(format!("{}: what was written to the mapping is not there", path.display()));
    }
    told("unlink", &path, fs::remove_file(&path))
}

fn execute(root: &Path, _turn: u64) -> Outcome {
    let path = root.join("bin/program");
    let status = told("exec", &path, Command::new(&path).status())?;
    if status.success() { Ok(()) } else { Err(format!("exec {}: {status}", path.display())) }
}

/// Walks what no other load changes; a listing never mixes two generations.
fn walk(root: &Path, _turn: u64) -> Outcome {
    let mut seen = 0;
    for number in 0..12 {
        let directory = root.join(format!("stable/d{number}"));
        for entry in told("list", &directory, fs::read_dir(&directory))? {
            let entry = told("list", &directory, entry)?;
            told("stat", &entry.path(), entry.metadata())?;
            seen += 1;
        }
    }
    if seen != STABLE_FILES {
        return Err(format!("a walk saw {seen} of {STABLE_FILES} files"));
    }
    let directory = root.join("app/only");
    let mut versions = BTreeMap::<String, usize>::new();
    for entry in told("list", &directory, fs::read_dir(&directory))? {
        let name = told("list", &directory, entry)?.file_name().to_string_lossy().into_owned();
        *versions.entry(name[..1].to_owned()).or_default() += 1;
    }
    if versions.len() == 1 && versions.values().all(|count| *count == 20) {
        return Ok(());
    }
    Err(format!("a listing of two generations: {versions:?}"))
}

fn revert(directory: &Path, path: &Path) -> Outcome {
    let name = path.file_name().expect("a name").as_bytes();
    let done = rustix::fs::setxattr(directory, "trusted.strata.revert", name, XattrFlags::empty());
    told("revert", path, done)
}

/// The generations: one base, one application in three versions.
fn generations(va: &Va) -> Vec<GenerationId> {
    let file = |path: String, content: Vec<u8>| (path, content, 0o644);
    let mut base: Vec<_> =
        (0..STABLE_FILES).map(|n| file(stable_path(n), stable_content(n))).collect();
    base.extend((0..40).map(|n| file(format!("written/f{n}"), b"written\n".to_vec())));
    base.extend((0..20).map(|n| file(format!("removed/f{n}"), b"removed\n".to_vec())));
    base.extend((0..9).map(|n| file(format!("tree/d/f{n}"), b"in a tree\n".to_vec())));
    let program = fs::read("/bin/true").expect("a program that does nothing");
    base.push(("bin/program".to_owned(), program, 0o755));
    let base = va.unit_of("base", "1", &base);
    let applications = VERSIONS.map(|version| {
        let data = (0..10)
            .map(|n| file(format!("app/data/f{n}"), swapped_content(version, n).into_bytes()));
        let only = (0..20).map(|n| file(format!("app/only/{version}-{n}"), b"x".to_vec()));
        va.unit_of("app", version, &data.chain(only).collect::<Vec<_>>())
    });
    let extra = va.unit("extra", "1", "extra", "extra");
    let rolled = applications.into_iter().enumerate().map(|(number, application)| {
        let mut layers = vec![application, base.clone()];
        // Layers come and go, too.
        layers.extend((number == 1).then(|| extra.clone()));
        layers.sort_by_key(ToString::to_string);
        va.roll_out(layers)
    });
    rolled.collect()
}

/// What the daemon holds.
fn gauges(va: &Va) -> BTreeMap<&'static str, u64> {
    let status: Value = serde_json::from_str(&va.mount.status()).expect("JSON");
    let number = |name: &str| status[name].as_u64().expect("a number");
    let process = PathBuf::from(format!("/proc/{}", number("pid")));
    let memory = fs::read_to_string(process.join("status")).expect("the daemon lives");
    BTreeMap::from([
        ("nodes", number("nodes")),
        ("open_files", number("open_files")),
        ("open_directories", number("open_directories")),
        ("held_layers", status["held_layers"].as_array().expect("a list").len() as u64),
        ("descriptors", fs::read_dir(process.join("fd")).expect("listed").count() as u64),
        ("threads", fs::read_dir(process.join("task")).expect("listed").count() as u64),
        ("memory_kib", anonymous_kib(&memory)),
    ])
}

/// Waits until the threads that only a load needs are gone, looking from outside: a request
/// to the mount would be one more load.
fn wait_for_rest(process: &Path) {
    let is_worker = |name: &str| {
        let number = name.trim_end().strip_prefix("fuse-");
        number.is_some_and(|number| number.parse::<usize>().is_ok())
    };
    let begin = Instant::now();
    loop {
        let threads = fs::read_dir(process.join("task")).expect("the daemon lives");
        let names =
            threads.flatten().flat_map(|thread| fs::read_to_string(thread.path().join("comm")));
        let workers = names.filter(|name| is_worker(name)).count();
        // Those that stay are told as a leak.
        if workers <= WORKERS || begin.elapsed() > REST {
            return;
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// The gauges once the kernel has let go of what it kept; of several readings
/// the lowest, as others look at the mount too.
fn gauges_at_rest(va: &Va) -> BTreeMap<&'static str, u64> {
    wait_for_rest(&PathBuf::from(format!("/proc/{}", va.mount.daemon())));
    let mut lowest: Option<BTreeMap<&'static str, u64>> = None;
    let begin = Instant::now();
    loop {
        fs::write("/proc/sys/vm/drop_caches", "3").expect("root may");
        let now = gauges(va);
        let before = lowest.clone();
        match &mut lowest {
            None => lowest = Some(now),
            Some(lowest) => {
                for (name, value) in lowest.iter_mut() {
                    *value = now[name].min(*value);
                }
            }
        }
        // Old sets go a moment after the last swap: look for longer than that.
        if before == lowest && begin.elapsed() > Duration::from_secs(2) {
            return lowest.expect("read at least once");
        }
    }
}

/// What the daemon holds under load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reading {
    descriptors: u64,
    memory_kib: u64,
}

impl Reading {
    fn now(process: &Path) -> Reading {
        let memory = fs::read_to_string(process.join("status")).expect("the daemon lives");
        Reading {
            descriptors: fs::read_dir(process.join("fd")).expect("listed").count() as u64,
            memory_kib: anonymous_kib(&memory),
        }
    }
}

fn anonymous_kib(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).expect("the kernel tells it")
}

/// One number of a reading.
type Part = fn(&Reading) -> u64;

/// Medians of the first and the last third of a run.
fn course(readings: &[Reading], of: Part) -> (u64, u64) {
    let median = |part: &[Reading]| {
        let mut values: Vec<_> = part.iter().map(of).collect();
        values.sort_unstable();
        values.get(values.len() / 2).copied().unwrap_or(0)
    };
    let third = readings.len() / 3;
    (median(&readings[..third]), median(&readings[readings.len() - third..]))
}

/// Names what grows while the load stays the same, though it may go when that ends.
fn growth(readings: &[Reading]) -> Vec<String> {
    if readings.len() < FEWEST_READINGS {
        return Vec::new();
    }
    let kinds: [(&str, Part, u64); 2] = [
        ("descriptors", |reading| reading.descriptors, DESCRIPTOR_SLACK),
        ("memory_kib", |reading| reading.memory_kib, MEMORY_SLACK_KIB),
    ];
    let courses = kinds.into_iter().map(|(name, of, slack)| (name, course(readings, of), slack));
    let grown = courses.filter(|(_, (first, last), slack)| *last > first + slack);
    grown
        .map(|(name, (first, last), _)| {
            format!("{name} under load: {first} at first, {last} at last")
        })
        .collect()
}

/// Names what is held in excess of `before`.
fn leaks(before: &BTreeMap<&'static str, u64>, after: &BTreeMap<&'static str, u64>) -> Vec<String> {
    let slack = |name: &str| if name == "memory_kib" { MEMORY_SLACK_KIB } else { 0 };
    let over = after.iter().filter(|(name, value)| **value > before[*name] + slack(name));
    over.map(|(name, value)| format!("{name}: {} before, {value} after", before[name])).collect()
}

struct Run {
    errors: Mutex<Vec<String>>,
    failed: AtomicU64,
    stop: AtomicBool,
    done: [AtomicU64; LOADS.len()],
    swaps: AtomicU64,
    slowest_swap: Mutex<Duration>,
    /// One after each swap.
    readings: Mutex<Vec<Reading>>,
}

impl Run {
    fn new() -> Run {
        Run {
            errors: Mutex::default(),
            failed: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            done: Default::default(),
            swaps: AtomicU64::new(0),
            slowest_swap: Mutex::default(),
            readings: Mutex::default(),
        }
    }

    fn fail(&self, error: String) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let mut errors = self.errors.lock().expect("no panic while held");
        if errors.len() < TOLD_ERRORS {
            eprintln!("{error}");
            errors.push(error);
        }
    }

    /// All loads at once, and a swap every `interval`, for `length`.
    fn load(&self, va: &Va, ids: &[GenerationId], length: Duration, interval: Duration) {
        self.stop.store(false, Ordering::Relaxed);
        self.readings.lock().expect("no panic while held").clear();
        let process = PathBuf::from(format!("/proc/{}", va.mount.daemon()));
        let root = va.path("");
        std::thread::scope(|scope| {
            for (at, (name, load)) in LOADS.iter().enumerate() {
                let root = &root;
                scope.spawn(move || {
                    while !self.stop.load(Ordering::Relaxed) {
                        let turn = self.done[at].fetch_add(1, Ordering::Relaxed);
                        if let Err(error) = load(root, turn) {
                            self.fail(format!("{name}, turn {turn}: {error}"));
                        }
                    }
                });
            }
            let begin = Instant::now();
            for id in ids.iter().cycle() {
                if begin.elapsed() >= length {
                    break;
                }
                let next = Instant::now() + interval;
                self.swap(va, id);
                let reading = Reading::now(&process);
                self.readings.lock().expect("no panic while held").push(reading);
                std::thread::park_timeout(next.saturating_duration_since(Instant::now()));
            }
            self.stop.store(true, Ordering::Relaxed);
        });
        // Each layer takes a descriptor: the gauges are those of one generation.
        self.swap(va, &ids[0]);
    }

    fn swap(&self, va: &Va, id: &GenerationId) {
        let (composition, ring): (CompositionName, RingName) =
            ("web".parse().expect("a name"), "all".parse().expect("a name"));
        self.swaps.fetch_add(1, Ordering::Relaxed);
        va.store.move_ring(&composition, &ring, id).expect("moved");
        let begin = Instant::now();
        wait_for("a swap", || va.generation_attribute() == id.to_string());
        let mut slowest = self.slowest_swap.lock().expect("no panic while held");
        *slowest = begin.elapsed().max(*slowest);
    }
}

/// The longest run that was asked for, and how often it swaps.
fn length() -> (Duration, Duration) {
    match std::env::var("STRATA_SOAK_MINUTES") {
        Ok(minutes) => {
            let minutes: f64 = minutes.parse().expect("STRATA_SOAK_MINUTES is a number");
            (Duration::from_secs_f64(minutes * 60.0), Duration::from_secs(1))
        }
        Err(_) => (Duration::from_secs(4), Duration::from_millis(100)),
    }
}

#[test]
fn swaps_under_mixed_load_leave_nothing_behind() {
    let va = Va::new();
    let ids = generations(&va);
    va.mount();
    let (length, interval) = length();
    let run = Run::new();
    // What is allocated once is allocated here, and is no leak.
    run.load(&va, &ids, (length / 10).min(Duration::from_secs(60)), interval);
    let before = gauges_at_rest(&va);
    run.load(&va, &ids, length, interval);
    let after = gauges_at_rest(&va);
    let mut errors = run.errors.lock().expect("no panic while held").clone();
    let log = crate::fixture::read(va.mount.private().join("vlfs.log"));
    errors.extend(log.lines().filter(|line| line.contains(" ERROR ")).map(str::to_owned));
    let status: Value = serde_json::from_str(&va.mount.status()).expect("JSON");
    errors.extend(status["error"].as_str().map(str::to_owned));
    errors.extend(leaks(&before, &after));
    let readings = run.readings.lock().expect("no panic").clone();
    errors.extend(growth(&readings));
    let (descriptors, memory) = (
        course(&readings, |reading| reading.descriptors),
        course(&readings, |reading| reading.memory_kib),
    );
    let loads = LOADS.iter().zip(&run.done);
    let figures = json!({
        "minutes": length.as_secs_f64() / 60.0,
        "swaps": run.swaps.load(Ordering::Relaxed),
        "slowest_swap_ms": run.slowest_swap.lock().expect("no panic").as_secs_f64() * 1000.0,
        "operations": loads
            .map(|((name, _), count)| ((*name).to_owned(), json!(count.load(Ordering::Relaxed))))
            .collect::<serde_json::Map<_, _>>(),
        "failed_operations": run.failed.load(Ordering::Relaxed),
        "before": before,
        "after": after,
        "under_load": {"descriptors": descriptors, "memory_kib": memory},
        "errors": errors,
        "holds": errors.is_empty(),
    });
    eprintln!("{figures:#}");
    if let Some(file) = std::env::var_os("STRATA_SOAK_JSON") {
        fs::write(file, format!("{figures:#}\n")).expect("the figures are written");
    }
    assert!(errors.is_empty(), "{errors:#?}");
    va.mount.unmount();
}

#[test]
fn growth_under_load_is_named() {
    let reading = |number: u64| Reading { descriptors: 400 + number, memory_kib: 3000 };
    assert_eq!(growth(&[reading(0); 200]), [""; 0]);
    let leaking: Vec<_> = (0..200).map(|number| reading(2 * number)).collect();
    let named = ["descriptors under load: 466 at first, 734 at last"];
    assert_eq!(growth(&leaking), named);
    assert_eq!(growth(&leaking[..FEWEST_READINGS - 1]), [""; 0], "too few to say");
}

#[test]
fn a_leak_is_named() {
    let before = BTreeMap::from([("nodes", 1), ("memory_kib", 4000)]);
    let more = BTreeMap::from([("nodes", 2), ("memory_kib", 4000 + MEMORY_SLACK_KIB)]);
    assert_eq!(leaks(&before, &more), ["nodes: 1 before, 2 after"]);
    assert_eq!(leaks(&more, &before), [""; 0]);
}
