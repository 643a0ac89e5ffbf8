//! What git no longer has, and pins: nothing is done that is not told before, and nothing to
//! a VA that may run.

use std::sync::atomic::AtomicBool;

use strata::pass::PassReport;
use strata::rollout::RolloutFile;
use strata::rollout::request::{Ask, Request};
use strata_core::event::Event;
use strata_core::report::{Report, ServingState};
use strata_core::rollout::Order;
use strata_store::VaTarget;

use super::{bump, gated, golden, phase, report, settle, step};
use crate::support::{World, mac, name};

#[test]
fn what_git_no_longer_has_goes_within_the_limit_or_when_it_is_confirmed() {
    let world = gated("\n[prune]\nlimit = 1\n");
    let declare = |numbers: std::ops::Range<u32>| declare_sql(&world, numbers);
    let linked = |number| world.store.va_target(mac(number)).expect("readable").is_some();
    declare(10..13);
    assert!((10..13).all(linked));
    declare(10..12);
    assert!(!linked(12) && linked(10), "one a pass is allowed");
    let report = declare(0..0);
    assert!(linked(10) && linked(11), "two are too many: {report:?}");
    let waiting = RolloutFile::read(&world.store).expect("readable").removals_waiting;
    let token = waiting.expect("they wait").token;
    let before = world.snapshot();
    world.once();
    world.assert_unchanged(&before);
    let ask = Ask::ConfirmRemovals { token };
    Request::new("ann".to_owned(), String::new(), ask).submit(&world.store).expect("submitted");
    world.once();
    assert!(!linked(10) && !linked(11));
    assert!((0..6).all(linked), "VAs that nobody declared stay");
    // A template that is gone goes ring by ring, here again two.
    world.remove("templates/sql.ldf");
    world.push("retire sql");
    world.once();
    assert!(world.ring("sql", "canary").is_some(), "two rings are too many");
    // An empty source removes nothing, whatever is confirmed.
    world.remove("templates/web.ldf");
    world.push("nothing left");
    world.once();
    assert!(world.ring("web", "canary").is_some() && linked(0));
}

/// The link of a VA that may run anywhere stays, whatever git says.
#[test]
fn only_a_va_that_surely_rests_loses_its_link() {
    let world = gated("\n[prune]\nlimit = 9\n");
    declare_sql(&world, 10..15);
    let linked = |number| world.store.va_target(mac(number)).expect("readable").is_some();
    let serves = world.ring("sql", "everyone");
    // 10 runs elsewhere. 11 did, and is silent since: suspended, or its host is away.
    report(&world, 10, serves, None);
    let with = |number, change: &dyn Fn(&mut Report)| {
        let mut report = golden();
        (report.mac, report.host) = (mac(number), "elsewhere".to_owned());
        change(&mut report);
        strata_store::write_report(&world.store.reports(), &report).expect("written");
    };
    with(11, &|report| report.written_at_ms = 1);
    with(12, &|report| report.state = ServingState::Stopped);
    std::fs::write(world.store.reports().join(mac(13).to_string()), "{").expect("rubbish");
    // 14 says that it has stopped, and its private layer is mounted somewhere.
    provision(&world, "sql-14", 14);
    with(14, &|report| report.state = ServingState::Stopped);
    let private = world.store.machines().join("sql-14/private");
    std::fs::create_dir(&private).expect("made");
    let lock = std::fs::File::create(private.join("lock")).expect("made");
    lock.lock().expect("locked");
    declare_sql(&world, 0..0);
    assert_eq!((10..15).filter(|n| linked(*n)).collect::<Vec<_>>(), [10, 11, 13, 14]);
    assert!(world.ring("sql", "everyone").is_some());
    drop(lock);
    with(10, &|report| report.state = ServingState::Stopped);
    with(11, &|report| report.state = ServingState::Stopped);
    world.once();
    assert_eq!((10..15).filter(|n| linked(*n)).collect::<Vec<_>>(), [13]);
    assert!(world.store.machines().join("sql-14/va.json").exists(), "its machine stays");
}

#[test]
fn who_was_there_before_a_commit_declared_him_stays_when_none_does() {
    let world = gated("\n[prune]\nlimit = 9\n");
    provision(&world, "sql-10", 10);
    declare_sql(&world, 10..12);
    // A commit brought this one, and then it got its machine.
    provision(&world, "sql-11", 11);
    declare_sql(&world, 0..0);
    let linked = |number| world.store.va_target(mac(number)).expect("readable").is_some();
    assert!(linked(10) && !linked(11));
    // His machine is destroyed, and a commit brings him anew: now the link is the commit's.
    declare_sql(&world, 10..11);
    let machines = strata_machine::Machines::open(&world.store).expect("machines");
    machines.destroy(&name("sql-10")).expect("destroyed");
    world.once();
    assert!(linked(10));
    declare_sql(&world, 0..0);
    assert!(!linked(10));
}

