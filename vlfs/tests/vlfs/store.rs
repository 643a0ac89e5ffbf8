//! A VA's mount: follows its link, refuses what is damaged, reports, ends.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use strata_core::database::unit_digest;
use strata_core::generation::{Generation, LayerSetEntry};
use strata_core::manifest::{Entry, Kind, Manifest, Timestamp};
use strata_core::metadata::{LayerKind, Metadata};
use strata_core::report::{Report, ServingState};
use strata_core::{Digest, GenerationId, MacAddr, RepositoryName};
use strata_store::{Store, VaTarget};

use crate::fixture::{Mount, PROGRAM, read, wait_for};

pub struct Va {
    pub mount: Mount,
    pub store: Store,
}

pub fn mac() -> MacAddr {
    "52:54:00:12:34:56".parse().expect("a MAC address")
}

pub fn entry(path: &str, kind: Kind) -> Entry {
    let mode = if kind == Kind::Directory { 0o755 } else { 0o644 };
    Entry {
        path: path.into(),
        kind,
        mode,
        uid: 0,
        gid: 0,
        mtime: Timestamp::default(),
        link_count: 1,
        xattrs: Default::default(),
    }
}

/// Publishes `main/<layer> <version>` with files (path, content, mode) and scripts
/// (name, text), and returns its set entry.
pub fn publish(
    store: &Store,
    (layer, version): (&str, &str),
    files: &[(String, Vec<u8>, u32)],
    scripts: &[(&str, &str)],
) -> LayerSetEntry {
    let (layer, version) = (layer.parse().expect("a name"), version.parse().expect("a version"));
    publish_as(store, Metadata::new(layer, version, LayerKind::Software), files, scripts)
}

/// As [`publish`], with all that a unit says of itself.
pub fn publish_as(
    store: &Store,
    metadata: Metadata,
    files: &[(String, Vec<u8>, u32)],
    scripts: &[(&str, &str)],
) -> LayerSetEntry {
    let repository = RepositoryName::new("main").expect("a name");
    let staged = store.stage_unit(&repository).expect("staged");
    let root = staged.filesystem();
    // By components, as a manifest has them; written to in that order, dated in reverse.
    let mut entries = BTreeMap::from([(Vec::new(), entry("", Kind::Directory))]);
    for (path, content, mode) in files {
        let components: Vec<&str> = path.split('/').collect();
        for length in 1..components.len() {
            let above = components[..length].join("/");
            std::fs::create_dir_all(root.join(&above)).expect("made");
            entries
                .entry(components[..length].to_vec())
                .or_insert_with(|| entry(&above, Kind::Directory));
        }
        std::fs::write(root.join(path), content).expect("written");
        let permissions = std::fs::Permissions::from_mode(*mode);
        std::fs::set_permissions(root.join(path), permissions).expect("set");
        let kind = Kind::Regular { size: content.len() as u64, digest: Digest::of(content) };
        entries.insert(components, Entry { mode: *mode, ..entry(path, kind) });
    }
    for components in entries.keys().rev() {
        let file = std::fs::File::open(root.join(components.join("/"))).expect("opened");
        file.set_modified(std::time::UNIX_EPOCH).expect("a time of a sealed file");
    }
    let manifest = Manifest::new(entries.into_values().collect()).expect("a tree");
    let mut texts = BTreeMap::new();
    for (name, text) in scripts {
        std::fs::write(staged.scripts().join(name), text).expect("written");
        texts.insert((*name).to_owned(), text.as_bytes().to_vec());
    }
    let digest = unit_digest(&metadata, &manifest.print(), &texts);
    let set_entry = LayerSetEntry {
        kind: LayerKind::Software,
        repository: repository.clone(),
        layer: metadata.layer.clone(),
        version: metadata.version.clone(),
        digest,
    };
    let mut writer = store.write_repository(&repository).expect("locked");
    writer.publish(staged, metadata, &manifest).expect("published");
    writer.commit().expect("committed");
    set_entry
}

