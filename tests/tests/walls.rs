//! The walls of `docs/architecture.md` ("Who may import whom"), proved from the
//! dependency graph and from the sources. Every check is a function of plain
//! data, and has a case here in which it fails.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use serde_json::Value;
use strata_tests::source_tree::{self, SourceTree};

/// The workspace's crates, where they live, and the crates of the workspace that
/// each may use.
const CRATES: [(&str, &str, &[&str]); 8] = [
    ("strata-core", "vlfs/core", &[]),
    ("strata-store", "vlfs/store", &["strata-core"]),
    ("strata-vlfs", "vlfs", &["strata-core", "strata-store"]),
    ("strata-init", "vlfs/init", &["strata-core", "strata-store", "strata-vlfs"]),
    ("strata-import", "reconciler/import", &["strata-core", "strata-store"]),
    ("strata-machine", "reconciler/machine", &["strata-core", "strata-store"]),
    ("strata", "reconciler", &["strata-core", "strata-store", "strata-import", "strata-machine"]),
    ("strata-tests", "tests", &["strata-core", "strata-store"]),
];

/// What runs in or under a VA.
const VA_SIDE: [&str; 4] = ["strata-core", "strata-store", "strata-vlfs", "strata-init"];
/// What the VA side never links, directly or through another crate.
const MANAGEMENT_ONLY: [&str; 8] =
    ["tokio", "mio", "git2", "libgit2-sys", "reqwest", "hyper", "rustls", "notify"];
/// What a crate without I/O never links.
const INPUT_OUTPUT: [&str; 10] =
    ["rustix", "nix", "fuser", "tempfile", "walkdir", "socket2", "tar", "tokio", "mio", "notify"];
/// What strata-core may use directly: formats, hashes, versions, time zones, the solver.
const CORE_DIRECT: [&str; 11] = [
    "blake3",
    "jiff",
    "itoa",
    "memchr",
    "resolvo",
    "serde",
    "serde_json",
    "thiserror",
    "toml",
    "indexmap",
    "smallvec",
];

/// Who links whom, by name: normal and build dependencies, no macros.
#[derive(Default, Clone)]
struct Graph {
    uses: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    /// Reads the answer of `cargo metadata`.
    fn of(metadata: &Value) -> Self {
        let mut names = BTreeMap::new();
        let mut graph = Graph::default();
        for package in list(&metadata["packages"]) {
            let kinds = list(&package["targets"]).iter().flat_map(|target| list(&target["kind"]));
            if !kinds.into_iter().any(|kind| kind == "proc-macro") {
                names.insert(text(&package["id"]), text(&package["name"]));
            }
        }
        for node in list(&metadata["resolve"]["nodes"]) {
            let Some(name) = names.get(text(&node["id"])) else { continue };
            let uses = graph.uses.entry((*name).to_owned()).or_default();
            for dependency in list(&node["deps"]) {
                let linked =
                    list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"] != "dev");
                if let Some(used) = names.get(text(&dependency["pkg"]))
                    && linked
                {
                    uses.insert((*used).to_owned());
                }
            }
        }
        graph
    }

