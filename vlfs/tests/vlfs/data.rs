//! Data directories: past the union, on the private disk (§6.4).

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use strata_core::data_paths::DataPaths;
use strata_vlfs::private::disk::Disk;
use strata_vlfs::private::{Owner, Private};
use strata_vlfs::vfs::{SetInfo, Vfs};

use crate::fixture::{Mount, PROGRAM, names, read, wait_for};

const PATH: &str = "var/lib/db";

fn with_data() -> Mount {
    let mut mount = Mount::new();
    mount.extra = vec!["--data".to_owned(), format!("/{PATH}")];
    mount
}

fn device(path: PathBuf) -> u64 {
    fs::metadata(path).expect("described").dev()
}

fn data(mount: &Mount) -> serde_json::Value {
    let status: serde_json::Value = serde_json::from_str(&mount.status()).expect("JSON");
    status["data"].clone()
}

#[test]
fn a_data_directory_is_filled_once_and_kept() {
    let mount = with_data();
    let files =
        [("var/lib/db/t/rows", "one"), ("var/lib/db/empty/", ""), ("var/lib/other", "other")];
    let layer = mount.layer("one", &files);
    let inside = layer.join(PATH);
    fs::hard_link(inside.join("t/rows"), inside.join("t/same")).expect("linked");
    symlink("t/rows", inside.join("link")).expect("linked");
    fs::set_permissions(inside.join("t/rows"), fs::Permissions::from_mode(0o640)).expect("set");
    std::os::unix::fs::chown(&inside, Some(33), Some(44)).expect("owned");
    fs::set_permissions(&inside, fs::Permissions::from_mode(0o2750)).expect("set");
    mount.mount(&[&layer]);
    let top = fs::metadata(mount.path(PATH)).expect("described");
    assert_eq!((top.uid(), top.gid(), top.mode() & 0o7777), (33, 44, 0o2750));
    assert_eq!(top.dev(), device(mount.private()), "the private disk itself");
    assert_eq!(names(mount.path(PATH)), ["empty", "link", "t"]);
    assert_eq!(read(mount.path("var/lib/db/link")), "one");
    let rows = fs::metadata(mount.path("var/lib/db/t/rows")).expect("described");
    assert_eq!((rows.mode() & 0o7777, rows.nlink()), (0o640, 2));
    let original = fs::metadata(inside.join("t/rows")).expect("described");
    assert_eq!(rows.mtime_nsec(), original.mtime_nsec());
    assert_eq!(data(&mount)[0]["state"], "mounted");
    fs::write(mount.path("var/lib/db/t/rows"), "mine").expect("written");
    fs::remove_file(mount.path("var/lib/db/link")).expect("removed");
    assert_eq!(mount.diff(), [""; 0], "no part of forensics");
    mount.unmount();

    // Whatever the layers show there now: it is the VA's.
    let newer = mount.layer("two", &[("var/lib/db/t/rows", "two"), ("var/lib/db/new", "new")]);
    mount.mount(&[&newer]);
    assert_eq!(read(mount.path("var/lib/db/t/rows")), "mine");
    assert_eq!(names(mount.path(PATH)), ["empty", "t"]);
    mount.unmount();
    assert_eq!(read(mount.private().join("data/var%2flib%2fdb/t/same")), "mine");
}

/// A swap expires names and never detaches what is mounted on one, whatever the new
/// layers have there: a directory, nothing, or a file.
#[test]
fn a_swap_leaves_data_directories_mounted() {
    let mount = with_data();
    let one = mount.layer("one", &[("var/lib/db/rows", "one"), ("version", "1")]);
    let gone = mount.layer("gone", &[("version", "2")]);
    let file = mount.layer("file", &[("var/lib/db", "a file"), ("version", "3")]);
    let above = mount.layer("above", &[("var", "a file"), ("version", "4")]);
    mount.mount(&[&one]);
    let disk = device(mount.private());
    let open = fs::File::create(mount.path("var/lib/db/open")).expect("made");
    for (layer, version) in [(&gone, "2"), (&file, "3"), (&above, "4"), (&one, "1")] {
        for _ in 0..20 {
            mount.swap(&[layer]);
            mount.swap(&[&one]);
        }
        mount.swap(&[layer]);
        assert_eq!(read(mount.path("version")), version);
        assert_eq!(device(mount.path(PATH)), disk, "after the swap to {version}");
        assert_eq!(read(mount.path("var/lib/db/rows")), "one");
        wait_for("the names settle", || mount.status().contains("\"held_layers\": []"));
        assert_eq!(device(mount.path(PATH)), disk, "settled on {version}");
    }
    assert_eq!(open.metadata().expect("described").dev(), disk);
}