#[test]
fn what_cannot_be_told_is_not_removed() {
    let world = gated("\n[prune]\nlimit = 9\n");
    declare_sql(&world, 10..11);
    world.write("appliances.toml", "");
    world.push("declare nobody");
    let pin = (String::new(), "ann".to_owned(), 0);
    let first = world.ring("web", "everyone").expect("a generation");
    strata::rollout::pins::pin(&world.store, mac(3), first, Some(1), pin).expect("pinned");
    let (log, away) = (world.store.state("audit"), world.store.state("audit-away"));
    std::fs::rename(&log, &away).expect("moved");
    std::fs::write(&log, "").expect("no directory");
    let never = AtomicBool::new(false);
    let mut reconciler = world.reconciler();
    assert!(reconciler.pass(&never).is_err());
    assert!(world.store.va_target(mac(10)).expect("readable").is_some());
    let target = world.store.va_target(mac(3)).expect("readable");
    assert!(matches!(target, Some(VaTarget::Pinned { .. })), "{target:?}");
    std::fs::remove_file(&log).expect("removed");
    std::fs::rename(&away, &log).expect("back");
    let told = reconciler.pass(&never).expect("a pass").events;
    assert!(told.iter().any(|told| matches!(told.event, Event::VaRemoved { .. })), "{told:?}");
    assert!(told.iter().any(|told| matches!(told.event, Event::VaUnpinned { .. })), "{told:?}");
    assert!(world.store.va_target(mac(10)).expect("readable").is_none());
}

fn declare_sql(world: &World, numbers: std::ops::Range<u32>) -> PassReport {
    let table =
        |n| format!("[[appliance]]\nname = \"sql-{n}\"\nmac = \"{}\"\nldf = \"sql\"\n", mac(n));
    let text: String = numbers.map(table).collect();
    world.write("appliances.toml", &text);
    world.push("declare");
    world.once()
}

fn provision(world: &World, va: &str, number: u32) {
    let machines = strata_machine::Machines::open(&world.store).expect("machines");
    let request = strata_machine::ProvisionRequest {
        name: Some(name(va)),
        composition: name("sql"),
        ring: Some(name("everyone")),
        count: None,
        mac: Some(mac(number)),
        private: None,
        driver: strata_machine::Driver::Namespace,
    };
    machines.provision(&request, &mut |_, _| {}).expect("provisioned");
}