    /// The shortest chain of uses from one crate to another.
    fn chain(&self, from: &str, to: &str) -> Option<String> {
        let mut queue = VecDeque::from([(from.to_owned(), from.to_owned())]);
        let mut seen = BTreeSet::from([from.to_owned()]);
        while let Some((name, chain)) = queue.pop_front() {
            if name == to {
                return Some(chain);
            }
            for used in self.uses.get(&name).into_iter().flatten() {
                if seen.insert(used.clone()) {
                    queue.push_back((used.clone(), format!("{chain} -> {used}")));
                }
            }
        }
        None
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn members(metadata: &Value) -> BTreeSet<&str> {
    let members: BTreeSet<_> = list(&metadata["workspace_members"]).iter().map(text).collect();
    let packages = list(&metadata["packages"]).iter();
    let inside = packages.filter(|package| members.contains(text(&package["id"])));
    inside.map(|package| text(&package["name"])).collect()
}

/// Every crate of the workspace is known, and uses only the crates it may.
fn check_imports(graph: &Graph, members: &BTreeSet<&str>) -> Vec<String> {
    let known: BTreeSet<_> = CRATES.iter().map(|(name, ..)| *name).collect();
    let mut broken: Vec<_> = members
        .symmetric_difference(&known)
        .map(|name| format!("{name}: in the workspace or in the table of the walls, not in both"))
        .collect();
    for (name, _, allowed) in CRATES {
        for used in graph.uses.get(name).into_iter().flatten() {
            if known.contains(used.as_str()) && !allowed.contains(&used.as_str()) {
                broken.push(format!("{name} uses {used}"));
            }
        }
    }
    broken
}

/// No crate of `from` reaches a crate of `forbidden`.
fn check_unreachable(graph: &Graph, from: &[&str], forbidden: &[&str]) -> Vec<String> {
    let pairs = from.iter().flat_map(|from| forbidden.iter().map(move |to| (from, to)));
    pairs.filter_map(|(from, to)| graph.chain(from, to)).collect()
}

/// strata-core uses nothing directly but what is listed.
fn check_core_direct(graph: &Graph) -> Vec<String> {
    let uses = graph.uses.get("strata-core").into_iter().flatten();
    let unknown = uses.filter(|used| !CORE_DIRECT.contains(&used.as_str()));
    unknown.map(|used| format!("strata-core uses {used}")).collect()
}

/// The parts of `std` that a text names, as in `std::fs` and `std::{fs, env}`.
fn std_modules(code: &str) -> BTreeSet<String> {
    let compact: String =
        code.split_whitespace().collect::<Vec<_>>().join(" ").replace(" ::", "::");
    let mut modules = BTreeSet::new();
    for (at, path) in compact.match_indices("std::") {
        if compact[..at].ends_with(source_tree::is_word) {
            continue;
        }
        let rest = compact[at + path.len()..].trim_start();
        let mut depth = 0;
        let mut fresh = true;
        for (start, c) in rest.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => fresh = true,
                _ if source_tree::is_word(c) && fresh && depth <= 1 => {
                    let word = rest[start..].chars().take_while(|c| source_tree::is_word(*c));
                    modules.insert(word.collect());
                    fresh = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    modules
}

/// Code without its test modules, which may measure and print.
fn without_tests(code: &str) -> String {
    let mut kept = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(at) = rest.find("#[cfg(test)]") {
        kept.push_str(&rest[..at]);
        rest = &rest[at..];
        let (open, end) = (rest.find('{'), rest.find(';'));
        let Some(open) = open.filter(|open| end.is_none_or(|end| *open < end)) else {
            rest = end.map_or("", |end| &rest[end + 1..]);
            continue;
        };
        let mut depth = 0;
        let close = rest[open..].find(|c| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            depth == 0
        });
        rest = close.map_or("", |close| &rest[open + close + 1..]);
    }
    kept + rest
}

/// No file of strata-core but its tests names a clock, a thread, a file, a process, the
/// environment, the network or standard output.
fn check_core_sources(tree: &SourceTree) -> Vec<String> {
    let modules = ["fs", "net", "thread", "process", "env", "os"];
    let words = ["Instant", "SystemTime", "stdin", "stdout", "stderr"];
    let macros = ["println", "print", "eprintln", "eprint"];
    let mut broken = Vec::new();
    for (path, text) in below(tree, "vlfs/core/src") {
        if path.file_name().is_some_and(|name| name == "tests.rs") {
            continue;
        }
        let code = without_tests(&source_tree::strip(text));
        let named = std_modules(&code);
        let mut found: Vec<_> =
            modules.iter().filter(|m| named.contains(**m)).map(|m| format!("std::{m}")).collect();
        let tokens = code.split_inclusive(|c| !source_tree::is_word(c));
        for token in tokens {
            let word = token.trim_end_matches(|c| !source_tree::is_word(c));
            if words.contains(&word) || (macros.contains(&word) && token.ends_with('!')) {
                found.push(word.to_owned());
            }
        }
        broken.extend(found.iter().map(|found| format!("{}: {found}", path.display())));
    }
    broken
}

/// At most one place a crate allows unsafe code.
fn check_unsafe(tree: &SourceTree) -> Vec<String> {
    let mut broken = Vec::new();
    for (name, directory, _) in CRATES {
        let files = below(tree, &format!("{directory}/src"));
        let places: Vec<_> = files
            .flat_map(|(path, text)| {
                let code: String = source_tree::strip(text).split_whitespace().collect();
                let count = code.matches("(unsafe_code").count();
                std::iter::repeat_n(path.display().to_string(), count)
            })
            .collect();
        if places.len() > 1 {
            broken.push(format!("{name} allows unsafe code in {}", places.join(", ")));
        }
    }
    broken
}

/// Rust files of more than `limit` lines.
fn long_files(tree: &SourceTree, limit: usize) -> Vec<String> {
    let rust = tree.iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "rs"));
    let lines = rust.map(|(path, text)| (path, text.lines().count()));
    lines
        .filter(|(_, lines)| *lines > limit)
        .map(|(path, lines)| format!("{}: {lines} lines", path.display()))
        .collect()
}

/// The Rust files below a directory.
fn below<'a>(
    tree: &'a SourceTree,
    directory: &str,
) -> impl Iterator<Item = (&'a PathBuf, &'a String)> + use<'a> {
    let directory = PathBuf::from(directory);
    let rust = |path: &Path| path.extension().is_some_and(|extension| extension == "rs");
    tree.iter().filter(move |(path, _)| path.starts_with(&directory) && rust(path))
}

