//! Links of rings and VAs that somebody's hand removed or moved.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use strata_store::VaTarget;

use crate::daemon::{Daemon, log};
use crate::support::{World, mac, name, wait_until};

const LIMIT: Duration = Duration::from_secs(10);

/// The poll would come in an hour.
#[test]
fn links_come_back_at_once() {
    let world = World::new();
    let declared = format!(
        "[[appliance]]\nname = \"web-1\"\nmac = \"{}\"\nldf = \"web\"\nring = \"everyone\"\n",
        mac(1)
    );
    world.write("appliances.toml", &declared);
    world.push("a VA");
    world.once();
    let daemon = Daemon::start(&world, &["--poll", "3600"]);
    let (web, sql) = (world.ring("web", "everyone"), world.ring("sql", "everyone"));
    let ring = world.store.root().join("rings/web/everyone");
    let own = VaTarget::Ring { composition: name("web"), ring: name("everyone") };
    let target = || world.store.va_target(mac(1)).expect("readable");
    let back = |what: &str| {
        wait_until(&format!("{what}; log:\n{}", log(&world)), LIMIT, || {
            world.store.ring(&name("web"), &name("everyone")).ok().flatten() == web
                && target() == Some(own.clone())
        });
    };
    fs::remove_file(&ring).expect("removed");
    back("the link of the ring");
    fs::remove_file(&ring).expect("removed");
    symlink(format!("../../generations/{}", sql.expect("a generation")), &ring).expect("made");
    back("the link of the ring, from elsewhere");
    world.store.release_va(mac(1)).expect("removed");
    back("the link of the VA");
    let other = VaTarget::Ring { composition: name("sql"), ring: name("everyone") };
    world.store.move_va(mac(1), &other).expect("moved");
    back("the link of the VA, from elsewhere");
    assert_eq!(daemon.terminate(), Some(0));
}
