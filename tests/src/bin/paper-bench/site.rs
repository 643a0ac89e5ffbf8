//! What Strata manages: a store with the appliances' layers, a git repository with their
//! templates, the reconciler, and VAs of all five templates.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use strata_core::{GenerationId, MacAddr};
use strata_store::Store;
use strata_tests::archive::REPOSITORY;
use strata_tests::commands::{output, run};
use strata_tests::git;
use strata_tests::reconciler::Daemon;
use strata_tests::resolution;

use crate::appliances::{APPLIANCES, Appliance, TOOL};

pub const RING: &str = "everyone";
/// A layer with the first accounts, as the distribution's installer makes them.
const ACCOUNTS: &str = "accounts";
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_micros(500);

pub struct Site {
    strata: PathBuf,
    pub store: Store,
    source: PathBuf,
    templates: Vec<Template>,
    vas: Vec<Va>,
}

#[derive(Debug)]
pub struct Template {
    pub name: String,
    /// What it names explicitly.
    pub packages: Vec<&'static str>,
    /// A data directory.
    pub data: Option<&'static str>,
}

/// A template for each of the paper's appliances.
pub fn appliances() -> Vec<Template> {
    let template = |appliance: &Appliance| Template {
        name: appliance.name.to_owned(),
        packages: vec![TOOL, appliance.package],
        data: None,
    };
    APPLIANCES.iter().map(template).collect()
}

#[derive(Debug, Clone)]
pub struct Va {
    pub name: String,
    pub mac: MacAddr,
    pub started: bool,
}

/// What an update took, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Took {
    pub resolve: f64,
    pub commit: f64,
    /// From the end of the commit until all links had moved.
    pub apply: f64,
}

impl Took {
    pub fn total(&self) -> f64 {
        self.resolve + self.commit + self.apply
    }
}

impl Site {
    /// Makes the store below `directory`, imports the packages, resolves the templates and
    /// rolls them out.
    pub fn make(
        strata: &Path,
        directory: &Path,
        files: &[PathBuf],
        templates: Vec<Template>,
    ) -> Result<Site> {
        let store = directory.join("store");
        let source = directory.join("fleet");
        run(Command::new(strata).arg("init").arg(&store))?;
        run(Command::new(strata)
            .args(["layer", "import", "--repo", REPOSITORY, "--store"])
            .arg(&store)
            .args(files))?;
        let store = Store::open(&store)?;
        let site = Site { strata: strata.to_owned(), store, source, templates, vas: vec![] };
        site.build_accounts(&directory.join("accounts"))?;
        fs::create_dir_all(site.source.join("templates"))?;
        let base = format!("base = [\"{REPOSITORY}/{ACCOUNTS}\"]\nrings = [\"{RING}\"]\n\n");
        fs::write(site.source.join("strata.toml"), base + &resolution::configuration())?;
        for template in &site.templates {
            let path = site.source.join("templates").join(&template.name);
            fs::write(path.with_extension("ldf"), resolution::template(&template.packages))?;
            if let Some(data) = template.data {
                fs::write(path.with_extension("data"), format!("{data}\n"))?;
            }
        }
        site.resolve(&[])?;
        git::init(&site.source);
        run(site.command(&["reconcile", "--once", "--source"]).arg(&site.source))?;
        Ok(site)
    }

    fn build_accounts(&self, root: &Path) -> Result<()> {
        let directory = self.store.root().join("repos").join(REPOSITORY);
        let units = fs::read_dir(&directory)?.collect::<Result<Vec<_>, _>>()?;
        let base = units
            .iter()
            .find(|unit| unit.file_name().to_string_lossy().starts_with("base-passwd_"));
        let from = base.context("no base-passwd")?.path().join("filesystem/usr/share/base-passwd");
        fs::create_dir_all(root.join("etc"))?;
        for name in ["passwd", "group"] {
            let master = from.join(format!("{name}.master"));
            fs::copy(&master, root.join("etc").join(name))
                .with_context(|| master.display().to_string())?;
        }
        run(self
            .command(&["layer", "build", "--repo", REPOSITORY, "--name", ACCOUNTS])
            .args(["--version", "1", "--root"])
            .arg(root))
    }

