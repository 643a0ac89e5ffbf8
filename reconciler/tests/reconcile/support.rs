//! A store with tiny layers and a GitOps repository, each in a temporary
//! directory, and git run with a fixed identity.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use strata::pass::{Options, PassError, PassReport, Reconciler};
use strata::source::Source;
use strata::state::ReconcileState;
use strata_core::manifest::{Entry, Kind, Manifest, Timestamp};
use strata_core::metadata::{LayerKind, Metadata};
use strata_core::{CompositionName, Digest, GenerationId, MacAddr, RingName};
use strata_store::{Store, VaTarget};
use tempfile::TempDir;

pub const CONFIGURATION: &str =
    "rings = [\"canary\", \"everyone\"]\n\n[[repository]]\nname = \"main\"\n";

pub fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("a valid name")
}

pub struct World {
    pub store: Arc<Store>,
    /// Where the store lies on a disk of its own; goes before the directory.
    pub disk: Option<Disk>,
    pub directory: TempDir,
}

/// A small disk at a path, for as long as the test runs.
pub struct Disk(PathBuf);

impl Disk {
    fn mount(path: PathBuf) -> Disk {
        fs::create_dir(&path).expect("made");
        let disk = Disk(path);
        disk.run(&["-t", "tmpfs", "-o", "size=64M", "tmpfs"]);
        disk
    }

    /// Changes the options of its mount.
    pub fn remount(&self, options: &str) {
        self.run(&["-o", &format!("remount,{options}")]);
    }

    fn run(&self, arguments: &[&str]) {
        let done = Command::new("mount").args(arguments).arg(&self.0).status().expect("runs");
        assert!(done.success(), "mount {arguments:?}");
    }

    /// Files, and pages of 4 KiB, that are in use.
    pub fn used(&self) -> (u64, u64) {
        let found = rustix::fs::statvfs(&self.0).expect("a file system");
        let pages = (found.f_blocks - found.f_bfree) * found.f_frsize / 4096;
        (found.f_files - found.f_ffree, pages)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _output = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

impl World {
    /// A store with `main/base 1`, `main/app 1` and `main/app 2`, and a bare
    /// repository whose branch `main` has the compositions web and sql.
    pub fn new() -> Self {
        Self::without_commit().with_first_commit()
    }

    /// The same with the store on a disk of its own.
    pub fn on_a_disk() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let disk = Disk::mount(directory.path().join("store"));
        Self::in_directory(directory, Some(disk)).with_first_commit()
    }

    fn with_first_commit(self) -> Self {
        let world = self;
        world.write("strata.toml", CONFIGURATION);
        world.write("templates/web.ldf", "main/app 1\nmain/base 1\n");
        world.write("templates/sql.ldf", "main/base 1\n");
        world.push("first");
        world
    }

    pub fn without_commit() -> Self {
        Self::in_directory(tempfile::tempdir().expect("a directory"), None)
    }

    fn in_directory(directory: TempDir, disk: Option<Disk>) -> Self {
        let store = Store::init(&directory.path().join("store")).expect("a store");
        let world = World { store: Arc::new(store), disk, directory };
        for (layer, version) in [("base", "1"), ("app", "1"), ("app", "2")] {
            world.build_layer(layer, version);
        }
        world.git_at(&world.path("."), &["init", "-q", "--bare", "-b", "main", "fleet.git"]);
        world.git_at(&world.path("."), &["clone", "-q", "fleet.git", "work"]);
        world.git(&["checkout", "-q", "-B", "main"]);
        world
    }

    pub fn path(&self, relative: &str) -> PathBuf {
        self.directory.path().join(relative)
    }

    /// A layer of one file `/<layer>` with its version as content.
    pub fn build_layer(&self, layer: &str, version: &str) {
        let repository = name("main");
        let staged = self.store.stage_unit(&repository).expect("staged");
        fs::write(staged.filesystem().join(layer), version).expect("written");
        let entry = |path: &str, kind, mode| Entry {
            path: path.into(),
            kind,
            mode,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            link_count: 1,
            xattrs: BTreeMap::new(),
        };
        let (size, digest) = (version.len() as u64, Digest::of(version.as_bytes()));
        let manifest = Manifest::new(vec![
            entry("", Kind::Directory, 0o755),
            entry(layer, Kind::Regular { size, digest }, 0o644),
        ])
        .expect("a manifest");
        let metadata = Metadata::new(name(layer), name(version), LayerKind::Software);
        let mut writer = self.store.write_repository(&repository).expect("a writer");
        writer.publish(staged, metadata, &manifest).expect("published");
        writer.commit().expect("committed");
    }

    /// Writes a file into the work tree.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.path("work").join(path);
        fs::create_dir_all(path.parent().expect("below work")).expect("a directory");
        fs::write(path, text).expect("written");
    }

