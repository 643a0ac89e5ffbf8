//! A store with real layers, and `strata` on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use strata_core::generation::{Generation, LayerSetEntry};
use strata_core::report::{Report, ServingState, VERSION};
use strata_core::{CompositionName, GenerationId, MacAddr};
use strata_store::{Store, write_report};
use tempfile::TempDir;

pub fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("a valid name")
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

pub fn mac() -> MacAddr {
    name("52:54:00:00:00:01")
}

pub fn web() -> CompositionName {
    name("web")
}

pub struct Bench {
    pub directory: TempDir,
    pub store: Store,
}

impl Bench {
    pub fn new() -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let store = Store::init(&directory.path().join("store")).expect("a store");
        Bench { directory, store }
    }

    /// As [`Bench::new`], with a store that is somewhere else.
    pub fn on(store: Store) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        Bench { directory, store }
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.directory.path().join(below)
    }

    /// Builds a software layer of these files.
    pub fn layer(&self, repository: &str, layer: &str, version: &str, files: &[(&str, &str)]) {
        let root = self.path(&format!("roots/{repository}/{layer}-{version}"));
        for (path, content) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().expect("below the root")).expect("a directory");
            fs::write(path, content).expect("written");
        }
        self.good(&[
            "layer",
            "build",
            "--repo",
            repository,
            "--name",
            layer,
            "--version",
            version,
            "--root",
            text(&root),
        ]);
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_strata"));
        command.args(arguments).env("STRATA_STORE", self.store.root());
        command
    }

    pub fn strata(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("strata runs")
    }

    fn exits(&self, arguments: &[&str], code: i32) -> Output {
        let output = self.strata(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
        output
    }

    /// What a successful command prints.
    pub fn good(&self, arguments: &[&str]) -> String {
        String::from_utf8(self.exits(arguments, 0).stdout).expect("UTF-8")
    }

    /// What a command prints that exits with 1.
    pub fn differs(&self, arguments: &[&str]) -> String {
        String::from_utf8(self.exits(arguments, 1).stdout).expect("UTF-8")
    }

    /// What a command says that exits with 2.
    pub fn bad(&self, arguments: &[&str]) -> String {
        String::from_utf8(self.exits(arguments, 2).stderr).expect("UTF-8")
    }

    pub fn unit(&self, repository: &str, layer: &str, version: &str) -> PathBuf {
        self.store.unit_path(&name(repository), &name(layer), &name(version))
    }

    fn entry(&self, layer: &str, version: &str) -> LayerSetEntry {
        let database = self.store.database(&name("main")).expect("a database");
        let unit = database.get(&name(layer), &name(version)).expect("a unit");
        LayerSetEntry {
            kind: unit.metadata.kind,
            repository: name("main"),
            layer: name(layer),
            version: name(version),
            digest: unit.digest,
        }
    }

    /// Seals a generation of `web` with these layers of `main`.
    pub fn generation(&self, layers: &[(&str, &str)]) -> GenerationId {
        self.generation_of(web().as_str(), layers)
    }

    pub fn generation_of(&self, composition: &str, layers: &[(&str, &str)]) -> GenerationId {
        let entries: Vec<_> = layers.iter().map(|(l, v)| self.entry(l, v)).collect();
        let ldf: String = entries.iter().map(|entry| format!("{entry}\n")).collect();
        let generation = Generation::new(name(composition), entries, ldf).expect("a generation");
        self.store.seal_generation(&generation, "c0ffee").expect("sealed").0
    }

    pub fn roll_out(&self, id: &GenerationId) {
        self.store.move_ring(&web(), &name("everyone"), id).expect("moved");
    }

    /// As a suspended VA left it.
    pub fn report(&self, serves: GenerationId) {
        let report = Report {
            version: VERSION,
            mac: mac(),
            state: ServingState::Serving,
            generation: Some(serves),
            composition: Some(web()),
            layers: 1,
            desired: Some(serves),
            error: None,
            pid: 1,
            host: "host".to_owned(),
            mount_point: "/".to_owned(),
            swaps: 0,
            started_at_ms: 1,
            written_at_ms: 2,
            interval_s: 60,
            scripts: Default::default(),
        };
        write_report(&self.store.reports(), &report).expect("a report");
    }
}
