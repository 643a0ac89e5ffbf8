//! A machine as a domain of libvirt, by libvirt's own schema.

use std::process::Command;

use strata_tests::boot::{Fleet, MAC, prepared};
use strata_tests::finish;

#[test]
fn a_machine_is_a_domain_of_libvirt() {
    let fleet = Fleet::new("libvirt", ("etc/strata/services/one", "#!/bin/sh\n"));
    fleet.roll_out("1");
    fleet.va(&["provision", "--template", "web", "--driver", "qemu", "--mac", MAC, "web"]).ok();
    let status = ["status", "web", "--output", "libvirt-xml"];
    let whole = fleet.va(&status);
    assert!(whole.stderr.contains("hint: make a view of it"), "{}", whole.stderr);
    let viewed = fleet.va(&[&status[..], &["--view", "/run/<view>"]].concat());
    assert_eq!(viewed.stderr, "");
    let hardware = r#"{"version":1,"machine":"q35","accelerator":"software","transport":"9p","memory_mib":1024,"network":"NETWORK","forwards":[{"host":8080,"machine":80}],"environment":"x"}"#;
    let started = |network: &str| {
        let machine = fleet.workspace.store().join("machines/web/hardware.json");
        std::fs::write(machine, hardware.replace("NETWORK", network)).expect("written");
        fleet.va(&status).ok()
    };
    let (open, private) = (started("host"), started("private"));
    let (whole, viewed) = (whole.ok(), viewed.ok());
    for (text, parts) in [
        (&whole, ["domain type=\"kvm\"", "/machines/web/disk.img", "<readonly/>"]),
        (&viewed, ["&lt;view&gt;", "strata.mac=52:54:00:12:34:56", "-525400123456</uuid>"]),
        (&open, ["domain type=\"qemu\"", "range start=\"8080\" to=\"80\"", ">1024</memory>"]),
        (&private, ["interface type=\"null\"", "strata.hostname=web", "/boot/x/kernel"]),
    ] {
        for part in parts {
            assert!(text.contains(part), "{part}: {text}");
        }
        let file = fleet.workspace.write("domain", &[("web.xml", text)]).join("web.xml");
        let mut lint = Command::new("xmllint");
        lint.args(["--noout", "--relaxng"]);
        lint.arg(prepared("ci/debs/libvirt/usr/share/libvirt/schemas/domain.rng", "ci/setup"));
        finish(lint.arg(file)).ok();
    }

    fleet.va(&["provision", "--template", "web", "light"]).ok();
    let none = fleet.va(&["status", "light", "--output", "libvirt-xml"]).exits(2).stderr;
    assert!(none.contains("is no machine"), "{none}");
    fleet.workspace.finish();
}
