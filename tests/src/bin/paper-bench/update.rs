//! Table 2: the same update of every VA, by Strata and by the distribution's package tool
//! in each (§6.2).

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use strata_core::Digest;
use strata_core::manifest::{Kind, Manifest};
use strata_tests::archive::REPOSITORY;
use strata_tests::goals::{Goals, Limit};

use crate::appliances::{APPLIANCES, Archive};
use crate::mirror::Mirror;
use crate::plain::{PlainVa, copy};
use crate::site::{Site, Took};

const TIMES_LESS: f64 = 1000.0;
/// What the time for the largest fleet may be of that for one VA.
const FLAT: f64 = 1.2;

#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub rounds: usize,
    /// VAs that Strata updates.
    pub fleets: &'static [usize],
    /// The first so many are running VAs that were suspended; the others are stopped. So
    /// many plain ones are updated.
    pub suspended: usize,
}

/// Seconds of one plain VA.
#[derive(Debug, Clone, Copy, Default)]
struct Steps {
    wake: f64,
    update: f64,
    suspend: f64,
}

impl Steps {
    fn total(&self) -> f64 {
        self.wake + self.update + self.suspend
    }
}

/// What Strata took.
pub struct Managed {
    /// By size of the fleet, the round with the median of the totals.
    fleets: Vec<(usize, Took)>,
    /// Seconds until all suspended VAs were resumed and served the new files.
    resumed: f64,
    suspended: usize,
}

/// Updates fleets that grow. At last the suspended VAs are resumed, and each must have the
/// new file.
pub fn by_strata(
    site: &mut Site,
    archive: &Archive,
    size: Size,
    progress: impl Fn(&str),
) -> Result<Managed> {
    site.import(&archive.update.new_file)?;
    let reconciler = site.reconciler()?;
    let mut fleets = Vec::new();
    for (count, fleet) in size.fleets.iter().enumerate() {
        progress(&format!("updates of {fleet} VAs by Strata"));
        site.grow_to(*fleet, size.suspended)?;
        let mut rounds = Vec::new();
        for round in 0..size.rounds {
            rounds.push(site.update(&archive.update.package)?);
            let last = (count + 1, round + 1) == (size.fleets.len(), size.rounds);
            if !last {
                site.revert()?;
            }
        }
        rounds.sort_by(|a, b| a.total().total_cmp(&b.total()));
        let median = rounds.get((rounds.len() - 1) / 2).copied().context("a round")?;
        fleets.push((*fleet, median));
    }
    let resumed = site.resume_all()?;
    verify(site, archive)?;
    reconciler.end()?;
    let suspended = site.vas().iter().filter(|va| va.started).count();
    Ok(Managed { fleets, resumed, suspended })
}

/// Every VA that runs has the largest file of the update with the new content.
fn verify(site: &Site, archive: &Archive) -> Result<()> {
    let manifest: Manifest = site.store.manifest(
        &REPOSITORY.parse()?,
        &archive.update.package.parse()?,
        &archive.update.new,
    )?;
    let regular = manifest.entries().iter().filter_map(|entry| match &entry.kind {
        Kind::Regular { size, digest } => Some((*size, entry, *digest)),
        _ => None,
    });
    let (_, entry, digest) = regular.max_by_key(|(size, ..)| *size).context("no file is new")?;
    let path = String::from_utf8(entry.path.to_vec())?;
    for va in site.vas().iter().filter(|va| va.started) {
        let file = site.root(va).join(&path);
        let bytes = fs::read(&file).with_context(|| file.display().to_string())?;
        ensure!(Digest::of(&bytes) == digest, "{} has another {path}", va.name);
    }
    Ok(())
}

/// What plain VAs took, in the order in which fleets have them.
pub struct Plain {
    apt: Vec<Steps>,
    dpkg: Vec<Steps>,
}

/// Updates plain VAs, one after another: each has a full root, is suspended, and is resumed
/// for the update. The package itself is undone and installed once more by dpkg alone.
pub fn by_package_tool(
    roots: &Path,
    mirror: &Mirror,
    archive: &Archive,
    count: usize,
    progress: impl Fn(&str),
) -> Result<Plain> {
    mirror.publish()?;
    let package = archive.update.package.as_str();
    let mut plain = Plain { apt: Vec::new(), dpkg: Vec::new() };
    let root = roots.join("va");
    for number in 0..count {
        let template = APPLIANCES[number % APPLIANCES.len()].name;
        if number % APPLIANCES.len() == 0 {
            progress(&format!("updates of plain VAs: {number} of {count}"));
        }
        copy(&roots.join(template), &root)?;
        for (file, name) in
            [(&archive.update.old_file, "old.deb"), (&archive.update.new_file, "new.deb")]
        {
            fs::copy(file, root.join("root").join(name))?;
        }
        let va = PlainVa::start(&root)?;
        va.suspend()?;
        let upgrade = ["apt-get", "-qy", "install", "--only-upgrade", package];
        plain.apt.push(timed_update(&va, &[&["apt-get", "-qq", "update"], &upgrade])?);
        ensure_version(&va, archive)?;
        va.resume()?;
        va.run(&["dpkg", "-i", "/root/old.deb"])?;
        va.suspend()?;
        plain.dpkg.push(timed_update(&va, &[&["dpkg", "-i", "/root/new.deb"]])?);
        ensure_version(&va, archive)?;
        va.end()?;
        fs::remove_dir_all(&root)?;
    }
    Ok(plain)
}

