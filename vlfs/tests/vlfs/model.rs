//! Random operations against a reference model, with remounts and swaps among
//! them; no FUSE in the loop.
//!
//! The model is the plainest union that could be written: a map of paths, and
//! for each unit what it shows and what is hidden in it. One definition of
//! correctness: after every step the whole tree must equal the model's, and which
//! names are one file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rustix::fs::FileType;
use strata_vlfs::layer::LayerSet;
use strata_vlfs::private::{Owner, Private, PrivateError};
use strata_vlfs::set;
use strata_vlfs::vfs::file::OpenMode;
use strata_vlfs::vfs::{Caller, Errno, SetInfo, Vfs, rename};

const ROOT: u64 = 1;
const CALLER: Caller = Caller { uid: 0, gid: 0, umask: 0o022 };
/// Names and directories are few, so that operations meet.
const NAMES: [&str; 3] = ["a", "b", "c"];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Object {
    Directory,
    /// Names with the same number are hard links of one file.
    File(usize, String),
}

type Tree = BTreeMap<String, Object>;

/// What a user sees at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Directory,
    /// With the number of links, and the first name of the file.
    File {
        text: String,
        links: usize,
        first: String,
    },
}

/// Files as a user sees them: by number, text, and number of links where known.
fn seen(tree: impl IntoIterator<Item = (String, Object, Option<usize>)>) -> BTreeMap<String, Seen> {
    let tree: Vec<_> = tree.into_iter().collect();
    let mut names: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for (path, object, _) in &tree {
        if let Object::File(number, _) = object {
            names.entry(*number).or_default().push(path.clone());
        }
    }
    let seen = tree.into_iter().map(|(path, object, links)| {
        let seen = match object {
            Object::Directory => Seen::Directory,
            Object::File(number, text) => {
                let names = &names[&number];
                let links = links.unwrap_or(names.len());
                Seen::File { text, links, first: names[0].clone() }
            }
        };
        (path, seen)
    });
    seen.collect()
}

fn parent(path: &str) -> Option<&str> {
    if path.is_empty() { None } else { Some(path.rsplit_once('/').map_or("", |(above, _)| above)) }
}

fn is_below(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
}

#[derive(Debug, Clone, Default)]
struct Model {
    /// All units by number, as they were made.
    units: Vec<Tree>,
    /// The set, topmost first.
    set: Vec<usize>,
    hidden: BTreeMap<usize, BTreeSet<String>>,
    private: Tree,
    /// The last number of a private file.
    last: usize,
}

/// Numbers of files are below this in each unit, and above all units' in the private layer.
const FILES: usize = 1000;

impl Model {
    /// Contributions at a path, topmost first, seen from merged directories above.
    fn contributions(&self, path: &str) -> Vec<usize> {
        let Some(above) = parent(path) else { return self.set.clone() };
        let merged = self.contributions(above).into_iter().take_while(|unit| {
            above.is_empty() || self.units[*unit].get(above) == Some(&Object::Directory)
        });
        merged
            .filter(|unit| self.units[*unit].contains_key(path))
            .filter(|unit| !self.hidden.get(unit).is_some_and(|hidden| hidden.contains(path)))
            .collect()
    }

    fn lower(&self, path: &str) -> Option<Object> {
        // A private object that is no directory obscures all below it.
        let mut above = parent(path);
        while let Some(directory) = above {
            if matches!(self.private.get(directory), Some(Object::File(..))) {
                return None;
            }
            above = parent(directory);
        }
        if path.is_empty() {
            return Some(Object::Directory);
        }
        self.contributions(path).first().map(|unit| self.units[*unit][path].clone())
    }

    fn get(&self, path: &str) -> Option<Object> {
        self.private.get(path).cloned().or_else(|| self.lower(path))
    }

    fn tree(&self) -> Tree {
        let mut all: BTreeSet<String> = self.private.keys().cloned().collect();
        all.extend(self.set.iter().flat_map(|unit| self.units[*unit].keys().cloned()));
        all.into_iter().filter_map(|path| Some((path.clone(), self.get(&path)?))).collect()
    }

    fn seen(&self) -> BTreeMap<String, Seen> {
        seen(self.tree().into_iter().map(|(path, object)| (path, object, None)))
    }

    fn children(&self, directory: &str) -> Vec<String> {
        self.tree().into_keys().filter(|path| parent(path) == Some(directory)).collect()
    }

