//! A fleet without VAs: a store and a git repository as `strata` makes them, and
//! the reports that VAs would write.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use strata_core::links::VaTarget;
use strata_core::report::{Report, ServingState, VERSION};
use strata_core::{CompositionName, GenerationId, MacAddr, RingName};
use strata_store::Store;
use strata_tests::commands::run;
use strata_tests::git;
use strata_tests::reconciler::Pass;

/// Templates of a fleet; each has its share of the VAs.
pub const TEMPLATES: usize = 10;
/// Of a template's VAs, one in so many is a canary.
const CANARIES: usize = 20;
const RINGS: [&str; 2] = ["canary", "everyone"];
/// Layers of a template besides the one that changes.
const LAYERS: usize = 40;

type RingKey = (CompositionName, RingName);

pub struct Fleet {
    directory: PathBuf,
    store: Store,
    /// The number of the version that a template names.
    versions: Vec<usize>,
    members: BTreeMap<RingKey, Vec<MacAddr>>,
    /// What rings are on, since it was last looked at.
    rings: BTreeMap<RingKey, GenerationId>,
}

impl Fleet {
    /// Makes the store, the layers, the repository, rolls its first commit out and
    /// provisions the VAs.
    ///
    /// # Errors
    /// A command fails.
    pub fn make(strata: &Path, directory: &Path, size: usize) -> Result<Self> {
        let store = directory.join("store");
        run(Command::new(strata).arg("init").arg(&store))?;
        let root = directory.join("root");
        for layer in (0..LAYERS).map(|number| format!("layer-{number}")).chain(["app".to_owned()]) {
            let versions = if layer == "app" { 2 } else { 1 };
            for version in 1..=versions {
                fs::create_dir_all(root.join("usr/lib"))?;
                fs::write(root.join("usr/lib").join(&layer), format!("{layer} {version}\n"))?;
                run(Command::new(strata)
                    .args(["layer", "build", "--repo", "main", "--name", &layer, "--version"])
                    .arg(version.to_string())
                    .arg("--root")
                    .arg(&root)
                    .arg("--store")
                    .arg(&store))?;
                fs::remove_dir_all(&root)?;
            }
        }
        let mut fleet = Fleet {
            directory: directory.to_owned(),
            store: Store::open(&store)?,
            versions: vec![1; TEMPLATES],
            members: BTreeMap::new(),
            rings: BTreeMap::new(),
        };
        let source = fleet.source();
        fs::create_dir_all(source.join("templates"))?;
        let rings = "rings = [\"canary\", \"everyone\"]\n";
        fs::write(
            source.join("strata.toml"),
            format!("{rings}\n[[repository]]\nname = \"main\"\n"),
        )?;
        (0..TEMPLATES).try_for_each(|template| fleet.write_template(template))?;
        git::init(&source);
        ensure!(fleet.once(strata)?.result == "applied", "the first commit is applied");
        for template in 0..TEMPLATES {
            let share = size / TEMPLATES;
            let canaries = (share / CANARIES).max(1).min(share);
            for (ring, count) in RINGS.into_iter().zip([canaries, share - canaries]) {
                fleet.provision(strata, template, ring, count)?;
            }
        }
        for (mac, target) in fleet.store.va_links()?.targets {
            if let VaTarget::Ring { composition, ring } = target {
                fleet.members.entry((composition, ring)).or_default().push(mac);
            }
        }
        fleet.rings = fleet.store.rings()?;
        Ok(fleet)
    }