#[test]
fn an_empty_one_is_made_where_the_layers_have_nothing() {
    let mount = with_data();
    let layer = mount.layer("one", &[("version", "1")]);
    mount.mount(&[&layer]);
    assert_eq!(names(mount.path(PATH)), [""; 0]);
    let top = fs::metadata(mount.path(PATH)).expect("described");
    assert_eq!((top.uid(), top.gid(), top.mode() & 0o7777), (0, 0, 0o755));
}

#[test]
fn what_is_no_directory_refuses_the_mount() {
    let mount = with_data();
    let layer = mount.layer("one", &[("srv/db/rows", "one"), ("var/file", "")]);
    symlink("/srv", layer.join("var/lib")).expect("linked");
    let text = |path: PathBuf| path.display().to_string();
    let arguments = |path: &'static str, second: &'static str| {
        let (private, point) = (text(mount.private()), text(mount.path("")));
        let words = ["mount", "--private", &private, "--layer", &text(layer.clone()), &point];
        let mut words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        words.extend(["--data".to_owned(), path.to_owned()]);
        words.extend(["--data".to_owned(), second.to_owned()]);
        words
    };
    for (path, second, told) in [
        ("/var/lib/db", "/x", "/var/lib is no directory"),
        ("/var/file", "/x", "/var/file is no directory"),
        ("/x/y", "/x", "/x/y is in /x"),
        ("/x", "/proc/x", "at or below /proc"),
        ("/x", "var/lib", "not absolute"),
        ("/x", "/", "the whole root"),
        ("/x", "/a/../b", "component"),
    ] {
        let words = arguments(path, second);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let done = mount.run(&words);
        assert_eq!(done.status.code(), Some(2), "{path} {second}");
        let error = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(error.contains(told), "{error}");
        assert_eq!(names(mount.path("")), [""; 0], "nothing is mounted");
    }
    // Nothing half-made, and the private directory is usable.
    assert_eq!(names(mount.private().join("work")), [""; 0]);
}

#[test]
fn one_that_does_not_fit_is_made_whole_or_not_at_all() {
    let mount = with_data();
    let big = "x".repeat(3 << 20);
    let layer = mount.layer("one", &[("var/lib/db/a", "a"), ("var/lib/db/z", &big)]);
    let disk = crate::full_disk::SmallDisk::new(mount.private(), "size=2M");
    let private = mount.private().display().to_string();
    let (layer_text, point) = (layer.display().to_string(), mount.path("").display().to_string());
    let path = format!("/{PATH}");
    let words = ["mount", "--private", &private, "--layer", &layer_text, "--data", &path, &point];
    let done = mount.run(&words);
    let error = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(2));
    assert!(error.contains("/var/lib/db cannot be filled: /z: No space left"), "{error}");
    assert_eq!(names(mount.private().join("data")), [""; 0]);
    assert_eq!(names(mount.private().join("work")), [""; 0]);
    drop(disk);
}

#[test]
fn the_daemon_takes_them_along_when_it_is_told_to_end() {
    let mount = with_data();
    let layer = mount.layer("one", &[("var/lib/db/rows", "one")]);
    mount.mount(&[&layer]);
    let daemon = i32::try_from(mount.daemon()).expect("small");
    let pid = rustix::process::Pid::from_raw(daemon).expect("not zero");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("told");
    let root = mount.directory.path().display().to_string();
    wait_for("the mounts' end", || !read("/proc/self/mountinfo").contains(&root));
    wait_for("the daemon's end", || !fs::exists(format!("/proc/{daemon}/fd/0")).expect("told"));
    mount.mount(&[&layer]);
    assert_eq!(read(mount.path("var/lib/db/rows")), "one");
}

#[test]
fn diff_lists_data_when_asked() {
    let mount = with_data();
    let layer = mount.layer("one", &[("var/lib/db/t/rows", "one")]);
    mount.mount(&[&layer]);
    fs::write(mount.path("etc"), "mine").expect("written");
    symlink("/etc", mount.path("var/lib/db/t/link")).expect("linked");
    // Names that no path stands for are passed over: the VA's disk may be anybody's.
    for name in ["%2e%2e", "%zz", "var%2Flib", "."] {
        fs::create_dir_all(mount.private().join("data").join(name).join("x")).expect("made");
    }
    assert_eq!(mount.diff(), ["A etc"]);
    let private = mount.private().display().to_string();
    let done = mount.run(&["diff", "--data", "--content", &private]);
    assert_eq!(done.status.code(), Some(1));
    let text = String::from_utf8(done.stdout).expect("text");
    let listed: Vec<_> = text.lines().filter(|line| line.starts_with("A ")).collect();
    let expected = ["A etc", "A var/lib/db/t", "A var/lib/db/t/link", "A var/lib/db/t/rows"];
    assert_eq!(listed, expected);
    assert!(text.contains("+one"), "{text}");
}

