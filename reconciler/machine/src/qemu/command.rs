//! What QEMU is told: a function of plain data.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use strata_core::{MacAddr, VaName};

use crate::machines::{Forward, Network};
use crate::qemu::accelerator::Accelerator;

/// What a machine is made of. All paths are absolute.
#[derive(Debug, Clone)]
pub struct Machine<'a> {
    pub name: &'a VaName,
    pub mac: MacAddr,
    pub kernel: &'a Path,
    pub initramfs: &'a Path,
    pub store: &'a Path,
    pub reports: &'a Path,
    pub disk: &'a Path,
    pub console: &'a Path,
    pub control: &'a Path,
    pub memory_mib: u64,
    pub network: Network,
    pub forwards: &'a [Forward],
    pub accelerator: Accelerator,
}

/// A path in one of QEMU's lists of options: a comma is written twice.
fn escaped(path: &Path) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut bytes = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        bytes.push(*byte);
        if *byte == b',' {
            bytes.push(b',');
        }
    }
    OsString::from_vec(bytes)
}

fn option(before: &str, path: &Path, after: &str) -> OsString {
    let mut text = OsString::from(before);
    text.push(escaped(path));
    text.push(after);
    text
}

/// The arguments of QEMU.
pub fn arguments(machine: &Machine<'_>) -> Vec<OsString> {
    let mut words: Vec<OsString> = Vec::new();
    let mut add = |flag: &str, value: &OsStr| {
        words.push(flag.into());
        words.push(value.to_owned());
    };
    let plain = |text: &str| OsString::from(text);
    add("-name", &plain(machine.name.as_str()));
    add("-machine", &plain("q35"));
    let (accelerator, processor) = match machine.accelerator {
        Accelerator::Kvm => ("kvm", "host"),
        Accelerator::Software => ("tcg,thread=multi", "max"),
    };
    add("-accel", &plain(accelerator));
    add("-cpu", &plain(processor));
    add("-m", &plain(&format!("{}M", machine.memory_mib)));
    add("-smp", &plain("1"));
    add("-display", &plain("none"));
    add("-kernel", machine.kernel.as_os_str());
    add("-initrd", machine.initramfs.as_os_str());
    // The last ones help where each instruction is emulated; panics end the machine.
    let line = format!(
        "console=ttyS0 quiet panic=-1 strata.store=9p:store strata.reports=9p:reports \
         strata.mac={} strata.hostname={} no_timer_check nokaslr mitigations=off",
        machine.mac, machine.name
    );
    add("-append", &plain(&line));
    add("-chardev", &option("file,id=console,append=on,path=", machine.console, ""));
    add("-serial", &plain("chardev:console"));
    add("-qmp", &option("unix:", machine.control, ",server=on,wait=off"));
    let store = ",mount_tag=store,security_model=passthrough,readonly=on,multidevs=remap";
    add("-virtfs", &option("local,path=", machine.store, store));
    // Links and devices that a machine makes there are none on the host.
    let reports = ",mount_tag=reports,security_model=mapped-xattr";
    add("-virtfs", &option("local,path=", machine.reports, reports));
    // QEMU locks the image: two machines cannot have one disk.
    let disk = ",if=virtio,format=raw,discard=unmap,file.locking=on";
    add("-drive", &option("file=", machine.disk, disk));
    let mut network = match machine.network {
        Network::Host => "user,id=network".to_owned(),
        Network::Private => "user,id=network,restrict=on".to_owned(),
    };
    for Forward { host, machine } in machine.forwards {
        network.push_str(&format!(",hostfwd=tcp:127.0.0.1:{host}-:{machine}"));
    }
    add("-netdev", &plain(&network));
    let card = format!("virtio-net-pci,netdev=network,romfile=,mac={}", machine.mac);
    add("-device", &plain(&card));
    for flag in ["-nodefaults", "-no-reboot", "-no-user-config"] {
        words.push(flag.into());
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(network: Network, accelerator: Accelerator, store: &str) -> String {
        let name = VaName::new("web-03").expect("valid");
        let words = arguments(&Machine {
            name: &name,
            mac: "52:54:00:12:34:56".parse().expect("an address"),
            kernel: Path::new("/s/boot/x/kernel"),
            initramfs: Path::new("/s/boot/x/initramfs"),
            store: Path::new(store),
            reports: Path::new("/s/reports/m"),
            disk: Path::new("/s/machines/web-03/disk.img"),
            console: Path::new("/s/machines/web-03/console.log"),
            control: Path::new("/run/x.qmp"),
            memory_mib: 512,
            network,
            forwards: &[Forward { host: 8080, machine: 80 }, Forward { host: 8022, machine: 22 }],
            accelerator,
        });
        words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_machine_is_told_all_it_needs() {
        let told = told(Network::Private, Accelerator::Software, "/s");
        for part in [
            "-accel tcg,thread=multi -cpu max",
            "strata.mac=52:54:00:12:34:56 strata.hostname=web-03",
            "path=/s,mount_tag=store,security_model=passthrough,readonly=on",
            "path=/s/reports/m,mount_tag=reports,security_model=mapped-xattr",
            "user,id=network,restrict=on,hostfwd=tcp:127.0.0.1:8080-:80,hostfwd=tcp:127.0.0.1:8022-:22",
            "mac=52:54:00:12:34:56 -nodefaults",
        ] {
            assert!(told.contains(part), "{part}: {told}");
        }
        assert!(!told.contains("kvm"));
    }

    #[test]
    fn a_comma_in_a_path_begins_no_option() {
        let told = told(Network::Host, Accelerator::Kvm, "/s,readonly=off");
        assert!(told.contains("path=/s,,readonly=off,mount_tag=store"), "{told}");
        assert!(told.contains("-accel kvm -cpu host"), "{told}");
        assert!(!told.contains("restrict"), "{told}");
    }
}
