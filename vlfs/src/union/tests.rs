//! The union over a sealed index against the plainest union that could be written.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use strata_core::Digest;
use strata_core::manifest::{self, Manifest, Timestamp};

use super::changes::{Changes, changes};
use super::*;
use crate::index::build::{BuildError, Input, Permits, merge_where};
use crate::index::pack::Packed;
use crate::whiteout::WhiteoutTree;
use strata_core::metadata::LayerKind;

/// What a layer has at a path: a directory, or a file of this content; and a mode.
type Tree = BTreeMap<String, (Option<u8>, u32)>;

#[derive(Debug, Clone, Default)]
struct Layer {
    tree: Tree,
    hidden: BTreeSet<String>,
    hides_below: BTreeSet<String>,
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(above, _)| above)
}

fn name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

fn entry(path: &str, kind: manifest::Kind, mode: u32) -> manifest::Entry {
    manifest::Entry {
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

fn pack(tree: &Tree) -> Packed {
    let mut entries = vec![entry("", manifest::Kind::Directory, 0o755)];
    entries.extend(tree.iter().map(|(path, (content, mode))| {
        let file = |byte| manifest::Kind::Regular { size: 1, digest: Digest::of(&[byte]) };
        entry(path, content.map_or(manifest::Kind::Directory, file), *mode)
    }));
    Packed::from_manifest(&Manifest::new(entries).expect("a tree"))
}

fn whiteouts(paths: &BTreeSet<String>) -> WhiteoutTree {
    let mut tree = WhiteoutTree::default();
    paths.iter().for_each(|path| tree.hide(path.as_bytes()));
    tree
}

fn index(layers: &[Layer]) -> Arc<Index> {
    let packed: Vec<_> = layers.iter().map(|layer| pack(&layer.tree)).collect();
    let inputs: Vec<_> =
        packed.iter().map(|packed| Input { view: packed.view(), unit: None }).collect();
    Arc::new(Index::build(&inputs).expect("merged"))
}

fn union(layers: &[Layer]) -> Union {
    let trees: Vec<_> = layers
        .iter()
        .map(|layer| (whiteouts(&layer.hidden), whiteouts(&layer.hides_below)))
        .collect();
    let hiding: Vec<_> = trees
        .iter()
        .map(|(hidden, below)| Hiding { hidden: Some(hidden), hides_below: Some(below) })
        .collect();
    Union::build(index(layers), &hiding)
}

/// The layers that are seen at a path, topmost first.
fn contributions(layers: &[Layer], path: &str) -> Vec<usize> {
    if path.is_empty() {
        return (0..layers.len()).collect();
    }
    let above = parent(path);
    let is_directory = |layer: &usize| above.is_empty() || layers[*layer].tree[above].0.is_none();
    let merged = contributions(layers, above).into_iter().take_while(is_directory);
    merged
        .filter(|layer| layers[*layer].tree.contains_key(path))
        .filter(|layer| !layers[*layer].hidden.contains(path))
        .filter(|layer| !layers[..*layer].iter().any(|above| above.hides_below.contains(path)))
        .collect()
}

/// Every path that is seen, with its contributions.
fn model(layers: &[Layer]) -> BTreeMap<String, Vec<usize>> {
    let all: BTreeSet<_> = layers.iter().flat_map(|layer| layer.tree.keys().cloned()).collect();
    let seen = |path: String| {
        let found = contributions(layers, &path);
        (!found.is_empty()).then_some((path, found))
    };
    all.into_iter().filter_map(seen).collect()
}

/// The same, as the union answers it; checks each answer against the others.
fn read(union: &Union) -> BTreeMap<String, Vec<usize>> {
    let mut found = BTreeMap::new();
    let mut pending = vec![(ROOT, String::new())];
    while let Some((directory, path)) = pending.pop() {
        let mut directories = 0;
        let mut last: Option<Vec<u8>> = None;
        for (node, entry) in union.children(directory) {
            assert!(last.as_deref() < Some(entry.name), "names in order");
            last = Some(entry.name.to_vec());
            let own = std::str::from_utf8(entry.name).expect("ours");
            let below = if path.is_empty() { own.to_owned() } else { format!("{path}/{own}") };
            assert_eq!(union.child(directory, entry.name), Some(node));
            assert_eq!(union.find(below.as_bytes()), Some(node));
            assert_eq!(union.path(node), below.as_bytes());
            assert_eq!(union.parent(node), directory);
            assert!(union.is_reachable(node));
            assert_eq!(union.links(node), [node]);
            let layers = union.contributions(node).into_iter().map(|c| c.layer as usize);
            found.insert(below.clone(), layers.collect());
            if entry.is_directory() {
                directories += 1;
                pending.push((node, below));
            } else {
                assert_eq!(union.children(node).count(), 0, "{below}");
            }
        }
        assert_eq!(union.directory_links(directory), 2 + directories, "{path:?}");
    }
    assert!(!union.is_damaged());
    found
}

fn model_changes(old: &[Layer], new: &[Layer]) -> Changes {
    let (before, after) = (model(old), model(new));
    let object = |layers: &[Layer], seen: &BTreeMap<String, Vec<usize>>, path: &str| {
        seen.get(path).map(|found| layers[found[0]].tree[path])
    };
    let mut found = Changes::new();
    for path in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
        let is_directory = |layers: &[Layer], seen| {
            parent(path).is_empty()
                || object(layers, seen, parent(path)).is_some_and(|(content, _)| content.is_none())
        };
        if !is_directory(old, &before) || !is_directory(new, &after) {
            continue;
        }
        let (a, b) = (object(old, &before, path), object(new, &after, path));
        let changed = found.entry(parent(path).into()).or_default();
        match (a, b) {
            (Some((a, _)), Some((b, _))) if a != b => changed.names.push(name(path).into()),
            (Some((_, a)), Some((_, b))) if a != b => changed.attributes.push(name(path).into()),
            (Some(_), Some(_)) => {}
            _ => changed.names.push(name(path).into()),
        }
    }
    found.retain(|_, directory| *directory != Default::default());
    found
}

fn path() -> impl Strategy<Value = String> {
    let name = proptest::sample::select(&["a", "b", "c"][..]);
    proptest::collection::vec(name, 1..4).prop_map(|names| names.join("/"))
}

fn layer() -> impl Strategy<Value = Layer> {
    let object = (proptest::option::of(0..3_u8), proptest::sample::select(&[0o755, 0o700][..]));
    let tree = proptest::collection::btree_map(path(), object, 0..10).prop_map(|wanted| {
        let mut tree = Tree::new();
        for (path, object) in wanted {
            let above: Vec<_> = path.match_indices('/').map(|(at, _)| &path[..at]).collect();
            if above.iter().all(|above| tree.get(*above).is_none_or(|(file, _)| file.is_none())) {
                above.iter().for_each(|above| {
                    tree.entry((*above).to_owned()).or_insert((None, 0o755));
                });
                tree.entry(path).or_insert(object);
            }
        }
        tree
    });
    let paths = || proptest::collection::btree_set(path(), 0..3);
    let below = prop_oneof![4 => Just(BTreeSet::new()), 1 => paths()];
    (tree, paths(), below).prop_map(|(tree, hidden, hides_below)| Layer {
        tree,
        hidden: undone(hidden),
        hides_below: undone(hides_below),
    })
}

/// A hidden directory forgets what is hidden below it.
fn undone(paths: BTreeSet<String>) -> BTreeSet<String> {
    let above = |path: &String| path.match_indices('/').any(|(at, _)| paths.contains(&path[..at]));
    paths.iter().filter(|path| !above(path)).cloned().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn any_layers_are_seen_as_in_the_model(layers in proptest::collection::vec(layer(), 1..5)) {
        prop_assert_eq!(read(&union(&layers)), model(&layers));
    }

    #[test]
    fn hiding_while_active_is_as_if_built_with_it(
        mut layers in proptest::collection::vec(layer(), 1..5),
        paths in proptest::collection::vec(path(), 1..4),
    ) {
        let active = union(&layers);
        for path in paths {
            let Some(node) = active.find(path.as_bytes()) else { continue };
            for layer in contributions(&layers, &path) {
                layers[layer].hidden.insert(path.clone());
            }
            active.hide(node);
            prop_assert_eq!(read(&active), model(&layers));
        }
    }

    #[test]
    fn changes_are_all_changes_and_no_others(
        layers in proptest::collection::vec(layer(), 5),
        hidden in proptest::collection::vec(proptest::collection::btree_set(path(), 0..2), 5),
        old in proptest::sample::subsequence(vec![0, 1, 2, 3, 4], 0..=5),
        new in proptest::sample::subsequence(vec![0, 1, 2, 3, 4], 0..=5),
    ) {
        let before: Vec<_> = old.iter().map(|n| layers[*n].clone()).collect();
        let after: Vec<_> = new
            .iter()
            .map(|n| Layer { hidden: undone(hidden[*n].clone()), ..layers[*n].clone() })
            .collect();
        let kept: Vec<_> = old
            .iter()
            .map(|n| new.iter().position(|m| n == m).map(|at| at as u32))
            .collect();
        let found = changes(&union(&before), &union(&after), &kept);
        prop_assert_eq!(found, model_changes(&before, &after));
    }
}

#[test]
fn links_are_counted_by_what_is_seen_and_their_change_is_told() {
    let mut file =
        entry("a/x", manifest::Kind::Regular { size: 1, digest: Digest::of(b"x") }, 0o644);
    file.link_count = 2;
    let mut link = entry("b/y", manifest::Kind::HardLink { target: b"a/x".to_vec() }, 0o644);
    link.link_count = 2;
    let directory = |path| entry(path, manifest::Kind::Directory, 0o755);
    let entries = vec![directory(""), directory("a"), file, directory("b"), link];
    let linked = Packed::from_manifest(&Manifest::new(entries).expect("a tree"));
    let above = pack(&[("b".into(), (None, 0o755)), ("b/y".into(), (Some(1), 0o755))].into());
    let union = |layers: &[&Packed]| {
        let inputs: Vec<_> =
            layers.iter().map(|packed| Input { view: packed.view(), unit: None }).collect();
        Union::build(Arc::new(Index::build(&inputs).expect("merged")), &[])
    };
    let alone = union(&[&linked]);
    let (x, y) = (alone.find(b"a/x").expect("there"), alone.find(b"b/y").expect("there"));
    assert_eq!((alone.links(x), alone.links(y)), (vec![x, y], vec![x, y]));
    let obscured = union(&[&above, &linked]);
    let x = obscured.find(b"a/x").expect("there");
    assert_eq!(obscured.links(x), [x]);
    // Nothing in `a` changed but the number of links.
    let found = changes(&alone, &obscured, &[Some(1)]);
    assert_eq!(found[&b"a"[..]].attributes, [b"x"]);
    assert_eq!(found[&b"b"[..]].names, [b"y"]);
}

#[test]
fn software_layers_that_share_a_path_are_refused() {
    let tree = |files: &[(&str, Option<u8>)]| -> Packed {
        pack(&files.iter().map(|(path, content)| ((*path).into(), (*content, 0o755))).collect())
    };
    let same = tree(&[("usr", None), ("usr/x", Some(1)), ("usr/own", Some(1))]);
    let other = tree(&[("usr", None), ("usr/x", Some(1))]);
    let unlike = tree(&[("usr", None), ("usr/x", Some(2))]);
    let file = tree(&[("usr", Some(1))]);
    let build_where = |layers: &[(&Packed, LayerKind)], permits: Permits<'_>| {
        let layers = layers.iter();
        let inputs = layers.map(|(packed, kind)| Input {
            view: packed.view(),
            unit: Some((Digest::of(b""), *kind)),
        });
        let inputs = inputs.collect::<Vec<_>>();
        let refused = merge_where(&inputs, permits);
        refused.map(drop).map_err(|error| match error {
            BuildError::Overlap { first, second, path } => {
                (first, second, String::from_utf8(path).expect("ours"))
            }
            other => panic!("{other}"),
        })
    };
    use LayerKind::{Configuration, Software};
    let build = |layers: &[(&Packed, LayerKind)]| build_where(layers, &|_, _, _| false);
    let three = [(&unlike, Software), (&file, Configuration), (&same, Software)];
    let asked = |upper: usize, lower: usize, path: &[u8]| (upper, lower, path) == (0, 2, b"usr/x");
    assert_eq!(build_where(&three, &asked), Ok(()), "what is taken over is let through");
    assert_eq!(build(&[(&same, Software), (&other, Software)]), Ok(()));
    let refused = build(&[(&same, Software), (&unlike, Configuration), (&unlike, Software)]);
    assert_eq!(refused, Err((0, 2, "usr/x".into())));
    assert_eq!(build(&[(&unlike, Configuration), (&same, Software)]), Ok(()));
    assert_eq!(build(&[(&file, Software), (&same, Software)]), Err((0, 1, "usr".into())));
    assert_eq!(build(&[(&same, Software), (&file, Software)]), Err((0, 1, "usr".into())));
}
