//! `diff` from outside (§4.5), also of a VA that was broken into; `reset`.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

use rustix::fs::{Mode, XattrFlags};

use crate::fixture::{Mount, PROGRAM, wait_for};
use crate::store::Va;

fn diff(private: &Path, more: &[&str]) -> Output {
    Command::new(PROGRAM).arg("diff").arg(private).args(more).output().expect("the program runs")
}

fn lines(output: &Output) -> Vec<String> {
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(ToOwned::to_owned).collect()
}

/// Writes other content of the same length and puts the time of the last write back.
fn write_and_hide(path: &Path, content: &str) {
    let before = fs::metadata(path).expect("described").modified().expect("a time");
    fs::write(path, content).expect("written");
    let file = fs::File::options().append(true).open(path).expect("opened");
    file.set_modified(before).expect("put back");
}

#[test]
fn diff_tells_every_class_and_does_not_believe_times_or_records() {
    let va = Va::new();
    let names = ["added-over", "modified", "attributes", "deleted", "reverted", "forged"];
    let units: Vec<_> = names.iter().map(|name| va.unit(name, "1", name, "text")).collect();
    let old = va.unit("moving", "1", "moving", "text");
    va.roll_out([units.clone(), vec![old]].concat());
    va.mount();
    fs::remove_file(va.path("added-over")).expect("removed");
    fs::write(va.path("added-over"), "mine").expect("written");
    fs::write(va.path("added"), "mine").expect("written");
    write_and_hide(&va.path("modified"), "TEXT");
    write_and_hide(&va.path("moving"), "TEXT");
    fs::set_permissions(va.path("attributes"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .expect("set");
    fs::remove_file(va.path("deleted")).expect("removed");
    fs::write(va.path("reverted"), "temp").expect("written");
    fs::write(va.path("reverted"), "text").expect("written");
    fs::write(va.path("forged"), "evil").expect("written");
    let new = va.unit("moving", "2", "moving", "newer");
    let second = va.roll_out([units, vec![new]].concat());
    wait_for("the swap", || va.report().is_some_and(|r| r.generation == Some(second)));
    va.mount.unmount();

    // Who rules the VA's disk says that it was made from what it is now.
    let forged = va.mount.private().join("upper/forged");
    let mut record = [0; 1024];
    let name = "trusted.strata.origin";
    let length = rustix::fs::getxattr(&forged, name, &mut record[..]).expect("a record");
    let record = String::from_utf8(record[..length].to_vec()).expect("text");
    let mut fields: Vec<_> = record.split(' ').map(ToOwned::to_owned).collect();
    fields[7] = strata_core::Digest::of(b"evil").to_string();
    rustix::fs::setxattr(&forged, name, fields.join(" ").as_bytes(), XattrFlags::REPLACE)
        .expect("forged");

    let alone = lines(&diff(&va.mount.private(), &[]));
    assert_eq!(
        alone,
        [
            "A added",
            "M added-over [main/added-over_1]",
            "a attributes [main/attributes_1]",
            "D deleted [main/deleted_1]",
            "R forged [main/forged_1]",
            "M modified [main/modified_1]",
            "M moving [main/moving_1]",
            "R reverted [main/reverted_1]",
        ]
    );
    let store = va.store.root().display().to_string();
    let with_store = lines(&diff(&va.mount.private(), &["--store", &store]));
    assert_eq!(
        with_store,
        [
            "A added",
            "M added-over [main/added-over_1]",
            "a attributes [main/attributes_1]",
            "D deleted [main/deleted_1]",
            "M forged [main/forged_1]",
            "M modified [main/modified_1]",
            "O moving (hides that of main/moving_2) [main/moving_1]",
            "R reverted [main/reverted_1]",
        ]
    );
    let content = diff(&va.mount.private(), &["--store", &store, "--content"]);
    let content = lines(&content).join("\n");
    assert!(content.contains("--- a/modified\n+++ b/modified\n@@ -1 +1 @@\n-text\n"), "{content}");
    assert!(content.contains("--- /dev/null\n+++ b/added\n"), "{content}");
    assert!(content.contains("--- a/deleted\n+++ /dev/null\n"), "{content}");
    // A mount knows its store.
    va.mount();
    let of_the_mount = lines(&diff(&va.mount.path(""), &["--content"])).join("\n");
    assert_eq!(of_the_mount, content);
    va.mount.unmount();
}

/// A copy has names that its original has not: by a link, or in the place of another file.
#[test]
fn a_name_that_its_original_has_not_is_told() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("moved", "text"), ("tool", "tool"), ("x", "text")]);
    fs::hard_link(layer.join("x"), layer.join("y")).expect("linked");
    mount.mount(&[&layer]);
    fs::hard_link(mount.path("y"), mount.path("further")).expect("linked");
    fs::rename(mount.path("moved"), mount.path("tool")).expect("renamed");
    let at = layer.display().to_string();
    let told = |more: &[&str]| -> Vec<String> {
        let lines = lines(&diff(&mount.private(), more)).into_iter();
        lines.map(|line| line.split(" [").next().expect("a part").to_owned()).collect()
    };
    let mut expected = vec!["A further (was y)", "D moved", "M tool (was moved)"];
    assert_eq!((told(&[]), told(&["--layer", &at])), (owned(&expected), owned(&expected)));
    // The copy stays, with a name that its record does not tell.
    fs::remove_file(mount.path("y")).expect("removed");
    expected.push("D y");
    assert_eq!((told(&[]), told(&["--layer", &at])), (owned(&expected), owned(&expected)));
}