/// An upgrade replaces the process with all its threads: it waits for the one that mounts.
#[test]
fn an_upgrade_during_the_mount_waits_for_them() {
    let mut mount = Mount::new();
    let paths: Vec<_> = (0..24).map(|number| format!("var/data-{number:02}")).collect();
    mount.extra = paths.iter().flat_map(|path| ["--data".to_owned(), format!("/{path}")]).collect();
    let layer = mount.layer("one", &[("var/f", "f")]);
    let point = mount.path("").display().to_string();
    for _ in 0..3 {
        std::thread::scope(|scope| {
            let mounting = scope.spawn(|| mount.mount(&[&layer]));
            while !mounting.is_finished() {
                let _refused_before_there_is_a_socket =
                    mount.run(&["upgrade", &point, "--binary", PROGRAM]);
            }
        });
        let private = device(mount.private());
        let elsewhere: Vec<_> =
            paths.iter().filter(|path| device(mount.path(path)) != private).collect();
        assert_eq!(elsewhere, [""; 0], "not mounted");
        mount.unmount();
    }
}

#[test]
fn an_upgrade_keeps_them_mounted() {
    let mount = with_data();
    let layer = mount.layer("one", &[("var/lib/db/rows", "one")]);
    mount.mount(&[&layer]);
    let before = data(&mount);
    let point = mount.path("").display().to_string();
    for _ in 0..3 {
        let done = mount.run(&["upgrade", &point, "--binary", PROGRAM]);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        assert_eq!(data(&mount), before);
        assert_eq!(device(mount.path(PATH)), device(mount.private()));
    }
    let table = read("/proc/self/mountinfo");
    let own = format!(" {} ", mount.path(PATH).display());
    let ours = table.lines().filter(|line| line.contains(&own));
    assert_eq!(ours.count(), 1, "not mounted twice");
}

#[test]
fn a_reset_keeps_them() {
    let mount = with_data();
    let layer = mount.layer("one", &[("var/lib/db/rows", "one")]);
    mount.mount(&[&layer]);
    fs::write(mount.path("var/lib/db/rows"), "mine").expect("written");
    fs::write(mount.path("other"), "mine").expect("written");
    mount.unmount();
    let done = mount.run(&["reset", &mount.private().display().to_string()]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    mount.mount(&[&layer]);
    assert!(!mount.path("other").exists());
    assert_eq!(read(mount.path("var/lib/db/rows")), "mine");
}

/// Stopped at each step of filling: absent then, or whole, and whole at the next start.
#[test]
fn filling_is_whole_or_nothing_at_every_step() {
    let mount = Mount::new();
    let files = [("var/lib/db/t/rows", "one"), ("var/lib/db/u/rows", "two"), ("var/lib/x", "")];
    let layer = mount.layer("one", &files);
    fs::hard_link(layer.join("var/lib/db/t/rows"), layer.join("var/lib/db/same")).expect("linked");
    symlink("t/rows", layer.join("var/lib/db/link")).expect("linked");
    let path = format!("/{PATH}").parse().expect("a path");
    let paths = DataPaths::new([path].into()).expect("one");
    let prepare = |private: &Path, disk: Disk| {
        let private = Private::open_with(private, &Owner::AdHoc, disk).expect("opened");
        let layers = strata_vlfs::set::open_directories(std::slice::from_ref(&layer), None);
        let vfs = Vfs::new(private, layers.expect("opened"), SetInfo::default());
        let vfs = vfs.expect("composed");
        let opening = vfs.private().disk().steps();
        let made = strata_vlfs::data::prepare(&vfs, &paths);
        (opening, vfs.private().disk().steps(), made.is_ok())
    };
    let whole = |private: &Path| {
        let own = private.join("data/var%2flib%2fdb");
        assert_eq!(names(&own), ["link", "same", "t", "u"]);
        assert_eq!(
            (read(own.join("link")), read(own.join("u/rows"))),
            ("one".into(), "two".into())
        );
        assert_eq!(fs::metadata(own.join("same")).expect("described").nlink(), 2);
    };
    let private = |name: &str| mount.directory.path().join(name);
    let (opening, end, made) = prepare(&private("undisturbed"), Disk::failing_at(u64::MAX));
    assert!(made && end > opening);
    whole(&private("undisturbed"));
    for step in opening..end {
        let private = private(&format!("private{step}"));
        let (.., made) = prepare(&private, Disk::failing_at(step));
        assert!(!made, "step {step}");
        let data = private.join("data");
        if data.exists() && names(&data) != [""; 0] {
            whole(&private);
        }
        assert!(prepare(&private, Disk::default()).2, "after step {step}");
        whole(&private);
        assert_eq!(names(private.join("work")), [""; 0], "after step {step}");
        fs::remove_dir_all(private).expect("removed");
    }
}
