//! Identical files stored once.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use strata_store::Store;

use crate::support::{Bench, name, text, web};

/// More than is shared at least where a file is one more name.
const BYTES: usize = 5000;

fn licence() -> String {
    "the same text in both\n".repeat(BYTES)[..BYTES].to_owned()
}

/// Two layers with one file in common, of one time.
fn two(bench: &Bench) -> [PathBuf; 2] {
    ["one", "two"].map(|layer| {
        let root = bench.path(&format!("roots/main/{layer}-1"));
        fs::create_dir_all(root.join("usr/share")).expect("made");
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        // Files of one unit that are alike stay two.
        for file in ["licence", "copy"] {
            let path = root.join("usr/share").join(file);
            fs::write(&path, licence()).expect("written");
            fs::File::open(&path).expect("there").set_modified(time).expect("set");
        }
        bench.layer("main", layer, "1", &[]);
        bench.unit("main", layer, "1").join("filesystem/usr/share/copy")
    })
}

fn inode(path: &Path) -> u64 {
    fs::metadata(path).expect("there").ino()
}

#[test]
fn identical_files_of_two_layers_are_one() {
    let bench = Bench::new();
    let [one, two] = two(&bench);
    assert_eq!(inode(&one), inode(&two));
    assert_ne!(inode(&one), inode(&one.with_file_name("licence")), "but not of one layer");
    bench.good(&["repo", "verify", "main"]);
    let stats = bench.good(&["store", "stats", "--output", "json"]);
    let stats: serde_json::Value = serde_json::from_str(&stats).expect("JSON");
    let bytes = BYTES;
    assert_eq!(stats["files"]["bytes"], 4 * bytes);
    assert_eq!(stats["files"]["distinct_bytes"], bytes);
    assert_eq!(stats["files"]["linked_files"], 1);
    let pool = fs::metadata(bench.path("store/pool")).expect("there");
    assert_eq!(pool.permissions().mode() & 0o777, 0o700, "it leads nobody around permissions");
}

#[test]
fn files_that_differ_in_anything_stay_apart() {
    let bench = Bench::new();
    let root = bench.path("roots/main/one-1/usr");
    fs::create_dir_all(&root).expect("made");
    fs::write(root.join("file"), licence()).expect("written");
    bench.layer("main", "one", "1", &[]);
    let time = fs::metadata(root.join("file")).expect("there").modified().expect("a time");
    for (number, change) in ["mode", "owner", "time", "attribute"].iter().enumerate() {
        let other = bench.path(&format!("roots/main/other{number}-1/usr"));
        fs::create_dir_all(&other).expect("made");
        let path = other.join("file");
        fs::write(&path, licence()).expect("written");
        let file = fs::File::open(&path).expect("there");
        match *change {
            "mode" => file.set_permissions(fs::Permissions::from_mode(0o600)).expect("set"),
            "owner" => std::os::unix::fs::chown(&path, Some(1), Some(1)).expect("set"),
            "attribute" => {
                let set =
                    Command::new("setfattr").args(["-n", "user.a", "-v", "b"]).arg(&path).status();
                assert!(set.expect("setfattr: apt-get install attr").success());
            }
            _ => {}
        }
        let time = if *change == "time" { time + Duration::from_nanos(1) } else { time };
        file.set_modified(time).expect("set");
        bench.layer("main", &format!("other{number}"), "1", &[]);
        let unit = |layer: &str| bench.unit("main", layer, "1").join("filesystem/usr/file");
        assert_ne!(inode(&unit("one")), inode(&unit(&format!("other{number}"))), "{change}");
    }
    bench.good(&["repo", "verify", "main"]);
}

#[test]
fn a_damaged_file_does_not_spread() {
    let bench = Bench::new();
    let root = |layer: &str| bench.path(&format!("roots/main/{layer}-1"));
    let [one, _] = two(&bench);
    let time = fs::metadata(&one).expect("there").modified().expect("a time");
    for file in ["copy", "licence"] {
        let path = one.with_file_name(file);
        fs::write(&path, licence().to_uppercase()).expect("the disk's fault");
        fs::File::open(&path).expect("there").set_modified(time).expect("set");
    }
    let copied = Command::new("cp").arg("-a").args([root("two"), root("three")]).status();
    assert!(copied.expect("cp runs").success());
    bench.layer("main", "three", "1", &[]);
    let differs = bench.differs(&["repo", "verify", "main"]);
    assert!(!differs.contains("three 1"), "{differs}");
    assert!(differs.contains("one 1: /usr/share/copy: content"), "{differs}");
}

#[test]
fn units_of_before_are_shared_and_what_nobody_has_is_swept() {
    let bench = Bench::new();
    let [one, two] = two(&bench);
    let pool = bench.path("store/pool");
    // As a store of a former version: a file of its own, no pool.
    fs::remove_dir_all(&pool).expect("removed");
    let copied = Command::new("cp").arg("-a").arg(&one).arg(two.with_extension("new")).status();
    assert!(copied.expect("cp runs").success());
    let directory = two.parent().expect("a directory");
    let time = fs::metadata(directory).expect("there").modified().expect("a time");
    fs::rename(two.with_extension("new"), &two).expect("renamed");
    fs::File::open(directory).expect("there").set_modified(time).expect("set");
    assert_ne!(inode(&one), inode(&two));
    let told = bench.good(&["store", "dedup"]);
    assert!(told.starts_with("1 file ("), "{told}");
    assert_eq!(inode(&one), inode(&two));
    bench.good(&["repo", "verify", "main"]);
    assert!(bench.good(&["store", "dedup"]).starts_with("0 files"));
    for layer in ["one", "two"] {
        bench.good(&["layer", "withdraw", &format!("main/{layer}"), "1", "--reason", "gone"]);
    }
    let told = bench.good(&["store", "gc", "--apply", "--grace-hours", "0"]);
    assert!(told.contains("2 layer units") && told.contains("shared file"), "{told}");
    let names = Command::new("find").arg(&pool).args(["-type", "f"]).output().expect("find");
    assert!(names.stdout.is_empty(), "{names:?}");
}