    fn hide(&mut self, path: &str) {
        for unit in self.contributions(path) {
            let hidden = self.hidden.entry(unit).or_default();
            hidden.retain(|other| !is_below(other, path));
            hidden.insert(path.to_owned());
        }
    }

    fn make_parents(&mut self, path: &str) {
        let mut above = parent(path);
        while let Some(directory) = above.filter(|directory| !directory.is_empty()) {
            self.private.entry(directory.to_owned()).or_insert(Object::Directory);
            above = parent(directory);
        }
    }

    fn put(&mut self, path: &str, object: Object) {
        self.make_parents(path);
        self.private.insert(path.to_owned(), object);
    }

    fn new_file(&mut self, text: String) -> Object {
        self.last += 1;
        Object::File(FILES * UNITS + self.last, text)
    }

    /// All names of a file that are shown follow its copy.
    fn copy_up(&mut self, path: &str) {
        let Some(object) = self.lower(path).filter(|_| !self.private.contains_key(path)) else {
            return;
        };
        let Object::File(_, text) = &object else { return self.put(path, object) };
        let names: Vec<_> = self.tree().into_iter().filter(|(_, other)| *other == object).collect();
        let copy = self.new_file(text.clone());
        for (name, _) in names {
            self.put(&name, copy.clone());
        }
    }

    fn write(&mut self, path: &str, new: &str) -> Result<(), Errno> {
        if self.get(path).ok_or(Errno::NOENT)? == Object::Directory {
            return Err(Errno::ISDIR);
        }
        self.copy_up(path);
        let written = self.private[path].clone();
        for object in self.private.values_mut().filter(|object| **object == written) {
            if let Object::File(_, text) = object {
                new.clone_into(text);
            }
        }
        Ok(())
    }

    fn link(&mut self, from: &str, to: &str) -> Result<(), Errno> {
        let source = self.get(from).ok_or(Errno::NOENT)?;
        self.check_parent(to)?;
        if self.get(to).is_some() {
            return Err(Errno::EXIST);
        }
        if source == Object::Directory {
            return Err(Errno::PERM);
        }
        self.copy_up(from);
        self.put(to, self.private[from].clone());
        Ok(())
    }

    fn check_parent(&self, path: &str) -> Result<(), Errno> {
        match self.get(parent(path).unwrap_or("")) {
            None => Err(Errno::NOENT),
            Some(Object::File(..)) => Err(Errno::NOTDIR),
            Some(Object::Directory) => Ok(()),
        }
    }

    fn create(&mut self, path: &str, object: Object) -> Result<(), Errno> {
        self.check_parent(path)?;
        if self.get(path).is_some() {
            return Err(Errno::EXIST);
        }
        self.put(path, object);
        Ok(())
    }

    fn remove(&mut self, path: &str, directory: bool) -> Result<(), Errno> {
        match (self.get(path).ok_or(Errno::NOENT)?, directory) {
            (Object::Directory, false) => return Err(Errno::ISDIR),
            (Object::File(..), true) => return Err(Errno::NOTDIR),
            (Object::Directory, true) if !self.children(path).is_empty() => {
                return Err(Errno::NOTEMPTY);
            }
            _ => {}
        }
        self.hide(path);
        self.private.remove(path);
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), Errno> {
        let source = self.get(from).ok_or(Errno::NOENT)?;
        self.check_parent(to)?;
        let target = self.get(to);
        // Two names of one file: nothing happens.
        if from == to || (source != Object::Directory && target.as_ref() == Some(&source)) {
            return Ok(());
        }
        match (&source, target) {
            (_, None) | (Object::File(..), Some(Object::File(..))) => {}
            (Object::Directory, Some(Object::File(..))) => return Err(Errno::NOTDIR),
            (Object::File(..), Some(Object::Directory)) => return Err(Errno::ISDIR),
            (Object::Directory, Some(Object::Directory)) => {
                if !self.children(to).is_empty() {
                    return Err(Errno::NOTEMPTY);
                }
            }
        }
        let is_moved = |path: &String| path == from || is_below(path, from);
        // The source is copied in place first, and the directories above it stay private.
        self.make_parents(from);
        for path in self.tree().into_keys().filter(is_moved) {
            self.copy_up(&path);
        }
        let moved: Vec<_> = self.tree().into_iter().filter(|(path, _)| is_moved(path)).collect();
        self.hide(from);
        self.hide(to);
        self.private.retain(|path, _| path != from && !is_below(path, from));
        for (path, object) in moved {
            self.put(&format!("{to}{}", &path[from.len()..]), object);
        }
        Ok(())
    }

