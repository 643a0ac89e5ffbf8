//! §4.3: a VA is a record and a link.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use strata_core::MacAddr;
use strata_machine::{ProvisionError, ProvisionRequest};
use strata_store::VaTarget;

use crate::fleet::{Fleet, request, va};

#[test]
fn a_record_and_a_link() {
    let fleet = Fleet::new();
    let mac: MacAddr = "52:54:00:12:34:56".parse().expect("valid");
    let wanted = ProvisionRequest { mac: Some(mac), ..request("web-0001") };
    let made = fleet.machines().provision(&wanted, &mut |_, _| ()).expect("provisioned");
    assert_eq!(made[0].record.mac, mac);
    let link = fs::read_link(fleet.store.root().join("va/52:54:00:12:34:56")).expect("a link");
    assert_eq!(link.to_str(), Some("../rings/web-server/everyone/web-server.ldf"));
    let record = fleet.store.machines().join("web-0001/va.json");
    let golden = include_str!("../../golden/va.json");
    assert_eq!(fs::read_to_string(record).expect("a record"), golden);
    let again = fleet.machines().provision(&wanted, &mut |_, _| ());
    assert!(matches!(again, Err(ProvisionError::Exists(_))), "{again:?}");
    let other = ProvisionRequest { mac: Some(mac), ..request("other") };
    let other = fleet.machines().provision(&other, &mut |_, _| ());
    assert!(matches!(other, Err(ProvisionError::MacTaken { owner: Some(_), .. })), "{other:?}");
    assert!(!fleet.store.machines().join("other").exists());
}

#[test]
fn a_declared_va_gets_its_record() {
    let fleet = Fleet::new();
    let link = |mac: &str, composition: &str| {
        let mac: MacAddr = mac.parse().expect("valid");
        let composition = composition.parse().expect("valid");
        let ring = "everyone".parse().expect("valid");
        fleet.store.claim_va(mac, &VaTarget::Ring { composition, ring }).expect("linked");
        mac
    };
    // As the reconciler links the VAs of `appliances.toml`.
    let declared = link("52:54:00:00:00:01", "web-server");
    let elsewhere = link("52:54:00:00:00:02", "sql-server");

    let wanted = ProvisionRequest { mac: Some(declared), ..request("web-01") };
    let made = fleet.machines().provision(&wanted, &mut |_, _| ()).expect("provisioned");
    assert_eq!(made[0].record.mac, declared);
    let other = fleet
        .machines()
        .provision(&ProvisionRequest { mac: Some(declared), ..request("other") }, &mut |_, _| ());
    assert!(matches!(other, Err(ProvisionError::MacTaken { owner: Some(_), .. })), "{other:?}");

    // While its ring swaps in batches, too.
    let batched = link("52:54:00:00:00:03", "web-server");
    fleet.batch(batched);
    let wanted = ProvisionRequest { mac: Some(batched), ..request("web-03") };
    let made = fleet.machines().provision(&wanted, &mut |_, _| ()).expect("provisioned");
    assert_eq!((made[0].record.mac, made[0].record.ring.as_str()), (batched, "everyone"));

    let wanted = ProvisionRequest { mac: Some(elsewhere), ..request("web-02") };
    let refused = fleet.machines().provision(&wanted, &mut |_, _| ());
    assert!(matches!(refused, Err(ProvisionError::Linked { .. })), "{refused:?}");
    assert!(!fleet.store.machines().join("web-02").exists());
}

#[test]
fn what_was_not_rolled_out_is_refused() {
    let fleet = Fleet::new();
    let unknown =
        ProvisionRequest { composition: "no-such".parse().expect("valid"), ..request("x") };
    let refused = fleet.machines().provision(&unknown, &mut |_, _| ());
    assert!(matches!(refused, Err(ProvisionError::NoTemplate(_))), "{refused:?}");
    let ring = ProvisionRequest { ring: Some("canary".parse().expect("valid")), ..request("x") };
    let refused = fleet.machines().provision(&ring, &mut |_, _| ());
    assert!(matches!(refused, Err(ProvisionError::NoRing { .. })), "{refused:?}");
}