fn owned(lines: &[&str]) -> Vec<String> {
    lines.iter().map(|line| (*line).to_owned()).collect()
}

/// With the store, a record that names another file, and a second link, excuse nothing.
#[test]
fn a_record_of_another_file_hides_no_change() {
    let va = Va::new();
    let units = ["good", "other"].map(|name| va.unit(name, "1", name, name));
    va.roll_out(units.to_vec());
    va.mount();
    for name in ["good", "other"] {
        fs::write(va.path(name), "good").expect("written");
    }
    va.mount.unmount();
    let upper = va.mount.private().join("upper");
    let mut record = [0; 1024];
    let name = "trusted.strata.origin";
    let length = rustix::fs::getxattr(upper.join("good"), name, &mut record[..]).expect("read");
    rustix::fs::setxattr(upper.join("other"), name, &record[..length], XattrFlags::REPLACE)
        .expect("forged");
    fs::hard_link(upper.join("other"), va.mount.private().join("work/link")).expect("linked");
    let store = va.store.root().display().to_string();
    let found = lines(&diff(&va.mount.private(), &["--store", &store]));
    let other = "M other (was good) (hides that of main/other_1) [main/good_1]";
    assert_eq!(found, ["R good [main/good_1]", other]);
}

/// One white-out hides a whole directory; what stood in it and does not stand in the one that
/// took its place was removed.
#[test]
fn what_a_replaced_directory_hid_is_deleted() {
    let va = Va::new();
    let file = |path: &str| (path.to_owned(), b"text".to_vec(), 0o644);
    let files = ["d/again", "d/gone", "d/sub/in", "d/sub/same", "whole/x"].map(file);
    let below = va.unit_of("below", "1", &files);
    let above = va.unit_of("above", "1", &[file("d/other"), file("d/gone")]);
    va.roll_out(vec![below.clone(), above.clone()]);
    va.mount();
    fs::remove_dir_all(va.path("d")).expect("removed");
    fs::remove_dir_all(va.path("whole")).expect("removed");
    fs::create_dir_all(va.path("d/sub")).expect("made");
    for name in ["d/again", "d/new", "d/sub/same"] {
        fs::write(va.path(name), "mine").expect("written");
    }
    // A layer that came later is not hidden by what was done before it.
    let later = va.unit_of("later", "1", &[file("d/other")]);
    let second = va.roll_out(vec![below, above, later]);
    wait_for("the swap", || va.report().is_some_and(|r| r.generation == Some(second)));
    assert!(va.path("d/other").exists() && !va.path("d/gone").exists());
    va.mount.unmount();
    let store = va.store.root().display().to_string();
    let found = lines(&diff(&va.mount.private(), &["--store", &store]));
    let deleted = found.iter().filter_map(|line| line.strip_prefix("D ")?.split(' ').next());
    let deleted: Vec<_> = deleted.collect();
    assert_eq!(deleted, ["d/gone", "d/sub/in", "whole"], "{found:?}");
    assert!(found.iter().any(|line| line == "A d/new"), "{found:?}");
    assert!(found.iter().any(|line| line.starts_with("M d/sub/same")), "{found:?}");
}