    /// `strata` with these arguments, on the store.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.strata);
        command.env("STRATA_STORE", self.store.root()).args(arguments).stdout(Stdio::null());
        command
    }

    fn resolve(&self, options: &[&str]) -> Result<()> {
        let mut command = self.command(&["resolve"]);
        command.arg(&self.source).args(options).stdout(Stdio::piped());
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "strata resolve: {said}");
        Ok(())
    }

    pub fn import(&self, file: &Path) -> Result<()> {
        run(self.command(&["layer", "import", "--repo", REPOSITORY]).arg(file))
    }

    pub fn reconciler(&self) -> Result<Daemon> {
        Daemon::start(&self.strata, &self.source, self.store.root())
    }

    pub fn vas(&self) -> &[Va] {
        &self.vas
    }

    /// Provisions VAs until there are so many, the templates in turn. The first `started`
    /// of them are started and suspended.
    pub fn grow_to(&mut self, size: usize, started: usize) -> Result<()> {
        for number in self.vas.len()..size {
            let template = self.templates[number % self.templates.len()].name.clone();
            let va = self.provision(&template, &format!("{template}-{number}"))?;
            if number < started {
                self.start(va)?;
                run(&mut self.command(&["va", "suspend", &self.vas[va].name]))?;
            }
        }
        Ok(())
    }

    /// Returns the VA's number.
    pub fn provision(&mut self, template: &str, name: &str) -> Result<usize> {
        run(&mut self.command(&["va", "provision", "--template", template, name]))?;
        let record = self.store.machines().join(name).join("va.json");
        let record: serde_json::Value = serde_json::from_slice(&fs::read(record)?)?;
        let mac = record["mac"].as_str().context("a VA has an address")?.parse()?;
        self.vas.push(Va { name: name.to_owned(), mac, started: false });
        Ok(self.vas.len() - 1)
    }

    /// Starts a VA with a process that sleeps.
    pub fn start(&mut self, va: usize) -> Result<()> {
        // From here on it is to be stopped.
        self.vas[va].started = true;
        run(&mut self.command(&["va", "start", &self.vas[va].name, "--", "sleep", "infinity"]))
    }

    pub fn stop(&mut self, va: usize) -> Result<()> {
        run(&mut self.command(&["va", "stop", "--timeout", "0", &self.vas[va].name]))?;
        self.vas[va].started = false;
        Ok(())
    }

    /// Updates a package in all templates as an operator does: resolves, commits, and waits
    /// until the running reconciler has moved the links of all VAs.
    pub fn update(&self, package: &str) -> Result<Took> {
        let before = self.generations()?;
        let begin = Instant::now();
        self.resolve(&["--upgrade", package])?;
        let resolved = Instant::now();
        let message = format!("{package}: the security update");
        git::git(&self.source, &["commit", "-q", "-a", "-m", &message]);
        let committed = Instant::now();
        self.wait_until_moved(&before)?;
        let ms = |span: Duration| span.as_secs_f64() * 1000.0;
        Ok(Took {
            resolve: ms(resolved - begin),
            commit: ms(committed - resolved),
            apply: ms(committed.elapsed()),
        })
    }

    /// Takes the last commit back, and waits until all links have moved.
    pub fn revert(&self) -> Result<()> {
        let before = self.generations()?;
        git::git(&self.source, &["revert", "--no-edit", "HEAD"]);
        self.wait_until_moved(&before)
    }

    /// What the VAs of each template should serve.
    fn generations(&self) -> Result<Vec<GenerationId>> {
        self.templates.iter().map(|template| self.generation(&template.name)).collect()
    }

    /// What the VAs of a template should serve.
    pub fn generation(&self, template: &str) -> Result<GenerationId> {
        let (composition, ring) = (template.parse()?, RING.parse()?);
        self.store.ring(&composition, &ring)?.with_context(|| format!("{template} is rolled out"))
    }

    fn wait_until_moved(&self, before: &[GenerationId]) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let now = self.generations()?;
            if now.iter().zip(before).all(|(now, before)| now != before) {
                return Ok(());
            }
            ensure!(Instant::now() < end, "links of VAs were not moved");
            std::thread::sleep(PAUSE);
        }
    }

    /// Resumes the started VAs and waits until each serves what its link names, told by its
    /// mounted file system. Returns the seconds that it took for all together.
    pub fn resume_all(&self) -> Result<f64> {
        let started: Vec<&Va> = self.vas.iter().filter(|va| va.started).collect();
        let names = started.iter().map(|va| va.name.as_str());
        let begin = Instant::now();
        run(self.command(&["va", "resume"]).args(names))?;
        for va in started {
            let desired = self.store.desired(va.mac)?.context("a VA has a link")?.to_string();
            let end = Instant::now() + PATIENCE;
            while self.serves(va)? != desired {
                ensure!(Instant::now() < end, "{} does not serve {desired}", va.name);
                std::thread::sleep(PAUSE);
            }
        }
        Ok(begin.elapsed().as_secs_f64())
    }

    /// Where the root of a started VA is seen.
    pub fn root(&self, va: &Va) -> PathBuf {
        self.store.machines().join(&va.name).join("run/root")
    }

    fn serves(&self, va: &Va) -> Result<String> {
        let mut value = [0; 256];
        let root = self.root(va);
        let read = rustix::fs::getxattr(&root, "user.strata.generation", &mut value)
            .with_context(|| root.display().to_string())?;
        Ok(String::from_utf8_lossy(value.get(..read).unwrap_or_default()).into_owned())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for va in self.vas.iter().filter(|va| va.started) {
            let stop = &mut self.command(&["va", "stop", "--timeout", "0", &va.name]);
            if let Err(error) = output(stop) {
                eprintln!("warning: {} is not stopped: {error:#}", va.name);
            }
        }
    }
}
