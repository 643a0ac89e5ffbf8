//! Descriptors are few: what anybody makes or opens leaves enough to go on and to be
//! controlled.

use std::fs::{self, File};

use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit};

use crate::fixture::{Mount, read};

const FEW: u64 = 400;

/// A mount whose daemon may have few descriptors from now on.
fn with_few() -> (Mount, std::path::PathBuf) {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("a", "a"), ("d/b", "b")]);
    mount.mount(&[&layer]);
    let pid = Pid::from_raw(i32::try_from(mount.daemon()).expect("small"));
    let before = rustix::process::getrlimit(Resource::Nofile);
    let few = Rlimit { current: Some(FEW), maximum: before.maximum };
    rustix::process::prlimit(pid, Resource::Nofile, few).expect("set");
    (mount, layer)
}

fn descriptors(mount: &Mount) -> u64 {
    let status: serde_json::Value = serde_json::from_str(&mount.status()).expect("JSON");
    status["gauges"]["descriptors"].as_u64().expect("counted")
}

fn is_controlled(mount: &Mount, layer: &std::path::Path) {
    assert_eq!(read(mount.path("a")), "a");
    assert_eq!(read(mount.path("d/b")), "b");
    let more = mount.layer("more", &[("c", "c")]);
    mount.swap(&[&more, layer]);
    assert_eq!(read(mount.path("c")), "c");
    mount.swap(&[layer]);
}

#[test]
fn any_number_of_directories_leaves_the_daemon_its_descriptors() {
    let (mount, layer) = with_few();
    let number = usize::try_from(4 * FEW).expect("small");
    let path = |n: usize| mount.path(&format!("made/{n}"));
    fs::create_dir(mount.path("made")).expect("made");
    for n in 0..number {
        fs::create_dir_all(path(n).join("sub")).expect("made");
    }
    assert!(descriptors(&mount) < FEW * 3 / 4, "{} of {FEW}", descriptors(&mount));
    is_controlled(&mount, &layer);
    // Those that were let go are opened again, and are what they were.
    for n in (0..number).step_by(7) {
        fs::write(path(n).join("sub/file"), n.to_string()).expect("written");
    }
    fs::rename(mount.path("made"), mount.path("moved")).expect("renamed");
    for n in (0..number).step_by(7) {
        let file = mount.path(&format!("moved/{n}/sub/file"));
        assert_eq!(read(&file), n.to_string());
        fs::remove_dir_all(mount.path(&format!("moved/{n}"))).expect("removed");
    }
    // One that was removed stays what it was for who is in it.
    let inside = File::open(mount.path("moved/1")).expect("opened");
    fs::remove_dir_all(mount.path("moved/1")).expect("removed");
    fs::create_dir(mount.path("moved/1")).expect("made anew");
    fs::write(mount.path("moved/1/new"), "").expect("written");
    for n in (2..number).filter(|n| n % 7 != 0) {
        assert_eq!(fs::read_dir(mount.path(&format!("moved/{n}"))).expect("listed").count(), 1);
    }
    let listed = rustix::fs::Dir::read_from(&inside).expect("opened");
    let names: Vec<_> = listed.map(|name| name.expect("listed").file_name().to_owned()).collect();
    assert!(names.iter().all(|name| name.to_bytes().starts_with(b".")), "{names:?}");
    // An upgrade passes on no more than that.
    let mount_point = mount.path("").display().to_string();
    let done = mount.run(&["upgrade", &mount_point, "--binary", crate::fixture::PROGRAM]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(fs::read_dir(mount.path("moved/2/sub")).expect("listed").count(), 0);
    fs::write(mount.path("moved/2/sub/file"), "after").expect("written");
    assert!(inside.metadata().expect("described").is_dir());
    drop(inside);
    mount.unmount();
}

#[test]
fn any_number_of_open_files_leaves_the_daemon_a_reserve() {
    let (mount, layer) = with_few();
    let mut open = Vec::new();
    let refused = loop {
        let n = open.len();
        match File::create(mount.path(&format!("file{n}"))) {
            Ok(file) => open.push(file),
            Err(error) => break error,
        }
        assert!(n < 2 * usize::try_from(FEW).expect("small"), "nothing is refused");
    };
    assert_eq!(refused.raw_os_error(), Some(Errno::MFILE.raw_os_error()), "{refused}");
    let made = mount.path(&format!("file{}", open.len()));
    assert!(!made.exists(), "what cannot be opened is not made");
    assert!(descriptors(&mount) < FEW);
    fs::create_dir_all(mount.path("x/y/z")).expect("directories need none");
    let more = mount.layer("more", &[("c", "c")]);
    mount.swap(&[&more, &layer]);
    mount.swap(&[&layer]);
    open.truncate(open.len() / 2);
    // What is only kept for the next open makes room.
    is_controlled(&mount, &layer);
    drop(open);
    mount.unmount();
}