impl Va {
    pub fn new() -> Va {
        let mount = Mount::new();
        let store = Store::init(&mount.directory.path().join("store")).expect("a new store");
        Va { mount, store }
    }

    /// Publishes `main/<layer> <version>` with one file, and its set entry.
    pub fn unit(&self, layer: &str, version: &str, path: &str, content: &str) -> LayerSetEntry {
        self.unit_of(layer, version, &[(path.to_owned(), content.as_bytes().to_vec(), 0o644)])
    }

    /// Publishes `main/<layer> <version>` with files: path, content, mode.
    pub fn unit_of(
        &self,
        layer: &str,
        version: &str,
        files: &[(String, Vec<u8>, u32)],
    ) -> LayerSetEntry {
        publish(&self.store, (layer, version), files, &[])
    }

    pub fn roll_out(&self, layers: Vec<LayerSetEntry>) -> GenerationId {
        self.roll_out_with(layers, &[])
    }

    fn roll_out_with(&self, layers: Vec<LayerSetEntry>, data: &[&str]) -> GenerationId {
        let data = data.iter().map(|path| path.parse().expect("a data path")).collect();
        let data = strata_core::data_paths::DataPaths::new(data).expect("none nested");
        let composition: strata_core::CompositionName = "web".parse().expect("a name");
        let ldf = layers.iter().map(|entry| format!("{entry}\n")).collect();
        let generation = Generation::new(composition.clone(), layers, ldf).expect("a set");
        let generation = generation.with_data(data);
        let (id, _) = self.store.seal_generation(&generation, "test").expect("sealed");
        let ring = "all".parse().expect("a name");
        self.store.move_ring(&composition, &ring, &id).expect("moved");
        if self.store.va_target(mac()).expect("read").is_none() {
            let target = VaTarget::Ring { composition, ring };
            self.store.claim_va(mac(), &target).expect("claimed");
        }
        id
    }

    pub fn index_cache(&self) -> PathBuf {
        self.mount.directory.path().join("index")
    }