#[test]
fn table_3_is_told_of_each_template() {
    let bench = Bench::new();
    for layer in ["base", "app"] {
        bench.layer("main", layer, "1", &[("usr/share/name", layer)]);
    }
    bench.roll_out(&bench.generation(&[("app", "1"), ("base", "1")]));
    let stats = |bench: &Bench| -> serde_json::Value {
        let text = bench.good(&["store", "stats", "--output", "json"]);
        serde_json::from_str(&text).expect("JSON")
    };
    assert_eq!(stats(&bench)["templates"][0]["template"], web().as_str());
    assert_eq!(stats(&bench)["templates"][0]["unique_bytes"], 7);
    let id = bench.generation_of("sql", &[("base", "1")]);
    bench.store.move_ring(&name("sql"), &name("everyone"), &id).expect("moved");
    let found = stats(&bench);
    let column = |at: usize, key: &str| found["templates"][at][key].as_u64().expect("a number");
    assert_eq!((column(0, "shared_bytes"), column(0, "unique_bytes")), (4, 0));
    assert_eq!((column(1, "layers"), column(1, "shared_bytes"), column(1, "bytes")), (2, 4, 7));
}

/// A disk that shares blocks between files, in a file.
struct Reflinks {
    directory: tempfile::TempDir,
}

impl Reflinks {
    fn new() -> Self {
        let directory = tempfile::TempDir::new().expect("a temporary directory");
        let image = directory.path().join("image");
        fs::File::create(&image).and_then(|file| file.set_len(400 << 20)).expect("an image");
        fs::create_dir(directory.path().join("disk")).expect("made");
        let run = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).output();
            let output =
                output.unwrap_or_else(|error| panic!("{program}: {error}\n  hint: ci/setup"));
            assert!(output.status.success(), "{program}: {output:?}");
        };
        run("mkfs.xfs", &["-q", "-m", "reflink=1", text(&image)]);
        let point = directory.path().join("disk");
        run("mount", &["-o", "loop", text(&image), text(&point)]);
        Reflinks { directory }
    }
}

impl Drop for Reflinks {
    fn drop(&mut self) {
        let point = self.directory.path().join("disk");
        let unmounted = Command::new("umount").arg(&point).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

/// Where the first blocks of a file are.
fn blocks(path: &Path) -> String {
    let output = Command::new("filefrag").arg("-v").arg(path).output();
    let output = output.expect("filefrag: apt-get install e2fsprogs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let extent = text.lines().find(|line| line.trim_start().starts_with("0:"));
    extent.and_then(|line| line.split(':').nth(2)).expect("an extent").trim().to_owned()
}

#[test]
fn where_the_disk_can_files_share_blocks_and_not_an_inode() {
    let disk = Reflinks::new();
    let root = disk.directory.path().join("disk/store");
    let store = Store::init(&root).expect("a store");
    let bench = Bench::on(store);
    let [one, two] = two(&bench);
    assert_ne!(inode(&one), inode(&two));
    let mapped = Command::new("filefrag").arg("-v").arg(&two).output();
    let mapped = mapped.expect("filefrag: apt-get install e2fsprogs");
    assert!(String::from_utf8_lossy(&mapped.stdout).contains("shared"), "{mapped:?}");
    bench.good(&["repo", "verify", &name::<strata_core::RepositoryName>("main").to_string()]);
}

/// What the distribution does with a new version: the same files at another time.
#[test]
fn where_the_disk_can_files_of_another_owner_mode_and_time_share_blocks() {
    let disk = Reflinks::new();
    let store = Store::init(&disk.directory.path().join("disk/store")).expect("a store");
    let bench = Bench::on(store);
    let [one, _] = two(&bench);
    let later = bench.path("roots/main/later-1/usr");
    fs::create_dir_all(&later).expect("made");
    let path = later.join("licence");
    fs::write(&path, licence()).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("set");
    std::os::unix::fs::chown(&path, Some(1), Some(2)).expect("set");
    bench.layer("main", "later", "1", &[]);
    let file = bench.unit("main", "later", "1").join("filesystem/usr/licence");
    let found = fs::metadata(&file).expect("there");
    assert_eq!((found.mode() & 0o7777, found.uid(), found.gid()), (0o640, 1, 2));
    assert_eq!(blocks(&one), blocks(&file));
    bench.good(&["repo", "verify", "main"]);
}

#[test]
fn where_the_disk_can_the_smallest_files_share_their_block() {
    let disk = Reflinks::new();
    let store = Store::init(&disk.directory.path().join("disk/store")).expect("a store");
    let bench = Bench::on(store);
    let [one, two] = ["one", "two"].map(|layer| {
        let (alike, empty) = (format!("usr/{layer}"), format!("usr/{layer}-empty"));
        bench.layer("main", layer, "1", &[(&alike, "x"), (&empty, "")]);
        bench.unit("main", layer, "1").join("filesystem").join(alike)
    });
    assert_eq!(blocks(&one), blocks(&two));
    bench.good(&["repo", "verify", "main"]);
}