    fn provision(&self, strata: &Path, template: usize, ring: &str, count: usize) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        let name = template_name(template);
        run(Command::new(strata)
            .args(["va", "provision", "--template", &name, "--ring", ring, "--count"])
            .arg(count.to_string())
            .arg("--store")
            .arg(self.store())
            .arg(format!("{name}-{ring}")))
    }

    pub fn store(&self) -> PathBuf {
        self.directory.join("store")
    }

    pub fn source(&self) -> PathBuf {
        self.directory.join("fleet")
    }

    fn write_template(&self, template: usize) -> Result<()> {
        let mut text = format!("main/app {}\n", self.versions.get(template).context("a template")?);
        (0..LAYERS).for_each(|layer| text.push_str(&format!("main/layer-{layer} 1\n")));
        let path = self.source().join("templates").join(format!("{}.ldf", template_name(template)));
        fs::write(&path, text).with_context(|| path.display().to_string())
    }

    /// Commits another version of the layer that all templates have, to those
    /// named. Returns the instant before the branch moves.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn push(&mut self, templates: &[usize]) -> Result<Instant> {
        for template in templates {
            let version = self.versions.get_mut(*template).context("a template")?;
            *version = 3 - *version;
            self.write_template(*template)?;
        }
        let source = self.source();
        git::git(&source, &["add", "--all"]);
        let tree = git::git(&source, &["write-tree"]);
        let commit = git::git(&source, &["commit-tree", "-p", "HEAD", "-m", "bump", &tree]);
        let pushed = Instant::now();
        git::git(&source, &["update-ref", "refs/heads/main", &commit]);
        Ok(pushed)
    }

    /// Waits until every ring of the templates is on another generation. Returns
    /// when the last one was seen to be.
    ///
    /// # Errors
    /// A ring stays.
    pub fn wait_until_moved(&mut self, templates: &[usize], limit: Duration) -> Result<Instant> {
        let end = Instant::now() + limit;
        for key in self.keys(templates) {
            let before = self.rings.get(&key).copied();
            loop {
                let now = self.store.ring(&key.0, &key.1)?;
                if let Some(now) = now.filter(|now| Some(*now) != before) {
                    self.rings.insert(key, now);
                    break;
                }
                ensure!(Instant::now() < end, "{}/{} was not moved", key.0, key.1);
                std::thread::sleep(Duration::from_micros(500));
            }
        }
        Ok(Instant::now())
    }

    /// The rings of templates that have VAs.
    fn keys(&self, templates: &[usize]) -> Vec<RingKey> {
        let names: BTreeSet<String> =
            templates.iter().map(|number| template_name(*number)).collect();
        self.members.keys().filter(|key| names.contains(key.0.as_str())).cloned().collect()
    }

    pub fn rings_of(&self, templates: &[usize]) -> usize {
        self.keys(templates).len()
    }

    /// # Errors
    /// A report cannot be written.
    pub fn report_all(&self) -> Result<()> {
        self.report(&(0..TEMPLATES).collect::<Vec<_>>())
    }

    /// Writes the reports of the templates' VAs: all serve what their ring names.
    ///
    /// # Errors
    /// A report cannot be written.
    pub fn report(&self, templates: &[usize]) -> Result<()> {
        for key in self.keys(templates) {
            let generation = self.rings.get(&key).copied();
            for mac in self.members.get(&key).into_iter().flatten() {
                self.write_report(&report(*mac, &key.0, generation))?;
            }
        }
        Ok(())
    }

    /// As a VA does, but for the wait for the disk, which each VA has for itself.
    fn write_report(&self, report: &Report) -> Result<()> {
        let path = self.store.reports().join(report.mac.to_string());
        let written = self.directory.join("report");
        fs::write(&written, report.print())?;
        fs::rename(&written, &path).with_context(|| path.display().to_string())
    }

    /// Runs one pass in a process of its own.
    ///
    /// # Errors
    /// It fails.
    pub fn once(&self, strata: &Path) -> Result<Pass> {
        let output = Command::new(strata)
            .args(["reconcile", "--once", "--output", "json", "--source"])
            .arg(self.source())
            .arg("--store")
            .arg(self.store())
            .output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Pass::parse(String::from_utf8(output.stdout)?.trim_end())
    }

    /// Every file of the store with its inode and the time of its last change.
    ///
    /// # Errors
    /// The store cannot be walked.
    pub fn changes(&self) -> Result<BTreeSet<(PathBuf, u64, i64, i64)>> {
        let mut found = BTreeSet::new();
        let mut open = vec![self.store()];
        while let Some(path) = open.pop() {
            let metadata = fs::symlink_metadata(&path)?;
            if metadata.is_dir() {
                for entry in fs::read_dir(&path)? {
                    open.push(entry?.path());
                }
            }
            found.insert((path, metadata.ino(), metadata.ctime(), metadata.ctime_nsec()));
        }
        Ok(found)
    }
}

fn template_name(number: usize) -> String {
    format!("template-{number}")
}

fn report(mac: MacAddr, composition: &CompositionName, generation: Option<GenerationId>) -> Report {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    Report {
        version: VERSION,
        mac,
        state: ServingState::Serving,
        generation,
        composition: Some(composition.clone()),
        layers: (LAYERS + 1) as u32,
        desired: generation,
        error: None,
        pid: 1,
        host: "simulated".to_owned(),
        mount_point: "/".to_owned(),
        swaps: 1,
        started_at_ms: now_ms,
        written_at_ms: now_ms,
        interval_s: 3_600,
        scripts: None,
    }
}