fn metadata() -> &'static Value {
    static METADATA: LazyLock<Value> = LazyLock::new(|| {
        let output = Command::new(env!("CARGO"))
            .args(["metadata", "--format-version=1", "--locked", "--offline"])
            .arg("--filter-platform=x86_64-unknown-linux-gnu")
            .current_dir(source_tree::repository_root())
            .output()
            .expect("cargo runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("cargo prints JSON")
    });
    &METADATA
}

fn sources() -> &'static SourceTree {
    static SOURCES: LazyLock<SourceTree> = LazyLock::new(|| {
        source_tree::read(&source_tree::repository_root()).expect("the sources are readable")
    });
    &SOURCES
}

/// A graph of the workspace in order, with one wall broken by the caller.
fn doctored(from: &str, to: &str) -> Graph {
    let mut graph = Graph::of(metadata());
    graph.uses.entry(from.to_owned()).or_default().insert(to.to_owned());
    graph
}

fn doctored_source(path: &str, text: &str) -> SourceTree {
    let mut tree = sources().clone();
    tree.insert(path.into(), text.to_owned());
    tree
}

const NONE: [String; 0] = [];

#[test]
fn crates_use_only_what_lies_below_them() {
    let metadata = metadata();
    let members = members(metadata);
    assert_eq!(check_imports(&Graph::of(metadata), &members), NONE);
    for (from, to) in [
        ("strata", "strata-vlfs"),
        ("strata-vlfs", "strata-machine"),
        ("strata-core", "strata-store"),
        ("strata-import", "strata-machine"),
        ("strata-machine", "strata"),
    ] {
        assert_eq!(check_imports(&doctored(from, to), &members), [format!("{from} uses {to}")]);
    }
    let mut more = members.clone();
    more.insert("strata-extra");
    assert_eq!(check_imports(&Graph::of(metadata), &more).len(), 1, "an unknown crate");
}