#[test]
fn a_half_is_completed() {
    let fleet = Fleet::new();
    // Died after the directory; after an empty record; before the link.
    fs::create_dir(fleet.store.machines().join("a")).expect("made");
    fs::create_dir(fleet.store.machines().join("b")).expect("made");
    fs::write(fleet.store.machines().join("b/va.json"), "").expect("written");
    fleet.provision("c");
    let mac = fleet.machines().record(&va("c")).expect("there").mac;
    fleet.store.release_va(mac).expect("released");
    for name in ["a", "b", "c"] {
        let made = fleet.machines().provision(&request(name), &mut |_, _| ()).expect(name);
        assert!(made[0].completed);
        assert!(fleet.store.va_target(made[0].record.mac).expect("read").is_some());
    }
    assert_eq!(fleet.store.va_links().expect("read").targets.len(), 3);
}

#[test]
fn a_va_that_is_damaged_keeps_its_name_and_nobody_else_from_theirs() {
    let fleet = Fleet::new();
    let many = |count| ProvisionRequest { count: Some(count), name: None, ..request("x") };
    fleet.machines().provision(&many(2), &mut |_, _| ()).expect("provisioned");
    let record = fleet.store.machines().join("web-server-0001/va.json");
    fs::write(&record, "{").expect("damaged");
    let other = fleet.machines().record(&va("web-server-0002")).expect("there").mac;
    fleet.store.release_va(other).expect("released");
    fs::create_dir(fleet.store.root().join(format!("va/{other}"))).expect("in the link's place");
    let made = fleet.machines().provision(&many(2), &mut |_, _| ()).expect("provisioned");
    let names: Vec<_> = made.into_iter().map(|va| va.record.name).collect();
    assert_eq!(names, [va("web-server-0003"), va("web-server-0004")]);
    assert_eq!(fs::read_to_string(record).expect("left"), "{");
}

#[test]
fn commands_at_once_never_collide() {
    let fleet = Fleet::new();
    let many = ProvisionRequest { count: Some(50), name: None, ..request("x") };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| fleet.machines().provision(&many, &mut |_, _| ()).expect("provisioned"));
        }
    });
    let names = fleet.machines().names().expect("listed");
    assert_eq!(names.len(), 200);
    assert_eq!(names[0], va("web-server-0001"));
    assert_eq!(names[199], va("web-server-0200"));
    let records = fleet.machines().records().expect("listed");
    let macs: BTreeSet<_> = records.into_iter().map(|record| record.expect("whole").mac).collect();
    assert_eq!(macs, fleet.store.va_links().expect("read").targets.into_keys().collect());
    // One name, several commands: one wins.
    let results: Vec<_> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| fleet.machines().provision(&request("one"), &mut |_, _| ())))
            .collect();
        all.into_iter().map(|one| one.join().expect("no panic")).collect()
    });
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    assert!(results.iter().all(|r| matches!(r, Ok(_) | Err(ProvisionError::Exists(_)))));
}

#[test]
fn destroying_leaves_nothing() {
    let fleet = Fleet::new();
    fleet.provision("web");
    let outside = fleet.fake().join("private");
    let elsewhere = ProvisionRequest { private: Some(outside.clone()), ..request("elsewhere") };
    fleet.machines().provision(&elsewhere, &mut |_, _| ()).expect("provisioned");
    for name in ["web", "elsewhere"] {
        fleet.start(name, &[]);
        let running = fleet.machines().destroy(&va(name));
        assert!(matches!(running, Err(ProvisionError::Machine(_))), "{running:?}");
        fleet.machines().stop(&va(name), Duration::ZERO).expect("stopped");
        assert_eq!(fleet.machines().destroy(&va(name)).expect("destroyed"), None);
    }
    assert!(!outside.exists());
    assert_eq!(fs::read_dir(fleet.store.machines()).expect("listed").count(), 0);
    assert!(fleet.store.va_links().expect("read").targets.is_empty());
}

#[test]
fn ten_thousand_in_seconds() {
    // In memory: what is judged is what Strata does, not what the disk does.
    let fleet = Fleet::within(Path::new("/dev/shm"));
    let many = ProvisionRequest { count: Some(10_000), ..request("web") };
    let began = Instant::now();
    let made = fleet.machines().provision(&many, &mut |_, _| ()).expect("provisioned");
    let provisioned = began.elapsed();
    assert_eq!(made.len(), 10_000);
    let began = Instant::now();
    let machines = fleet.machines();
    for record in machines.records().expect("listed") {
        machines.run_state(&record.expect("whole")).expect("a state");
    }
    let listed = began.elapsed();
    println!("10,000 VAs: provisioned in {provisioned:?}, listed with run state in {listed:?}");
    assert!(provisioned < Duration::from_secs(20), "{provisioned:?}");
    assert!(listed < Duration::from_secs(5), "{listed:?}");
}
