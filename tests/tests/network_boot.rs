//! Machines that boot over the network into their VAs (§4.3): dnsmasq, iPXE, a real kernel, the
//! store on a file server, all in a network namespace of the test.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use strata_tests::boot::{Fleet, LABEL, MAC, PATIENCE};
use strata_tests::network::{LISTEN, Network, SERVER};
use strata_tests::{finish, wait_until};

/// Reads what the file server shows of other VAs, too: root of a machine can.
const INIT: &str = r#"#!/usr/bin/busybox sh
b=/usr/bin/busybox
echo "APPLIANCE: version $($b cat /etc/version) as $($b hostname), process $$"
$b mkdir -p /mnt
$b mount -t nfs4 -o ro,vers=4.1,addr=10.77.0.1 10.77.0.1:/srv/strata /mnt
echo "APPLIANCE: sees $($b ls /mnt/repos), of others $($b find /mnt/machines /mnt/reports /mnt/state -mindepth 1 | $b wc -l)"
$b touch /mnt/va/x 2>/dev/null && echo "APPLIANCE: writes into the store"
$b umount /mnt
exec 3< /etc/version
until $b grep -q 2 /etc/version; do $b sleep 0.1; done
echo "APPLIANCE: now version $($b cat /etc/version), held $($b cat <&3)"
$b sync
$b poweroff -f
"#;
const OTHER_MAC: &str = "52:54:00:12:34:57";

fn provision(fleet: &Fleet, driver: &str, mac: &str, name: &str) {
    let mut command = fleet.workspace.strata();
    command.args(["va", "provision", "--template", "web", "--driver", driver]);
    finish(command.args(["--mac", mac, name])).ok();
}