fn timed_update(va: &PlainVa, commands: &[&[&str]]) -> Result<Steps> {
    let begin = Instant::now();
    va.resume()?;
    let wake = begin.elapsed().as_secs_f64();
    commands.iter().try_for_each(|command| va.run(command))?;
    let update = begin.elapsed().as_secs_f64() - wake;
    va.suspend()?;
    Ok(Steps { wake, update, suspend: begin.elapsed().as_secs_f64() - wake - update })
}

fn ensure_version(va: &PlainVa, archive: &Archive) -> Result<()> {
    let wanted = format!("Version: {}", archive.update.new);
    let package = &archive.update.package;
    let script = format!("dpkg -s {package} | grep -qxF '{wanted}'");
    va.resume()?;
    va.run(&["sh", "-c", &script]).with_context(|| format!("{package} is not {wanted}"))?;
    va.suspend()
}

/// The goals, and all of it in Markdown.
pub fn tell(managed: &Managed, plain: &Plain, archive: &Archive, goals: &mut Goals) -> String {
    let update = &archive.update;
    let mut text =
        format!("The update is {} {} to {}.\n\n", update.package, update.old, update.new);
    text.push_str("| VAs | Strata: resolve + commit + links moved | Strata | apt in each | × less | dpkg alone in each | × less |\n|---|---|---|---|---|---|---|\n");
    let sum = |steps: &[Steps]| steps.iter().map(Steps::total).sum::<f64>();
    let mut largest = None;
    for (fleet, took) in &managed.fleets {
        let strata = took.total() / 1000.0;
        let parts = format!("{:.0} + {:.0} + {:.0} ms", took.resolve, took.commit, took.apply);
        text.push_str(&format!("| {fleet} | {parts} | {:.0} ms ", took.total()));
        let measured = plain.apt.get(..*fleet).zip(plain.dpkg.get(..*fleet));
        let Some((apt, dpkg)) = measured.map(|(apt, dpkg)| (sum(apt), sum(dpkg))) else {
            text.push_str("| – | – | – | – |\n");
            continue;
        };
        text.push_str(&format!(
            "| {apt:.1} s | {:.0} | {dpkg:.1} s | {:.0} |\n",
            apt / strata,
            dpkg / strata
        ));
        largest = Some((*fleet, apt, *took));
    }
    if let Some((fleet, apt, took)) = largest {
        let strata = took.total() / 1000.0;
        let goal = format!("update of {fleet} VAs, times less than apt in each");
        goals.goal(&goal, apt / strata, Limit::AtLeast(TIMES_LESS), "×");
        text.push_str(&format!(
            "\nOf Strata's time for {fleet} VAs, {:.0} % is `strata resolve`, {:.0} % `git commit`, and {:.0} % the reconciler's, from the \
             end of the commit until the links of all VAs had moved. From the commit on, without the operator's `strata resolve`, it is {:.0} × less than apt's. \
             apt's time grows with each VA and Strata's does not: 1,000 × is reached with {:.0} VAs.\n\n\
             What the two do is not all the same. apt runs the package's scripts and triggers in every VA, and Strata's VAs here get the files: where a template has a \
             configuration layer, `strata template build` runs the scripts once for the template, which is not in these times. \
             apt's are with its lists and caches in place, a mirror without signatures on the same machine, nothing to boot, no login and no wait for a network, \
             which in the paper were most of the 73 s a VA.\n",
            took.resolve / took.total() * 100.0,
            took.commit / took.total() * 100.0,
            took.apply / took.total() * 100.0,
            apt / (strata - took.resolve / 1000.0),
            (TIMES_LESS * strata / (apt / fleet as f64)).ceil()
        ));
    }
    if let (Some((one, first)), Some((most, last))) =
        (managed.fleets.first(), managed.fleets.last())
    {
        let goal = format!("Strata's update of {most} VAs against that of {one}");
        goals.goal(&goal, last.total() / first.total(), Limit::AtMost(FLAT), "×");
    }
    let average = |part: fn(&Steps) -> f64, of: &[Steps]| {
        of.iter().map(part).sum::<f64>() / of.len().max(1) as f64
    };
    text.push_str("\nA plain VA, on average, in seconds:\n\n| | wake | update | suspend | total |\n|---|---|---|---|---|\n");
    for (name, of) in [("apt", &plain.apt), ("dpkg alone", &plain.dpkg)] {
        text.push_str(&format!(
            "| {name} | {:.4} | {:.2} | {:.4} | {:.2} |\n",
            average(|steps| steps.wake, of),
            average(|steps| steps.update, of),
            average(|steps| steps.suspend, of),
            average(Steps::total, of)
        ));
    }
    text.push_str(&format!(
        "\nStrata's {} suspended VAs were resumed afterwards, in {:.2} s together; each then served the new generation, and its \
         file of the update had the new content.\n",
        managed.suspended, managed.resumed
    ));
    text
}