    pub fn remove(&self, path: &str) {
        fs::remove_file(self.path("work").join(path)).expect("removed");
    }

    /// Commits all of the work tree and pushes it. Returns the commit.
    pub fn push(&self, message: &str) -> String {
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "--allow-empty", "-m", message]);
        self.git(&["push", "-q", "origin", "HEAD:main"]);
        self.head()
    }

    pub fn head(&self) -> String {
        self.git(&["rev-parse", "HEAD"])
    }

    /// Runs git in the work tree. Returns what it printed.
    pub fn git(&self, arguments: &[&str]) -> String {
        self.git_at(&self.path("work"), arguments)
    }

    pub fn git_at(&self, directory: &Path, arguments: &[&str]) -> String {
        let output = self.git_output(directory, arguments, b"");
        assert!(output.status.success(), "git {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
    }

    pub fn git_output(&self, directory: &Path, arguments: &[&str], input: &[u8]) -> Output {
        use std::io::Write;
        let mut child = Command::new("git")
            .args(arguments)
            .current_dir(directory)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_AUTHOR_NAME", "Ann")
            .env("GIT_AUTHOR_EMAIL", "ann@example.org")
            .env("GIT_AUTHOR_DATE", "2026-01-01T00:00:00Z")
            .env("GIT_COMMITTER_NAME", "Ann")
            .env("GIT_COMMITTER_EMAIL", "ann@example.org")
            .env("GIT_COMMITTER_DATE", "2026-01-01T00:00:00Z")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("git: apt-get install git");
        child.stdin.take().expect("piped").write_all(input).expect("written");
        child.wait_with_output().expect("git ends")
    }

    /// Hashes an object that `git add` would never make.
    pub fn hash_object(&self, kind: &str, content: &[u8]) -> String {
        let arguments = ["hash-object", "-t", kind, "--literally", "-w", "--stdin"];
        let output = self.git_output(&self.path("fleet.git"), &arguments, content);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("hexadecimal").trim().to_owned()
    }

    /// Puts a commit with a hand-made root tree onto the branch, as a child of
    /// what is there. Entries are (mode, name, id).
    pub fn push_raw(&self, entries: &[(&str, &[u8], &str)]) -> String {
        let tree = self.raw_tree(entries);
        let bare = self.path("fleet.git");
        let parent = self.git_at(&bare, &["rev-parse", "refs/heads/main"]);
        let text = format!(
            "tree {tree}\nparent {parent}\nauthor A <a@e> 1 +0000\ncommitter A <a@e> 1 +0000\n\nraw\n"
        );
        let commit = self.hash_object("commit", text.as_bytes());
        self.git_at(&bare, &["update-ref", "refs/heads/main", &commit]);
        commit
    }

    pub fn raw_tree(&self, entries: &[(&str, &[u8], &str)]) -> String {
        let mut content = Vec::new();
        for (mode, name, id) in entries {
            content.extend_from_slice(format!("{mode} ").as_bytes());
            content.extend_from_slice(name);
            content.push(0);
            let byte = |at: usize| u8::from_str_radix(&id[at..at + 2], 16).expect("hexadecimal");
            content.extend((0..40).step_by(2).map(byte));
        }
        self.hash_object("tree", &content)
    }

    pub fn source(&self) -> Source {
        Source::parse(self.path("fleet.git").to_str().expect("UTF-8"), "main").expect("a source")
    }

    /// A reconciler.
    pub fn reconciler(&self) -> Reconciler {
        self.opened(Options::default)
    }

    /// As [`World::reconciler`], with options.
    pub fn opened(&self, options: impl Fn() -> Options) -> Reconciler {
        self.opened_from(&self.source(), options)
    }

    /// As [`World::opened`], of another source.
    pub fn opened_from(&self, source: &Source, options: impl Fn() -> Options) -> Reconciler {
        self.try_opened(source, options).expect("a reconciler")
    }

    /// As [`World::opened_from`], or why there is none. A child that another test is just
    /// starting may hold this store's lock for the moment between fork and exec: that is
    /// waited for.
    pub fn try_opened(
        &self,
        source: &Source,
        options: impl Fn() -> Options,
    ) -> Result<Reconciler, PassError> {
        let mut opened = None;
        wait_until("the lock is free", Duration::from_secs(10), || {
            let store = Arc::new(Store::open(self.store.root()).expect("a store"));
            opened = Some(Reconciler::open(store, source.clone(), options()));
            !matches!(opened, Some(Err(PassError::Locked { .. })))
        });
        opened.expect("just tried")
    }

    /// As it is opened without a wait.
    pub fn reconciler_with(&self, options: Options) -> Result<Reconciler, PassError> {
        let store = Arc::new(Store::open(self.store.root()).expect("a store"));
        Reconciler::open(store, self.source(), options)
    }

    /// One pass of a new reconciler, as `--once` runs it.
    pub fn once(&self) -> PassReport {
        self.reconciler().pass(&AtomicBool::new(false)).expect("a pass")
    }

    /// The commit that was applied last.
    pub fn applied(&self) -> Option<String> {
        let state = ReconcileState::read(&self.store).expect("readable")?;
        state.applied.map(|applied| applied.commit)
    }

    pub fn ring(&self, composition: &str, ring: &str) -> Option<GenerationId> {
        let (composition, ring): (CompositionName, RingName) = (name(composition), name(ring));
        self.store.ring(&composition, &ring).expect("readable")
    }

    /// All ring links, in a form to compare.
    pub fn rings(&self) -> Vec<String> {
        let rings = self.store.rings().expect("readable");
        rings.iter().map(|((c, r), id)| format!("{c}/{r} {id}")).collect()
    }

    /// Claims a MAC address for each number, in one ring.
    pub fn claim(&self, composition: &str, ring: &str, numbers: std::ops::Range<u32>) {
        let target = VaTarget::Ring { composition: name(composition), ring: name(ring) };
        for number in numbers {
            self.store.claim_va(mac(number), &target).expect("claimed");
        }
    }

    /// Fails where anything in the store is not as it was.
    pub fn assert_unchanged(&self, before: &BTreeMap<PathBuf, String>) {
        let after = self.snapshot();
        let changed: Vec<_> = before
            .iter()
            .filter(|(path, text)| after.get(*path) != Some(text))
            .chain(after.iter().filter(|(path, _)| !before.contains_key(*path)))
            .collect();
        assert!(changed.is_empty(), "{changed:#?}");
    }

    /// Path, type, time of change and link target of everything in the store.
    pub fn snapshot(&self) -> BTreeMap<PathBuf, String> {
        use std::os::unix::fs::MetadataExt;
        let mut snapshot = BTreeMap::new();
        let mut pending = vec![self.store.root().to_owned()];
        while let Some(path) = pending.pop() {
            let metadata = fs::symlink_metadata(&path).expect("there");
            let (seconds, nanoseconds) = (metadata.ctime(), metadata.ctime_nsec());
            let text = format!("{:?} {seconds}.{nanoseconds}", metadata.file_type());
            if metadata.is_dir() {
                let entries = fs::read_dir(&path).expect("listed");
                pending.extend(entries.map(|entry| entry.expect("an entry").path()));
            }
            snapshot.insert(path, text);
        }
        snapshot
    }
}

pub fn mac(number: u32) -> MacAddr {
    let [a, b, c, d] = number.to_be_bytes();
    MacAddr::locally_administered([2, 0, a, b, c, d])
}

/// Waits for a condition; fails with `what` after `limit`.
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < end, "still not so after {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
