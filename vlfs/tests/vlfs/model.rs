//! Random operations against a reference model, with remounts and swaps among
//! them; no FUSE in the loop.
//!
//! One definition of correctness: after every step the whole tree must equal the
//! model's, and which names are one file.

mod real;
mod reference;

use proptest::prelude::*;
use strata_vlfs::vfs::file::OpenMode;
use strata_vlfs::vfs::{Errno, SetInfo};

use real::{CALLER, Real};
use reference::{FILES, Model, Object, Seen, Tree, is_below, parent};

/// Names and directories are few, so that operations meet.
const NAMES: [&str; 3] = ["a", "b", "c"];

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

/// The one name of a hard-linked file that is shown got no copy: a private directory stands at
/// another name, which was known from before.
#[test]
fn regression_a_copy_of_hard_links_goes_to_the_name_that_no_private_object_obscures() {
    let directory: Tree =
        [("a".to_owned(), Object::Directory), ("b".to_owned(), Object::Directory)].into();
    let mut linked = linked(&["b/c", "c"]);
    linked.insert("b".to_owned(), Object::Directory);
    let units = vec![Tree::new(), directory, Tree::new(), linked];
    let before = [
        Operation::Swap(vec![1]),
        Operation::Rename("a".to_owned(), "b/c".to_owned()),
        Operation::Swap(vec![3]),
    ];
    for copied in [
        Operation::Write("c".to_owned(), 0),
        Operation::Chmod("c".to_owned()),
        Operation::Link("c".to_owned(), "b/d".to_owned()),
        Operation::Rename("c".to_owned(), "b/d".to_owned()),
    ] {
        let mut operations = before.to_vec();
        operations.extend([copied, Operation::Remount]);
        run(units.clone(), &operations);
    }
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