    fn swap(&mut self, set: Vec<usize>) {
        self.hidden.retain(|unit, _| set.contains(unit));
        self.set = set;
    }
}

#[derive(Debug, Clone)]
enum Operation {
    Create(String),
    Mkdir(String),
    Write(String, u8),
    Chmod(String),
    Unlink(String),
    Rmdir(String),
    Rename(String, String),
    Link(String, String),
    Swap(Vec<usize>),
    Remount,
}

fn path() -> impl Strategy<Value = String> {
    proptest::collection::vec(proptest::sample::select(&NAMES[..]), 1..4)
        .prop_map(|names| names.join("/"))
}

#[derive(Debug, Clone, Copy)]
enum Wanted {
    Directory,
    File,
    /// Of one of the files before it.
    Link(usize),
}

fn unit() -> impl Strategy<Value = Tree> {
    let kind = prop_oneof![
        3 => Just(Wanted::Directory),
        2 => Just(Wanted::File),
        3 => any::<usize>().prop_map(Wanted::Link),
    ];
    proptest::collection::btree_map(path(), kind, 0..8).prop_map(|wanted| {
        let mut tree = Tree::new();
        for (path, wanted) in wanted {
            let mut above = parent(&path);
            let mut blocked = false;
            while let Some(directory) = above.filter(|directory| !directory.is_empty()) {
                blocked |= matches!(tree.get(directory), Some(Object::File(..)));
                above = parent(directory);
            }
            if blocked || tree.contains_key(&path) {
                continue;
            }
            let mut above = parent(&path);
            while let Some(directory) = above.filter(|directory| !directory.is_empty()) {
                tree.entry(directory.to_owned()).or_insert(Object::Directory);
                above = parent(directory);
            }
            let files: Vec<_> =
                tree.values().filter(|object| **object != Object::Directory).cloned().collect();
            let object = match wanted {
                Wanted::Directory => Object::Directory,
                Wanted::Link(which) if !files.is_empty() => files[which % files.len()].clone(),
                Wanted::File | Wanted::Link(_) => Object::File(files.len(), format!("of {path}")),
            };
            tree.insert(path, object);
        }
        tree
    })
}

const UNITS: usize = 4;

fn operation() -> impl Strategy<Value = Operation> {
    let set = proptest::sample::subsequence((0..UNITS).collect::<Vec<_>>(), 1..=UNITS);
    prop_oneof![
        3 => path().prop_map(Operation::Create),
        3 => path().prop_map(Operation::Mkdir),
        3 => (path(), any::<u8>()).prop_map(|(path, byte)| Operation::Write(path, byte)),
        1 => path().prop_map(Operation::Chmod),
        4 => path().prop_map(Operation::Unlink),
        4 => path().prop_map(Operation::Rmdir),
        5 => (path(), path()).prop_map(|(from, to)| Operation::Rename(from, to)),
        2 => (path(), path()).prop_map(|(from, to)| Operation::Link(from, to)),
        2 => set.prop_map(Operation::Swap),
        1 => Just(Operation::Remount),
    ]
}

/// The real file system, driven by paths.
struct Real {
    directory: tempfile::TempDir,
    units: Vec<PathBuf>,
    vfs: Option<Vfs>,
}

impl Real {
    fn new(units: &[Tree]) -> Real {
        let directory = tempfile::tempdir().expect("made");
        let mut paths = Vec::new();
        for (number, tree) in units.iter().enumerate() {
            let unit = directory.path().join(format!("unit{number}"));
            std::fs::create_dir(&unit).expect("made");
            let mut files: BTreeMap<usize, PathBuf> = BTreeMap::new();
            for (path, object) in tree {
                let at = unit.join(path);
                match object {
                    Object::Directory => std::fs::create_dir(at).expect("made"),
                    Object::File(number, text) => match files.get(number) {
                        Some(first) => std::fs::hard_link(first, at).expect("linked"),
                        None => {
                            std::fs::write(&at, text).expect("written");
                            files.insert(*number, at);
                        }
                    },
                }
            }
            paths.push(unit);
        }
        Real { directory, units: paths, vfs: None }
    }

    fn layers(&self, set: &[usize]) -> LayerSet {
        let directories: Vec<_> = set.iter().map(|unit| self.units[*unit].clone()).collect();
        set::open_directories(&directories, None).expect("opened")
    }