#[test]
fn contents_of_a_mount_of_plain_directories_are_shown_with_bounds() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("text", "one\ntwo\n"), ("binary", "x")]);
    mount.mount(&[&layer]);
    fs::write(mount.path("text"), "one\nthree\x1b[31m\n").expect("written");
    fs::write(mount.path("binary"), b"\0").expect("written");
    let large = fs::File::create(mount.path("large")).expect("made");
    large.set_len(1 << 40).expect("sparse");
    drop(large);
    let found = lines(&diff(&mount.path(""), &["--content"])).join("\n");
    assert!(found.contains("Binary file binary differs"), "{found}");
    assert!(found.contains("large or its original has 1099511627776 bytes"), "{found}");
    assert!(found.contains(" one\n-two\n+three\\u{1b}[31m"), "{found}");
}

/// What whoever rules a VA's disk may put there must not lead `diff` astray.
#[test]
fn a_hostile_private_directory_is_walked_without_harm() {
    let mount = Mount::new();
    let private = mount.private();
    for name in ["upper", "work", "whiteouts/main"] {
        fs::create_dir_all(private.join(name)).expect("made");
    }
    fs::write(private.join("format"), "strata-private 1\n").expect("written");
    fs::write(private.join("owner"), "ad-hoc\n").expect("written");
    let upper = private.join("upper");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        upper.join("fifo"),
        rustix::fs::FileType::Fifo,
        Mode::from_raw_mode(0o644),
        0,
    )
    .expect("made");
    symlink("/etc/shadow", upper.join("link")).expect("linked");
    symlink("/", upper.join("root")).expect("linked");
    fs::write(upper.join(std::ffi::OsStr::from_bytes(b"\x1b[2J\xff")), "").expect("written");
    let sparse = fs::File::create(upper.join("sparse")).expect("made");
    sparse.set_len(8 << 40).expect("sparse");
    let record = format!(
        "1 main/x 644 0 0 {} 0.000000000 {} {} sparse",
        8_u64 << 40,
        strata_core::Digest::of(b"x"),
        strata_core::Digest::of(b"")
    );
    rustix::fs::setxattr(
        upper.join("sparse"),
        "trusted.strata.origin",
        record.as_bytes(),
        XattrFlags::empty(),
    )
    .expect("forged");
    let found = lines(&diff(&private, &["--content"]));
    let names: Vec<_> = found.iter().filter(|line| line.contains("sparse")).collect();
    assert_eq!(names[0], "M sparse [main/x]");
    for line in ["A fifo", "A link", "A root"] {
        assert!(found.iter().any(|found| found == line), "{line}: {found:?}");
    }
    assert!(found.iter().any(|line| line == "A \\u{1b}[2J\u{fffd}"), "{found:?}");

    let mut directory = fs::File::open(&upper).expect("opened");
    for _ in 0..3000 {
        rustix::fs::mkdirat(&directory, "d", Mode::from_raw_mode(0o755)).expect("made");
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY;
        directory =
            rustix::fs::openat(&directory, "d", flags, Mode::empty()).expect("opened").into();
    }
    let deep = diff(&private, &[]);
    assert_eq!(deep.status.code(), Some(2));
    let error = String::from_utf8_lossy(&deep.stderr).into_owned();
    assert!(error.contains("upper/d/d/"), "{error}");
    assert!(error.contains("was not walked: what is below is deeper than a path"), "{error}");
    // Whoever makes such a tree hides nothing by it.
    let listed = String::from_utf8_lossy(&deep.stdout).into_owned();
    for line in ["A d/d", "A fifo", "M sparse [main/x]"] {
        assert!(listed.lines().any(|listed| listed == line), "{line}");
    }
    let removed = Command::new("rm").arg("-rf").arg(upper.join("d")).status().expect("rm runs");
    assert!(removed.success());

    symlink("/etc", private.join("whiteouts/main/unit")).expect("linked");
    let linked = diff(&private, &[]);
    assert_eq!(linked.status.code(), Some(2), "no link is followed");
}

fn run(arguments: &[&str], path: &Path) -> Output {
    Command::new(PROGRAM).args(arguments).arg(path).output().expect("the program runs")
}