#[test]
fn a_machine_boots_over_the_network_with_its_store_on_a_file_server() {
    let mut fleet = Fleet::new("network-boot", ("sbin/init", INIT));
    let first = fleet.roll_out("1").to_string();
    let disk = fleet.disk("disk", LABEL);
    let workspace = &mut fleet.workspace;
    let network = Network::new(workspace);
    let options = format!(
        "console=ttyS0 quiet panic=-1 no_timer_check nokaslr mitigations=off \
         strata.store=nfs:{SERVER}:/srv/strata strata.reports=nfs:{SERVER}:/srv/reports"
    );
    network.serve_boot(workspace, &options);
    network.serve_addresses(workspace);

    // A VA that is provisioned now is known to dnsmasq at once.
    provision(&fleet, "qemu", MAC, "web-03");
    provision(&fleet, "namespace", OTHER_MAC, "web-04");
    let hosts = fleet.workspace.path("hosts/strata");
    let known = format!("{MAC},web-03\n");
    wait_until("it is known", PATIENCE, || fs::read_to_string(&hosts).ok() == Some(known.clone()));

    // The file server comes up after its machines.
    let mut qemu = network.machine("tap0", MAC, &disk);
    fleet.workspace.spawn("machine", &mut qemu);
    let console = |fleet: &Fleet, text: &str| {
        wait_until(text, PATIENCE, || fleet.workspace.log("machine").contains(text));
    };
    console(&fleet, "the file server 10.77.0.1 does not answer on port 2049");
    let reports = fleet.workspace.store().join("reports").join(MAC);
    fs::create_dir_all(&reports).expect("made");
    network.serve_files(&mut fleet.workspace, &reports);

    console(&fleet, "APPLIANCE: version 1 as web-03, process 1");
    console(&fleet, "APPLIANCE: sees main, of others 0");
    let report = || -> Value {
        let text = fs::read(reports.join(MAC)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or(Value::Null)
    };
    assert_eq!((&report()["state"], &report()["generation"]), (&"serving".into(), &first.into()));
    let second = fleet.roll_out("2").to_string();
    console(&fleet, "APPLIANCE: now version 2, held 1");
    assert_eq!(report()["generation"], second);
    assert!(!fleet.workspace.log("machine").contains("writes into the store"));
    let log = fleet.workspace.log("boot-serve");
    assert!(log.contains("serving") && !log.contains("ERROR"), "{log}");
    fleet.workspace.finish();
}

#[test]
fn only_what_machines_boot_from_is_served() {
    let mut fleet = Fleet::new("boot-serve", ("sbin/init", INIT));
    fleet.roll_out("1");
    let mut none = fleet.workspace.strata();
    none.args(["boot", "serve", "--listen", "127.0.0.1:0", "--append", "quiet"]);
    let none = finish(&mut none).exits(2).stderr;
    assert!(none.contains("does not say where the store is"), "{none}");
    provision(&fleet, "qemu", MAC, "web-03");
    provision(&fleet, "namespace", OTHER_MAC, "web-04");
    let network = Network::new(&mut fleet.workspace);
    network.serve_boot(&mut fleet.workspace, "strata.store=9p:store strata.reports=9p:{mac}");

    assert!(network.get("/boot.ipxe").contains("va/${netX/mac:hexhyp}.ipxe"));
    let script = network.get("/va/52-54-00-12-34-56.ipxe");
    assert!(script.contains(&format!("strata.reports=9p:{MAC} strata.mac={MAC}")), "{script}");
    assert!(script.contains("strata.hostname=web-03 ip=${netX/ip}"), "{script}");
    // One without a hypervisor, one that is none, and the name of neither.
    for mac in [OTHER_MAC, "52:54:00:12:34:58"] {
        let script = network.get(&format!("/va/{}.ipxe", mac.replace(':', "-")));
        assert!(script.contains("is no VA that a machine can boot into"), "{script}");
        assert!(!script.contains("web-04") && !script.contains("kernel"), "{script}");
    }

    let store = fleet.workspace.store();
    let environment = fs::read_link(store.join("boot/current")).expect("a link");
    let environment = environment.to_str().expect("UTF-8").to_owned();
    let served = |network: &Network, part: &str, to: &Path| {
        let url = format!("http://{LISTEN}/boot/{environment}/{part}");
        let mut curl = network.command("curl");
        finish(curl.args(["--silent", "--fail", "--output"]).arg(to).arg(&url)).ok();
        fs::read(to).expect("fetched")
    };
    let to = fleet.workspace.path("fetched");
    for part in ["kernel", "initramfs"] {
        let own = fs::read(store.join("boot/current").join(part)).expect("a file");
        assert!(served(&network, part, &to) == own, "{part}");
    }
    for path in [
        format!("/boot/{environment}/environment.json"),
        "/boot/current/kernel".to_owned(),
        "/boot/../format".to_owned(),
        "/machines/web-03/va.json".to_owned(),
        "/va/../machines/web-03/va.json".to_owned(),
        "/ipxe/../passwd".to_owned(),
        "/".to_owned(),
    ] {
        let mut curl = network.command("curl");
        curl.args(["--silent", "--path-as-is", "--output", "/dev/null", "--write-out"]);
        let code = finish(curl.arg("%{http_code}").arg(format!("http://{LISTEN}{path}"))).ok();
        assert_eq!(code, "404", "{path}");
    }
    let mut post = network.command("curl");
    post.args(["--silent", "--output", "/dev/null", "--write-out", "%{http_code}", "--data", "x"]);
    assert_eq!(finish(post.arg(format!("http://{LISTEN}/boot.ipxe"))).ok(), "405");

    // dnsmasq accepts the configuration, with all machines in it or in a directory.
    let mut print = network.strata(&fleet.workspace);
    print.args(["boot", "serve", "--listen", LISTEN, "--dnsmasq", "--interface", "br0"]);
    let text = finish(print.args(["--dhcp-range", "10.77.0.50-10.77.0.99"])).ok();
    assert!(text.contains(&format!("dhcp-host={MAC},web-03\n")), "{text}");
    assert!(!text.contains(OTHER_MAC), "{text}");
    let configuration = fleet.workspace.write("dnsmasq", &[("conf", &text)]).join("conf");
    let mut check = Command::new("dnsmasq");
    check.arg("--test").arg(format!("--conf-file={}", configuration.display()));
    finish(&mut check).ok();

    // What is damaged is not sent.
    let kernel = store.join("boot").join(&environment).join("kernel");
    fs::write(&kernel, "no kernel").expect("written");
    let told = network.get(&format!("/boot/{environment}/kernel"));
    assert_eq!(told, "");
    let log = fleet.workspace.log("boot-serve");
    assert!(log.contains("as its description says"), "{log}");
    fleet.workspace.finish();
}