    fn mount(&mut self, set: &[usize]) {
        self.vfs = None;
        let private: &Path = &self.directory.path().join("private");
        // A child that another test forks holds a copy of the lock until it starts.
        let start = std::time::Instant::now();
        let private = loop {
            match Private::open(private, &Owner::AdHoc) {
                Err(PrivateError::Locked(_)) if start.elapsed() < crate::fixture::DEADLINE => {
                    std::thread::yield_now();
                }
                other => break other.expect("opened"),
            }
        };
        let vfs = Vfs::new(private, self.layers(set), SetInfo::default()).expect("composed");
        self.vfs = Some(vfs);
    }

    fn vfs(&self) -> &Vfs {
        self.vfs.as_ref().expect("mounted")
    }

    fn walk(&self, path: &str) -> Result<u64, Errno> {
        path.split('/').filter(|name| !name.is_empty()).try_fold(ROOT, |node, name| {
            self.vfs().lookup(node, name.as_bytes()).map(|found| found.id)
        })
    }

    fn end<'p>(&self, path: &'p str) -> Result<(u64, &'p [u8]), Errno> {
        let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
        Ok((self.walk(parent(path).unwrap_or(""))?, name.as_bytes()))
    }

    fn apply(&self, operation: &Operation) -> Result<(), Errno> {
        let vfs = self.vfs();
        match operation {
            Operation::Create(path) => {
                let (node, name) = self.end(path)?;
                let (_, opened) = vfs.create(node, name, 0o644, &CALLER)?;
                vfs.release(opened.handle);
            }
            Operation::Mkdir(path) => {
                let (node, name) = self.end(path)?;
                vfs.mkdir(node, name, 0o755, &CALLER)?;
            }
            Operation::Write(path, byte) => {
                let node = self.walk(path)?;
                if vfs.getattr(node)?.0.kind == FileType::Directory {
                    return Err(Errno::ISDIR);
                }
                let mode = OpenMode { write: true, truncate: true, ..OpenMode::default() };
                let opened = vfs.open(node, mode)?;
                vfs.write(opened.handle, 0, format!("byte {byte}").as_bytes(), false)?;
                vfs.release(opened.handle);
            }
            Operation::Chmod(path) => {
                let set = strata_vlfs::vfs::SetAttr { mode: Some(0o700), ..Default::default() };
                vfs.setattr(self.walk(path)?, &set)?;
            }
            Operation::Unlink(path) => {
                let (node, name) = self.end(path)?;
                vfs.unlink(node, name)?;
            }
            Operation::Rmdir(path) => {
                let (node, name) = self.end(path)?;
                vfs.rmdir(node, name)?;
            }
            Operation::Rename(from, to) => {
                vfs.rename(self.end(from)?, self.end(to)?, rename::Mode::Replace)?;
            }
            Operation::Link(from, to) => {
                let (node, (above, name)) = (self.walk(from)?, self.end(to)?);
                // The kernel looks before it asks.
                match vfs.lookup(above, name) {
                    Ok(_) => return Err(Errno::EXIST),
                    Err(Errno::NOENT) => {}
                    Err(error) => return Err(error),
                }
                vfs.link(node, above, name)?;
            }
            Operation::Swap(_) | Operation::Remount => {}
        }
        Ok(())
    }

    fn tree(&self) -> BTreeMap<String, Seen> {
        let mut tree = BTreeMap::new();
        self.read_directory(ROOT, "", &mut tree);
        // What one node is, is one file; the number of links is as of the last lookup.
        let links: BTreeMap<String, usize> = tree
            .iter()
            .map(|(path, (_, node))| {
                let attr = self.vfs().getattr(*node).expect("described").0;
                (path.clone(), attr.nlink as usize)
            })
            .collect();
        seen(tree.into_iter().map(|(path, (object, _))| {
            let links = links[&path];
            (path, object, Some(links))
        }))
    }

    fn read_directory(&self, node: u64, path: &str, tree: &mut BTreeMap<String, (Object, u64)>) {
        let vfs = self.vfs();
        let opened = vfs.opendir(node).expect("opened");
        let listing = vfs.listing(opened.handle, 0).expect("listed");
        vfs.releasedir(opened.handle);
        for listed in listing.iter().skip(2) {
            let name = std::str::from_utf8(&listed.name).expect("ours");
            let below = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
            let found = vfs.lookup(node, &listed.name).expect("what is listed is there");
            assert_eq!(found.attr.ino, listed.ino, "d_ino of {below}");
            if found.attr.kind == FileType::Directory {
                tree.insert(below.clone(), (Object::Directory, found.id));
                self.read_directory(found.id, &below, tree);
            } else {
                let opened = vfs.open(found.id, OpenMode::default()).expect("opened");
                let mut bytes = vec![0; 64];
                let length = vfs.read(opened.handle, 0, &mut bytes).expect("read");
                vfs.release(opened.handle);
                assert_eq!(found.attr.size, length as u64);
                let text = String::from_utf8(bytes[..length].to_vec()).expect("ours");
                let number = usize::try_from(found.id).expect("small");
                tree.insert(below, (Object::File(number, text), found.id));
            }
        }
    }
}