fn done(arguments: &[&str], path: &Path) -> String {
    let output = run(arguments, path);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn reset_gives_a_fresh_layer_and_keeps_the_old_one_to_salvage_from() {
    let mut mount = Mount::new();
    let layer = mount.layer("one", &[("program", "original"), ("gone", "original")]);
    mount.mount(&[&layer]);
    let refused = run(&["reset"], &mount.private());
    assert_eq!(refused.status.code(), Some(2), "it is mounted");
    fs::write(mount.path("program"), "implant").expect("written");
    fs::write(mount.path("precious"), "work").expect("written");
    fs::remove_file(mount.path("gone")).expect("removed");
    mount.unmount();
    fs::create_dir_all(mount.private().join("data")).expect("made");
    fs::write(mount.private().join("data/mail"), "kept").expect("written");
    done(&["reset"], &mount.private());
    let listed = done(&["reset", "--list"], &mount.private());
    let name = listed.split(' ').next().expect("a name").to_owned();
    assert_eq!(listed.lines().count(), 1, "{listed}");

    mount.extra = vec!["--attach".to_owned(), format!("salvage={name}")];
    mount.mount(&[&layer]);
    assert_eq!(crate::fixture::names(mount.path("")), ["gone", "program", "salvage"]);
    assert_eq!(crate::fixture::read(mount.path("program")), "original");
    assert_eq!(crate::fixture::names(mount.path("salvage")), ["precious", "program"]);
    assert_eq!(crate::fixture::read(mount.path("salvage/program")), "implant");
    let written = fs::write(mount.path("salvage/precious"), "x").expect_err("read-only");
    assert_eq!(written.raw_os_error(), Some(rustix::io::Errno::ROFS.raw_os_error()));
    fs::copy(mount.path("salvage/precious"), mount.path("precious")).expect("salvaged");
    assert_eq!(crate::fixture::read(mount.private().join("data/mail")), "kept");
    let former = mount.private().join("former").join(&name);
    let found = lines(&diff(&former, &[])).join("\n");
    assert!(found.contains("A precious") && found.contains("D gone"), "{found}");

    let refused = run(&["reset", "--forget", &name], &mount.private());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "it is attached");
    assert!(said.contains("is mounted") && said.contains("hint: unmount it first"), "{said}");
    assert_eq!(crate::fixture::read(mount.path("salvage/precious")), "work");
    let daemon = mount.daemon();
    let both = Command::new("umount").arg("-R").arg(mount.path("")).status().expect("it runs");
    assert!(both.success());
    wait_for("the daemon's end", || !Path::new(&format!("/proc/{daemon}/fd/0")).exists());
    done(&["reset", "--forget", &name], &mount.private());
    assert_eq!(done(&["reset", "--list"], &mount.private()), "");
    assert_eq!(crate::fixture::names(mount.private().join("former")), [""; 0]);
}

/// A crash at each step of a reset: the next mount shows the old layer or the new
/// one, never both in part, and the old one is kept whole.
#[test]
fn a_reset_that_is_cut_short_is_old_or_new() {
    use strata_vlfs::private::disk::Disk;
    let (mut old, mut new) = (0, 0);
    for step in 0.. {
        let mount = Mount::new();
        let layer = mount.layer("one", &[("program", "original"), ("gone", "original")]);
        mount.mount(&[&layer]);
        fs::write(mount.path("program"), "implant").expect("written");
        fs::remove_file(mount.path("gone")).expect("removed");
        mount.unmount();
        let cut = strata_vlfs::reset::reset_with(&mount.private(), &Disk::failing_at(step));
        mount.mount(&[&layer]);
        let shown = crate::fixture::read(mount.path("program"));
        let former = strata_vlfs::reset::list(&mount.private()).expect("listed");
        let kept = match (shown.as_str(), former.first()) {
            ("implant", None) => mount.private(),
            ("original", Some(former)) => former.path.clone(),
            (shown, former) => panic!("step {step}: {shown} and {former:?}"),
        };
        let is_new = shown == "original";
        assert_eq!(mount.path("gone").exists(), is_new, "step {step}");
        let mut found = lines(&diff(&kept, &[]));
        found.iter_mut().for_each(|line| line.truncate(10));
        assert_eq!(found, ["D gone [@p", "M program "], "step {step}");
        if is_new {
            new += 1
        } else {
            old += 1
        }
        if cut.is_ok() {
            break;
        }
    }
    assert!(old > 2 && new > 5, "both sides were seen: {old} old, {new} new");
}

#[test]
fn unmounting_and_mounting_at_once_works() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("a", "a")]);
    for _ in 0..5 {
        mount.mount(&[&layer]);
        fs::write(mount.path("b"), vec![7; 1 << 20]).expect("written");
        let done = Command::new("umount").arg(mount.path("")).status().expect("umount runs");
        assert!(done.success());
    }
}
