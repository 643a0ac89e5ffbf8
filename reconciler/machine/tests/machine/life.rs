//! Renaming and cloning, and what either leaves when it is cut off.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, XattrFlags};
use strata_core::MacAddr;
use strata_machine::{CloneRequest, MachineError, ProvisionError};
use strata_store::VaTarget;

use crate::fleet::{Fleet, composition, request, va};

fn clone_request(source: &str, name: &str) -> CloneRequest {
    CloneRequest { source: va(source), name: va(name), ring: None, mac: None, private: true }
}

fn entries(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .expect("listed")
        .map(|entry| entry.expect("listed").file_name().into_string().expect("UTF-8"))
        .collect();
    names.sort();
    names
}

/// A stopped VA that has written something.
fn written(fleet: &Fleet, name: &str) -> MacAddr {
    fleet.provision(name);
    fleet.start(name, &[]);
    fleet.sh(name, "echo mine >/etc/mine; mkdir -p /srv; echo data >/srv/data");
    fleet.machines().stop(&va(name), Duration::ZERO).expect("stopped");
    let machines = fleet.machines();
    let private = machines.directory(&va(name)).join("private");
    fs::write(private.join("owner"), "52:54:00:00:00:01\n").expect("written");
    machines.record(&va(name)).expect("there").mac
}

#[test]
fn a_renamed_va_is_the_same_va() {
    let fleet = Fleet::new();
    let mac = written(&fleet, "old");
    fleet.provision("other");
    let taken = fleet.machines().rename(&va("old"), &va("other"));
    assert!(matches!(taken, Err(ProvisionError::Exists(_))), "{taken:?}");
    let record = fleet.machines().rename(&va("old"), &va("new")).expect("renamed");
    assert_eq!((record.name, record.mac), (va("new"), mac));
    assert_eq!(fleet.machines().names().expect("listed"), [va("new"), va("other")]);
    fleet.start("new", &[]);
    assert_eq!(fleet.sh_stdout("new", "cat /etc/mine; hostname"), "mine\nnew");
    let running = fleet.machines().rename(&va("new"), &va("newer"));
    let running = running.expect_err("it runs");
    assert!(matches!(running, ProvisionError::Machine(MachineError::Running(_))), "{running}");
    let gone = fleet.machines().rename(&va("old"), &va("x")).expect_err("it has another name");
    assert!(matches!(gone, ProvisionError::Machine(MachineError::NoVa(_))), "{gone}");
}

#[test]
fn an_interrupted_rename_is_finished() {
    let fleet = Fleet::new();
    for rewritten in [false, true] {
        fleet.provision("old");
        let mac = fleet.machines().record(&va("old")).expect("there").mac;
        let machines = fleet.store.machines();
        // Died before, or after, the record got the new name.
        fs::rename(machines.join("old"), machines.join(".renamed-new")).expect("moved");
        if rewritten {
            let path = machines.join(".renamed-new/va.json");
            let text = fs::read_to_string(&path).expect("read");
            fs::write(&path, text.replace("\"name\":\"old\"", "\"name\":\"new\""))
                .expect("written");
        }
        let record = fleet.machines().rename(&va("old"), &va("new")).expect("finished");
        assert_eq!((record.name, record.mac), (va("new"), mac));
        assert_eq!(entries(&machines), ["new"]);
        fleet.machines().destroy(&va("new")).expect("destroyed");
    }
    // By any other command, too.
    fleet.provision("old");
    let machines = fleet.store.machines();
    fs::rename(machines.join("old"), machines.join(".renamed-new")).expect("moved");
    fleet.provision("third");
    assert_eq!(fleet.machines().names().expect("listed"), [va("new"), va("third")]);
}

#[test]
fn a_clone_without_the_private_layer_is_a_new_va() {
    let fleet = Fleet::new();
    let mac = written(&fleet, "web");
    let wanted = CloneRequest { private: false, ..clone_request("web", "second") };
    let made = fleet.machines().clone_va(&wanted).expect("cloned").record;
    assert_ne!(made.mac, mac);
    assert_eq!(entries(&fleet.machines().directory(&va("second"))), ["va.json"]);
    let desired = |mac| fleet.store.desired(mac).expect("read").expect("linked");
    assert_eq!(desired(made.mac), desired(mac));
    // A running VA can be cloned so, a pinned one into its ring.
    let generation = desired(mac);
    let pinned = VaTarget::Pinned { composition: composition(), generation };
    fleet.store.move_va(mac, &pinned).expect("pinned");
    fleet.start("web", &[]);
    let wanted = CloneRequest { private: false, ..clone_request("web", "third") };
    let made = fleet.machines().clone_va(&wanted).expect("cloned").record;
    let target = fleet.store.va_target(made.mac).expect("read");
    assert!(matches!(target, Some(VaTarget::Ring { .. })), "{target:?}");
}

#[test]
fn a_clone_follows_the_ring_and_no_batch_of_it() {
    let fleet = Fleet::new();
    let mac = written(&fleet, "web");
    fleet.batch(mac);
    let own =
        VaTarget::Ring { composition: composition(), ring: "everyone".parse().expect("valid") };
    for (name, private) in [("second", false), ("third", true)] {
        let wanted = CloneRequest { private, ..clone_request("web", name) };
        let made = fleet.machines().clone_va(&wanted).expect("cloned").record;
        let target = fleet.store.va_target(made.mac).expect("read");
        assert_eq!((target.as_ref(), made.ring.as_str()), (Some(&own), "everyone"), "{name}");
    }
}