fn apply_to_model(model: &mut Model, operation: &Operation) -> Result<(), Errno> {
    match operation {
        Operation::Create(path) => {
            let file = model.new_file(String::new());
            model.create(path, file)
        }
        Operation::Mkdir(path) => model.create(path, Object::Directory),
        Operation::Write(path, byte) => model.write(path, &format!("byte {byte}")),
        Operation::Chmod(path) => {
            model.get(path).ok_or(Errno::NOENT)?;
            model.copy_up(path);
            Ok(())
        }
        Operation::Link(from, to) => model.link(from, to),
        Operation::Unlink(path) => model.remove(path, false),
        Operation::Rmdir(path) => model.remove(path, true),
        Operation::Rename(from, to) => model.rename(from, to),
        Operation::Swap(set) => {
            model.swap(set.clone());
            Ok(())
        }
        Operation::Remount => Ok(()),
    }
}

fn run(mut units: Vec<Tree>, operations: &[Operation]) {
    let mut real = Real::new(&units);
    for (unit, tree) in units.iter_mut().enumerate() {
        for object in tree.values_mut() {
            if let Object::File(number, _) = object {
                *number += FILES * unit;
            }
        }
    }
    let mut model = Model { units, set: (0..UNITS).collect(), ..Model::default() };
    real.mount(&model.set);
    assert_eq!(real.tree(), model.seen(), "at the mount");
    for (step, operation) in operations.iter().enumerate() {
        // The kernel refuses to move a directory into itself; we rely on it.
        if let Operation::Rename(from, to) = operation
            && (is_below(to, from) || is_below(from, to))
        {
            continue;
        }
        let expected = apply_to_model(&mut model, operation);
        let got = match operation {
            Operation::Swap(set) => {
                let swapped = real.vfs().swap(real.layers(set), SetInfo::default());
                swapped.map(drop).map_err(|error| error.errno)
            }
            Operation::Remount => {
                real.mount(&model.set);
                Ok(())
            }
            other => real.apply(other),
        };
        let same = match (&got, &expected) {
            // A file in the middle of a path: the walk says ENOTDIR, the model ENOENT.
            (Err(Errno::NOTDIR | Errno::NOENT), Err(Errno::NOTDIR | Errno::NOENT)) => true,
            (got, expected) => got == expected,
        };
        assert!(same, "step {step}, {operation:?}: {got:?}, expected {expected:?}");
        assert_eq!(real.tree(), model.seen(), "after step {step}, {operation:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_operations_agrees_with_the_model(
        units in proptest::collection::vec(unit(), UNITS..=UNITS),
        operations in proptest::collection::vec(operation(), 1..40),
    ) {
        run(units, &operations);
    }
}

/// A private file stands where a later set has a directory, inside a tree that is renamed.
#[test]
fn regression_rename_of_a_tree_with_an_obscured_directory() {
    let directories = |paths: &[&str]| -> Tree {
        paths.iter().map(|path| ((*path).to_owned(), Object::Directory)).collect()
    };
    let units = vec![
        Tree::new(),
        directories(&["b", "b/a", "b/a/a"]),
        Tree::new(),
        directories(&["b", "b/a"]),
    ];
    let operations = [
        Operation::Swap(vec![3]),
        Operation::Create("b/a/a".to_owned()),
        Operation::Swap(vec![1, 2]),
        Operation::Rename("b".to_owned(), "c".to_owned()),
    ];
    run(units, &operations);
}

/// A rename that is refused must copy nothing: the copy would outlive a swap.
#[test]
fn regression_a_refused_rename_copies_nothing() {
    let directory: Tree = [
        ("a".to_owned(), Object::Directory),
        ("a/a".to_owned(), Object::File(0, "of a/a".to_owned())),
    ]
    .into();
    let file: Tree = [("b".to_owned(), Object::File(0, "of b".to_owned()))].into();
    let units = vec![directory, Tree::new(), Tree::new(), file];
    let operations = [Operation::Rename("a".to_owned(), "b".to_owned()), Operation::Swap(vec![3])];
    run(units, &operations);
}

/// The kernel learns of a revert a moment after it: until then names lead to the
/// node of the dropped copy, and what was written to it was lost. `ci/soak` found it.
#[test]
fn regression_a_reverted_file_is_not_opened_by_its_old_node() {
    let unit: Tree = [("a".to_owned(), Object::File(0, "of a".to_owned()))].into();
    let mut real = Real::new(&[unit]);
    real.mount(&[0]);
    real.apply(&Operation::Write("a".to_owned(), 1)).expect("copied");
    let node = real.walk("a").expect("there");
    real.vfs().revert(b"a", &CALLER).expect("reverted");
    for write in [true, false] {
        let mode = OpenMode { write, ..OpenMode::default() };
        assert_eq!(real.vfs().open(node, mode).map(|opened| opened.handle), Err(Errno::STALE));
    }
    real.apply(&Operation::Write("a".to_owned(), 2)).expect("copied anew");
    let first = "a".to_owned();
    assert_eq!(real.tree()["a"], Seen::File { text: "byte 2".to_owned(), links: 1, first });
}

/// A unit of one file with several names.
fn linked(names: &[&str]) -> Tree {
    let mut tree = Tree::new();
    for name in names {
        if let Some((above, _)) = name.rsplit_once('/') {
            tree.insert(above.to_owned(), Object::Directory);
        }
        tree.insert((*name).to_owned(), Object::File(0, "linked".to_owned()));
    }
    tree
}

/// The copy of a hard link went to all its names, those of private files among them,
/// whose data was lost.
#[test]
fn regression_a_copy_of_hard_links_replaces_no_private_object() {
    let write = |path: &str| Operation::Write(path.to_owned(), 1);
    let units =
        vec![linked(&["a", "b", "c"]), linked(&["a/a", "b", "c"]), Tree::new(), Tree::new()];
    for unit in [0, 1] {
        let private = [Operation::Create("a".to_owned()), Operation::Mkdir("a".to_owned())];
        for private in private {
            let before = [Operation::Swap(vec![2]), private, Operation::Swap(vec![unit])];
            for copied in [
                write("b"),
                Operation::Chmod("c".to_owned()),
                Operation::Link("b".to_owned(), "d".to_owned()),
                Operation::Rename("b".to_owned(), "d".to_owned()),
            ] {
                let mut operations = before.to_vec();
                operations.extend([copied, write("a"), write("c"), Operation::Remount]);
                run(units.clone(), &operations);
            }
        }
    }
}

/// A name that the kernel knew, and that shows another file since a swap, got the copy.
#[test]
fn regression_a_copy_goes_to_a_name_that_shows_its_original() {
    let mut top = Tree::new();
    top.insert("b".to_owned(), Object::File(0, "of b".to_owned()));
    let mut real = Real::new(&[linked(&["a", "b"]), top]);
    real.mount(&[0]);
    let node = real.walk("a").expect("there");
    assert_eq!(real.walk("b"), Ok(node));
    real.vfs().swap(real.layers(&[1, 0]), SetInfo::default()).expect("swapped");
    real.apply(&Operation::Write("a".to_owned(), 1)).expect("written");
    let text = |path: &str| match &real.tree()[path] {
        Seen::File { text, links: 1, .. } => text.clone(),
        other => panic!("{path}: {other:?}"),
    };
    assert_eq!((text("a"), text("b")), ("byte 1".to_owned(), "of b".to_owned()));
}

/// A private copy and the layers' file have one number: a name of the one that is shown
/// again led to the other.
#[test]
fn regression_a_link_that_is_shown_again_is_no_name_of_the_copy() {
    let mut real = Real::new(&[linked(&["a", "b", "c"])]);
    real.mount(&[0]);
    for name in ["a", "b", "c"] {
        real.walk(name).expect("there");
    }
    real.apply(&Operation::Write("a".to_owned(), 1)).expect("copied");
    for reverted in [&b"b"[..], b"c"] {
        real.vfs().revert(reverted, &CALLER).expect("reverted");
    }
    let file = |text: &str, links, first: &str| Seen::File {
        text: text.to_owned(),
        links,
        first: first.to_owned(),
    };
    let tree = real.tree();
    assert_eq!(tree["a"], file("byte 1", 1, "a"));
    assert_eq!((&tree["b"], &tree["c"]), (&file("linked", 2, "b"), &file("linked", 2, "b")));
    real.mount(&[0]);
    assert_eq!(real.tree(), tree);
}