#[test]
fn the_va_side_links_no_runtime_no_git_and_no_network() {
    let graph = Graph::of(metadata());
    assert_eq!(check_unreachable(&graph, &VA_SIDE, &MANAGEMENT_ONLY), NONE);
    let broken = check_unreachable(&doctored("blake3", "git2"), &VA_SIDE, &["git2"]);
    assert!(broken.contains(&"strata-vlfs -> blake3 -> git2".to_owned()), "{broken:?}");
    let chain = graph.chain("strata", "tokio");
    assert_eq!(chain.as_deref(), Some("strata -> tokio"), "the graph holds what is linked");
}

#[test]
fn tokio_lives_in_the_reconciler_alone() {
    let others: Vec<_> =
        CRATES.iter().map(|(name, ..)| *name).filter(|name| *name != "strata").collect();
    assert_eq!(check_unreachable(&Graph::of(metadata()), &others, &["tokio"]), NONE);
    let broken = check_unreachable(&doctored("strata-machine", "tokio"), &others, &["tokio"]);
    assert_eq!(broken, ["strata-machine -> tokio"]);
}

#[test]
fn the_core_links_nothing_that_does_input_or_output() {
    let graph = Graph::of(metadata());
    assert_eq!(check_core_direct(&graph), NONE);
    assert_eq!(check_unreachable(&graph, &["strata-core"], &INPUT_OUTPUT), NONE);
    let broken = doctored("strata-core", "rustix");
    assert_eq!(check_core_direct(&broken), ["strata-core uses rustix"]);
    let broken = check_unreachable(&broken, &["strata-core"], &INPUT_OUTPUT);
    assert_eq!(broken, ["strata-core -> rustix"]);
}

#[test]
fn the_core_names_no_input_output_or_clock() {
    assert_eq!(check_core_sources(sources()), NONE);
    let path = "vlfs/core/src/broken.rs";
    for text in [
        "use std::fs;",
        "use std::{collections::BTreeMap, env};",
        "use std::{\n    fmt::{self, Write},\n    net::TcpStream,\n};",
        "fn now() { let _now = ::std::time::Instant::now(); }",
        "use std::time::{Duration, SystemTime};",
        "fn say() { println!(\"x\"); }",
        "fn sleep() { std :: thread :: sleep(x) }",
    ] {
        let broken = check_core_sources(&doctored_source(path, text));
        assert_eq!(broken.len(), 1, "{text}: {broken:?}");
    }
    let after = "#[cfg(test)]\nmod a;\n#[cfg(test)]\nmod tests { fn b() { '}'; } }\nuse std::fs;";
    assert_eq!(check_core_sources(&doctored_source(path, after)).len(), 1, "after the tests");
    let tests = "#[cfg(test)]\nmod tests {\n    use std::time::Instant;\n    fn a() {}\n}\n";
    assert_eq!(check_core_sources(&doctored_source(path, tests)), NONE);
    let fine = "// std::fs\nfn print() { x.print(\"std::env\", std::fmt::Debug, my_std::fs) }";
    assert_eq!(check_core_sources(&doctored_source(path, fine)), NONE);
}

#[test]
fn unsafe_code_is_allowed_in_one_module_a_crate_at_most() {
    assert_eq!(check_unsafe(sources()), NONE);
    let text = "#![allow(unsafe_code)]\n#[expect(unsafe_code, reason = \"x\")]\nmod a {}\n";
    let broken = check_unsafe(&doctored_source("vlfs/store/src/broken.rs", text));
    assert_eq!(broken.len(), 1, "{broken:?}");
    assert!(broken[0].starts_with("strata-store allows unsafe code in "), "{broken:?}");
}

#[test]
fn files_stay_readable_in_one_sitting() {
    let tree = sources();
    for file in long_files(tree, 700) {
        eprintln!("consider to split {file}");
    }
    assert_eq!(long_files(tree, 1000), NONE);
    let long = doctored_source("vlfs/src/broken.rs", &"\n".repeat(1001));
    assert_eq!(long_files(&long, 1000), ["vlfs/src/broken.rs: 1001 lines"]);
}