#[test]
fn a_clone_with_the_private_layer_has_all_of_it() {
    let fleet = Fleet::new();
    let mac = written(&fleet, "web");
    let private = fleet.machines().directory(&va("web")).join("private");
    fs::create_dir_all(private.join("borrowed/main")).expect("made");
    fs::hard_link(private.join("upper/etc/mine"), private.join("borrowed/main/1")).expect("linked");
    let mine = private.join("upper/etc/mine");
    rustix::fs::setxattr(&mine, "trusted.strata.ino", b"0000000000000007", XattrFlags::empty())
        .expect("set");
    fs::create_dir_all(private.join("former/1-20261128T000000Z")).expect("made");
    fs::write(private.join("vlfs.log"), "a log").expect("written");
    let hole = fs::File::create(private.join("upper/srv/hole")).expect("made");
    hole.set_len(1 << 30).expect("grown");

    let made = fleet.machines().clone_va(&clone_request("web", "copy")).expect("cloned").record;
    assert_ne!(made.mac, mac);
    let copy = fleet.machines().directory(&va("copy")).join("private");
    assert_eq!(fs::read_to_string(copy.join("owner")).expect("read"), format!("{}\n", made.mac));
    let stat = |path: &str| fs::metadata(copy.join(path)).expect(path);
    assert_eq!(stat("upper/etc/mine").ino(), stat("borrowed/main/1").ino());
    assert!(stat("upper/srv/hole").blocks() < 100);
    let mut value = [0; 32];
    let length =
        rustix::fs::getxattr(copy.join("upper/etc/mine"), "trusted.strata.ino", &mut value[..])
            .expect("kept");
    assert_eq!(&value[..length], b"0000000000000007");
    assert!(!copy.join("former").exists());
    assert!(!copy.join("vlfs.log").exists());
    assert_eq!(entries(&fleet.machines().directory(&va("copy"))), ["lock", "private", "va.json"]);
    fleet.start("copy", &[]);
    assert_eq!(fleet.sh_stdout("copy", "cat /etc/mine /srv/data"), "mine\ndata");
    let running = fleet.machines().clone_va(&clone_request("copy", "third"));
    assert!(
        matches!(running, Err(ProvisionError::Machine(MachineError::Running(_)))),
        "{running:?}"
    );
    let taken = fleet.machines().clone_va(&clone_request("web", "copy"));
    assert!(matches!(taken, Err(ProvisionError::Exists(_))), "{taken:?}");
}

#[test]
fn a_clone_that_fails_or_dies_leaves_nothing() {
    let fleet = Fleet::new();
    let mac = written(&fleet, "web");
    let machines = fleet.store.machines();
    let taken = CloneRequest { mac: Some(mac), ..clone_request("web", "copy") };
    let refused = fleet.machines().clone_va(&taken);
    assert!(matches!(refused, Err(ProvisionError::MacTaken { .. })), "{refused:?}");
    assert_eq!(entries(&machines), ["web"]);

    // Another host's VLFS serves the private layer.
    let lock = fs::File::create(machines.join("web/private/lock")).expect("made");
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).expect("locked");
    let refused = fleet.machines().clone_va(&clone_request("web", "copy"));
    assert!(matches!(refused, Err(ProvisionError::InUse(_))), "{refused:?}");
    drop(lock);

    // Died after it had claimed an address, before it was a VA.
    let made = fleet.machines().clone_va(&clone_request("web", "copy")).expect("cloned").record;
    fs::rename(machines.join("copy"), machines.join(".cloned-copy")).expect("moved");
    fs::write(machines.join(".cloned-copy/claim"), "").expect("written");
    // Another one that is still at work.
    let busy = machines.join(".cloned-busy");
    fs::create_dir(&busy).expect("made");
    let lock = fs::File::create(busy.join("lock")).expect("made");
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).expect("locked");
    fleet.provision("third");
    assert_eq!(entries(&machines), [".cloned-busy", "third", "web"]);
    assert_eq!(fleet.store.va_target(made.mac).expect("read"), None);
    let same = fleet.machines().clone_va(&clone_request("web", "busy"));
    assert!(matches!(same, Err(ProvisionError::Cloning(_))), "{same:?}");
    drop(lock);
    fleet.machines().clone_va(&clone_request("web", "busy")).expect("cloned");
    assert_eq!(entries(&machines), ["busy", "third", "web"]);
}

#[test]
fn clones_at_once_never_collide() {
    let fleet = Fleet::new();
    written(&fleet, "web");
    fleet.machines().provision(&request("other"), &mut |_, _| ()).expect("provisioned");
    let results: Vec<_> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| fleet.machines().clone_va(&clone_request("web", "copy"))))
            .collect();
        all.into_iter().map(|one| one.join().expect("no panic")).collect()
    });
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
    assert_eq!(entries(&fleet.store.machines()), ["copy", "other", "web"]);
    assert_eq!(fleet.store.va_links().expect("read").targets.len(), 3);
}