    pub fn mount(&self) {
        let done = self.try_mount();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    pub fn try_mount(&self) -> Output {
        Command::new(PROGRAM)
            .args(["mount", "--va", &mac().to_string(), "--poll-ms", "20", "--store"])
            .arg(self.store.root())
            .arg("--private")
            .arg(self.mount.private())
            .arg("--index-cache")
            .arg(self.index_cache())
            .args(&self.mount.extra)
            .arg(self.path(""))
            .output()
            .expect("the program runs")
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.mount.path(below)
    }

    pub fn report(&self) -> Option<Report> {
        self.store.report(mac()).expect("readable")
    }

    pub fn generation_attribute(&self) -> String {
        let mut value = [0; 128];
        let length = rustix::fs::getxattr(self.path(""), "user.strata.generation", &mut value[..])
            .expect("the root answers");
        String::from_utf8(value[..length].to_vec()).expect("digits")
    }
}

#[test]
fn a_mounted_va_follows_its_link_and_reports() {
    let va = Va::new();
    let library = va.unit("library", "1", "lib", "one");
    let program = va.unit("program", "1", "prog", "program");
    let first = va.roll_out(vec![library, program.clone()]);
    va.mount();
    assert_eq!(read(va.path("lib")), "one");
    assert_eq!(va.generation_attribute(), first.to_string());
    let newer = va.unit("library", "2", "lib", "two");
    let second = va.roll_out(vec![newer, program]);
    wait_for("the swap", || va.generation_attribute() == second.to_string());
    wait_for("the new bytes", || read(va.path("lib")) == "two");
    wait_for("the report", || va.report().is_some_and(|r| r.generation == Some(second)));
    let report = va.report().expect("written");
    assert_eq!((report.state, report.layers, report.swaps), (ServingState::Serving, 2, 1));
    va.mount.unmount();
    wait_for("the last report", || {
        va.report().is_some_and(|report| report.state == ServingState::Stopped)
    });
}

#[test]
fn a_damaged_layer_refuses_the_swap_and_the_report_says_why() {
    let va = Va::new();
    let library = va.unit("library", "1", "lib", "one");
    let first = va.roll_out(vec![library]);
    va.mount();
    let newer = va.unit("library", "2", "lib", "two");
    let manifest =
        va.store.unit_path(&newer.repository, &newer.layer, &newer.version).join("manifest");
    let text = read(&manifest);
    std::fs::write(&manifest, text.replace("644", "600")).expect("damaged");
    let second = va.roll_out(vec![newer]);
    wait_for("the refusal", || va.report().is_some_and(|report| report.error.is_some()));
    let report = va.report().expect("written");
    assert_eq!((report.generation, report.desired), (Some(first), Some(second)));
    assert_eq!(read(va.path("lib")), "one", "the old set stays");
    std::fs::write(&manifest, text).expect("mended");
    wait_for("the swap after the repair", || read(va.path("lib")) == "two");
}

#[test]
fn another_vas_private_directory_is_refused() {
    let va = Va::new();
    let library = va.unit("library", "1", "lib", "one");
    va.roll_out(vec![library]);
    std::fs::create_dir(va.mount.private()).expect("made");
    std::fs::write(va.mount.private().join("format"), "strata-private 1\n").expect("written");
    std::fs::write(va.mount.private().join("owner"), "52:54:00:00:00:01\n").expect("written");
    let text = |path: &Path| path.display().to_string();
    let done = va.mount.run(&[
        "mount",
        "--va",
        &mac().to_string(),
        "--store",
        &text(va.store.root()),
        "--private",
        &text(&va.mount.private()),
        &text(&va.path("")),
    ]);
    assert_eq!(done.status.code(), Some(2));
    let error = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(error.contains("belongs to 52:54:00:00:00:01"), "{error}");
    assert_eq!(va.report().map(|report| report.state), Some(ServingState::Failed));
}

#[test]
fn declared_data_directories_are_mounted_and_a_new_one_at_the_next_start() {
    let va = Va::new();
    let library = va.unit("library", "1", "lib", "one");
    let first = va.roll_out_with(vec![library.clone()], &["/srv/a", "/srv/b"]);
    va.mount();
    std::fs::write(va.path("srv/a/rows"), "mine").expect("written");
    std::fs::write(va.path("srv/b/rows"), "mine").expect("written");
    let states = || -> Vec<(String, String)> {
        let status: serde_json::Value = serde_json::from_str(&va.mount.status()).expect("JSON");
        let text = |value: &serde_json::Value| value.as_str().expect("text").to_owned();
        let all = status["data"].as_array().expect("a list").iter();
        all.map(|data| (text(&data["path"]), text(&data["state"]))).collect()
    };
    let expect = |expected: &[(&str, &str)]| {
        let plain: Vec<_> =
            expected.iter().map(|(p, s)| ((*p).to_owned(), (*s).to_owned())).collect();
        assert_eq!(states(), plain);
    };
    expect(&[("/srv/a", "mounted"), ("/srv/b", "mounted")]);
    let second = va.roll_out_with(vec![library.clone()], &["/srv/b", "/srv/c"]);
    assert_ne!(first, second, "data directories are part of the generation");
    wait_for("the swap", || va.generation_attribute() == second.to_string());
    expect(&[("/srv/a", "ending"), ("/srv/b", "mounted"), ("/srv/c", "pending")]);
    assert_eq!(read(va.path("srv/a/rows")), "mine");
    // Written before it is a data directory: found in it.
    std::fs::create_dir(va.path("srv/c")).expect("made");
    std::fs::write(va.path("srv/c/rows"), "early").expect("written");
    va.mount.unmount();
    va.mount();
    expect(&[("/srv/b", "mounted"), ("/srv/c", "mounted")]);
    assert_eq!(read(va.path("srv/c/rows")), "early");
    assert!(!va.path("srv/a/rows").exists(), "kept on the private disk, not shown");
    va.mount.unmount();
    va.roll_out_with(vec![library], &["/srv/a"]);
    va.mount();
    assert_eq!(read(va.path("srv/a/rows")), "mine", "declared again: there again");
}
