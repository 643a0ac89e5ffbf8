//! The workloads, each a function of one file system that gives its time.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use rustix::fs::Advice;

use crate::system::{DATA_DIRECTORY, Kind, System};
use crate::trees::{LARGE, Numbers, Size, Trees};
use crate::{memory, programs};

/// What a workload works on.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub system: &'a System,
    pub trees: &'a Trees,
    pub size: &'a Size,
    /// Number of the round: names that were made in a former round are not used again.
    pub round: usize,
}

impl Place<'_> {
    pub fn path(&self, below: &str) -> std::path::PathBuf {
        self.system.root.join(below)
    }
}

/// What must hold of the medians.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    /// At most so many times native.
    Native(f64),
    FasterThan(Kind),
    /// At least so many times faster.
    TimesFaster(Kind, f64),
}

pub struct Workload {
    pub name: &'static str,
    pub kinds: &'static [Kind],
    pub goals: &'static [Goal],
    /// Seconds, without what the workload needs made before.
    run: fn(&Place<'_>) -> Result<f64>,
}

/// Seconds of each round, by file system.
pub type Measured = BTreeMap<Kind, Vec<f64>>;

const EVERY: &[Kind] = &crate::system::ALL;
const WITHOUT_FUSE_OVERLAY: &[Kind] = &[Kind::Native, Kind::Overlay, Kind::Strata, Kind::StrataOff];
const DATA: &[Goal] = &[Goal::Native(1.05)];
const WARM: &[Goal] = &[Goal::Native(1.1)];
const COLD: &[Goal] = &[Goal::FasterThan(Kind::Overlay)];
const POSTMARK: &[Goal] = &[Goal::Native(2.0), Goal::TimesFaster(Kind::FuseOverlay, 2.5)];

/// A data directory is a plain mount of the private disk.
const DIRECT: &[Kind] = &[Kind::Native, Kind::Strata];
const PASSED: &[Goal] = &[Goal::Native(1.02)];

/// All workloads, in the order of the report.
pub fn all() -> Vec<Workload> {
    let row = |name, kinds, goals, run| Workload { name, kinds, goals, run };
    vec![
        row("sequential read, warm", EVERY, DATA, |place| sequential(place, false)),
        row("sequential read, cold", EVERY, DATA, |place| sequential(place, true)),
        row("random 4k reads, warm", EVERY, DATA, |place| random(place, false)),
        row("random 4k reads, cold", EVERY, DATA, |place| random(place, true)),
        row("mmap read, warm", EVERY, DATA, |place| mapped(place, false)),
        row("mmap read, cold", EVERY, DATA, |place| mapped(place, true)),
        row("short processes (exec)", EVERY, DATA, programs::processes),
        row("open-read-close, warm", EVERY, &[Goal::Native(2.0)], open_read_close),
        row("stat, cold", EVERY, COLD, |place| stat(place, true)),
        row("stat, warm", EVERY, WARM, |place| stat(place, false)),
        row("negative lookups, cold", EVERY, COLD, |place| negative(place, true)),
        row("negative lookups, warm", EVERY, WARM, |place| negative(place, false)),
        row("find, cold", EVERY, &[], |place| find(place, true)),
        row("find, warm", EVERY, &[], |place| find(place, false)),
        row("create-write-unlink", EVERY, &[], create_write_unlink),
        row("unpacking an archive", EVERY, &[], programs::unpack),
        row("C build, two jobs", WITHOUT_FUSE_OVERLAY, &[Goal::Native(1.02)], programs::build),
        row("Postmark", EVERY, POSTMARK, |place| programs::postmark(place, "")),
        row("Postmark in a data directory", DIRECT, PASSED, |place| {
            programs::postmark(place, DATA_DIRECTORY)
        }),
    ]
}

/// Runs a workload on all its file systems in turn, round after round.
pub fn measure(
    workload: &Workload,
    systems: &[System],
    trees: &Trees,
    size: &Size,
) -> Result<Measured> {
    let mut measured = Measured::new();
    for round in 0..size.rounds {
        for system in systems.iter().filter(|system| workload.kinds.contains(&system.kind)) {
            let place = Place { system, trees, size, round };
            let seconds = (workload.run)(&place).with_context(|| system.kind.name())?;
            measured.entry(system.kind).or_default().push(seconds);
        }
    }
    Ok(measured)
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begin = Instant::now();
    work()?;
    Ok(begin.elapsed().as_secs_f64())
}

/// Takes the pages of a file out of memory, those of the layer below too.
fn evict(place: &Place<'_>, path: &str) -> Result<()> {
    for path in [place.path(path), place.system.below(path)?] {
        let file = File::open(path)?;
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}

/// Drops names and inodes that the kernel keeps, of all file systems; dirty ones stay.
fn drop_names() -> Result<()> {
    fs::write("/proc/sys/vm/drop_caches", "2").context("/proc/sys/vm/drop_caches")
}

fn read_all(path: &Path, buffer: &mut [u8]) -> Result<()> {
    let mut file = File::open(path)?;
    while file.read(buffer)? > 0 {}
    Ok(())
}

fn sequential(place: &Place<'_>, cold: bool) -> Result<f64> {
    let mut buffer = vec![0; 1 << 20];
    let path = place.path(LARGE);
    if cold {
        evict(place, LARGE)?;
        return timed(|| read_all(&path, &mut buffer));
    }
    read_all(&path, &mut buffer)?;
    timed(|| (0..4).try_for_each(|_| read_all(&path, &mut buffer)))
}

fn random(place: &Place<'_>, cold: bool) -> Result<f64> {
    let pages = place.size.large_mib << 8;
    let mut buffer = [0; 4096];
    let path = place.path(LARGE);
    if cold {
        evict(place, LARGE)?;
    } else {
        read_all(&path, &mut vec![0; 1 << 20])?;
    }
    let file = File::open(path)?;
    let mut numbers = Numbers(place.round as u64);
    timed(|| {
        for _ in 0..if cold { 2_000 } else { 50_000 } {
            file.read_exact_at(&mut buffer, (numbers.below(pages) as u64) << 12)?;
        }
        Ok(())
    })
}

fn mapped(place: &Place<'_>, cold: bool) -> Result<f64> {
    if cold {
        evict(place, LARGE)?;
    }
    let file = File::open(place.path(LARGE))?;
    if !cold {
        memory::touch(&file)?;
    }
    timed(|| memory::touch(&file).map(drop))
}

fn open_read_close(place: &Place<'_>) -> Result<f64> {
    let paths: Vec<_> =
        place.trees.files.iter().take(20_000).map(|path| place.path(path)).collect();
    let mut buffer = [0; 8192];
    let mut pass = || paths.iter().try_for_each(|path| read_all(path, &mut buffer));
    pass()?;
    timed(pass)
}

fn stat(place: &Place<'_>, cold: bool) -> Result<f64> {
    let paths: Vec<_> = place.trees.files.iter().map(|path| place.path(path)).collect();
    let pass = || paths.iter().try_for_each(|path| Ok(fs::symlink_metadata(path).map(drop)?));
    if cold {
        drop_names()?;
    } else {
        pass()?;
    }
    timed(pass)
}

fn negative(place: &Place<'_>, cold: bool) -> Result<f64> {
    let absent = place.trees.absent.iter().take(20_000);
    let paths: Vec<_> = absent.map(|path| place.path(path)).collect();
    let pass = || {
        anyhow::ensure!(!paths.iter().any(|path| path.symlink_metadata().is_ok()), "it is there");
        Ok(())
    };
    if cold {
        drop_names()?;
    } else {
        pass()?;
    }
    timed(pass)
}

fn walk(directory: &Path, found: &mut usize) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        *found += 1;
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), found)?;
        }
    }
    Ok(())
}

fn find(place: &Place<'_>, cold: bool) -> Result<f64> {
    let pass = || {
        let mut found = 0;
        walk(&place.path("usr"), &mut found)?;
        walk(&place.path("etc"), &mut found)
    };
    if cold {
        drop_names()?;
    } else {
        pass()?;
    }
    timed(pass)
}

fn create_write_unlink(place: &Place<'_>) -> Result<f64> {
    let directory = place.path(&format!("tmp-{}", place.round));
    fs::create_dir(&directory)?;
    let content = Numbers(1).bytes(4096);
    let paths: Vec<_> =
        (0..place.size.created).map(|file| directory.join(file.to_string())).collect();
    timed(|| {
        for path in &paths {
            fs::write(path, &content)?;
        }
        paths.iter().try_for_each(|path| Ok(fs::remove_file(path)?))
    })
}