/// Commands and the reconciler are different processes.
#[test]
fn pins_and_unpins_are_not_undone_by_who_looks_after_them() {
    use strata::rollout::pins;
    let world = gated("");
    let first = world.ring("web", "everyone").expect("a generation");
    let ring = world.store.va_target(mac(3)).expect("readable");
    let done = AtomicBool::new(false);
    let policy = strata_core::rollout::policy::RolloutPolicy::plain([]);
    let rules = pins::Rules { desired: None, policy: &policy, now_ms: 1 };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let unreadable = &mut Default::default();
                pins::look_after(&world.store, rules, unreadable, |_| true, |_| Ok(()))
                    .expect("looked after");
            }
        });
        for round in 0..60 {
            let told = ("because".to_owned(), "ann".to_owned(), 0);
            let pinned = pins::pin(&world.store, mac(3), first, None, told);
            let unpinned = pinned.and_then(|_| pins::unpin(&world.store, mac(3), None, "ann"));
            let target = world.store.va_target(mac(3)).expect("readable");
            if unpinned.is_err() || target != ring {
                done.store(true, std::sync::atomic::Ordering::Relaxed);
                panic!("round {round}: {unpinned:?}, {target:?}");
            }
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

/// What stands among the requests and pins and is none keeps nobody from theirs.
#[test]
fn directories_and_links_among_requests_and_pins_stop_nothing() {
    use std::os::unix::fs::symlink;
    let world = gated("");
    for directory in ["requests", "pins"] {
        std::fs::create_dir_all(world.store.state(directory)).expect("there");
        let at = |name: &str| world.store.state(directory).join(name);
        let names = match directory {
            "requests" => ["0.json".to_owned(), "1.json".to_owned(), "2.json".to_owned()],
            _ => [3, 4, 5].map(|number| format!("{}.json", mac(number))),
        };
        std::fs::create_dir_all(at(&names[0]).join("with/more")).expect("a directory");
        symlink("/etc/passwd", at(&names[1])).expect("a link");
        let status = std::process::Command::new("mkfifo").arg(at(&names[2])).status();
        assert!(status.expect("mkfifo runs").success());
    }
    let ask = Ask::Rollout { composition: Some(name("web")), order: Order::Pause };
    let request = Request::new("ann".to_owned(), "because".to_owned(), ask);
    request.submit(&world.store).expect("submitted");
    bump(&world, 2);
    let mut reconciler = world.reconciler();
    reconciler.pass(&AtomicBool::new(false)).expect("a pass");
    assert_eq!(phase(&world), "paused");
    assert!(!reconciler.is_asked(), "they are out of the way");
    assert!(world.store.state("requests/.aside-0-0.json/with/more").is_dir(), "nothing is lost");
    // Once more, with the name taken.
    std::fs::create_dir(world.store.state("requests/0.json")).expect("a directory");
    step(&mut reconciler);
    assert!(!reconciler.is_asked());
    assert!(world.store.state("requests/.aside-1-0.json").is_dir());
}

#[test]
fn a_pin_holds_a_va_until_it_expires() {
    use strata::rollout::pins;
    let world = gated("");
    let first = world.ring("web", "everyone").expect("a generation");
    let told = ("debugging".to_owned(), "ann".to_owned(), 0);
    pins::pin(&world.store, mac(3), first, Some(u64::MAX), told.clone()).expect("pinned");
    bump(&world, 2);
    let mut reconciler = world.reconciler();
    reconciler.pass(&AtomicBool::new(false)).expect("a pass");
    settle(&world, &mut reconciler, "it is done", || phase(&world) == "done");
    assert_eq!(world.store.desired(mac(3)).expect("readable"), Some(first));
    // A pin that was cut short before the link moved is finished.
    let ring = VaTarget::Ring { composition: name("web"), ring: name("everyone") };
    world.store.move_va(mac(3), &ring).expect("moved");
    step(&mut reconciler);
    assert_eq!(world.store.desired(mac(3)).expect("readable"), Some(first));
    pins::pin(&world.store, mac(3), first, Some(1), told).expect("pinned");
    let events = step(&mut reconciler).events;
    assert!(matches!(events[0].event, Event::VaUnpinned { expired: true, .. }), "{events:?}");
    assert_eq!(world.store.va_target(mac(3)).expect("readable"), Some(ring));
    assert!(matches!(
        pins::unpin(&world.store, mac(3), None, "ann"),
        Err(pins::PinError::NotPinned)
    ));
}

/// A pin does not wait for whoever has the address of its VA next.
#[test]
fn a_pin_ends_with_its_va() {
    use strata::rollout::pins;
    let world = gated("");
    let first = world.ring("web", "everyone").expect("a generation");
    let told = || ("debugging".to_owned(), "ann".to_owned(), 0);
    declare_sql(&world, 10..11);
    let sql = world.ring("sql", "everyone").expect("a generation");
    pins::pin(&world.store, mac(3), first, None, told()).expect("pinned");
    pins::pin(&world.store, mac(10), sql, None, told()).expect("pinned");
    let mut reconciler = world.reconciler();
    reconciler.pass(&AtomicBool::new(false)).expect("a pass");
    let pinned = || pins::all(&world.store).expect("listed").len();
    assert_eq!(pinned(), 2);
    // One is gone; of the other, which git declares, only the link is.
    world.store.release_va(mac(3)).expect("released");
    world.store.release_va(mac(10)).expect("released");
    let events = step(&mut reconciler).events;
    let [event] = &events[..] else { panic!("one pin ends: {events:?}") };
    assert_eq!(event.event, Event::VaUnpinned { mac: mac(3), expired: false });
    assert_eq!(pinned(), 1);
    world.claim("web", "everyone", 3..4);
    reconciler.pass(&AtomicBool::new(false)).expect("a pass");
    step(&mut reconciler);
    let ring = VaTarget::Ring { composition: name("web"), ring: name("everyone") };
    assert_eq!(world.store.va_target(mac(3)).expect("readable"), Some(ring));
    let link = world.store.va_target(mac(10)).expect("readable");
    assert!(matches!(link, Some(VaTarget::Pinned { .. })), "it is pinned as before: {link:?}");
}
