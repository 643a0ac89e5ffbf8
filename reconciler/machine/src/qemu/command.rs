//! What QEMU is told: a function of plain data.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use strata_core::{MacAddr, VaName};

use crate::machines::{Forward, Network};
use crate::qemu::accelerator::Accelerator;

/// The newest PC that this QEMU knows.
pub const NEWEST: &str = "q35";

/// How a machine sees what the host shows it, and where that is.
#[derive(Debug, Clone, Copy)]
pub enum Shares<'a> {
    /// QEMU itself shows these directories.
    NinePea { store: &'a Path, reports: &'a Path },
    /// Daemons do, over these sockets.
    Virtiofs { store: &'a Path, reports: &'a Path },
}

/// What a machine is made of. All paths are absolute.
#[derive(Debug, Clone)]
pub struct Machine<'a> {
    pub name: &'a VaName,
    pub mac: MacAddr,
    pub kernel: &'a Path,
    pub initramfs: &'a Path,
    pub shares: Shares<'a>,
    pub disk: &'a Path,
    pub console: &'a Path,
    /// The socket that leads to the console, for one who sits at it.
    pub console_socket: &'a Path,
    pub control: &'a Path,
    /// QEMU's name of the machine's type: what was saved is resumed on its own.
    pub machine_type: &'a str,
    pub memory_mib: u64,
    pub network: Network,
    pub forwards: &'a [Forward],
    pub accelerator: Accelerator,
    /// It stands still with nothing in it until a saved state is loaded.
    pub incoming: bool,
}

/// The words of the kernel's command line that say whose machine it is.
pub fn identity(mac: MacAddr, name: &VaName) -> String {
    let hostname = name.hostname().map(|name| format!(" strata.hostname={name}"));
    format!("strata.mac={mac}{}", hostname.unwrap_or_default())
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
    let memory = match machine.shares {
        Shares::NinePea { .. } => "",
        // The daemons read and write the machine's own memory.
        Shares::Virtiofs { .. } => ",memory-backend=memory",
    };
    add("-machine", &plain(&format!("{}{memory}", machine.machine_type)));
    let (accelerator, processor) = match machine.accelerator {
        Accelerator::Kvm => ("kvm", "host"),
        Accelerator::Software => ("tcg,thread=multi", "max"),
    };
    add("-accel", &plain(accelerator));
    add("-cpu", &plain(processor));
    add("-m", &plain(&format!("{}M", machine.memory_mib)));
    if let Shares::Virtiofs { .. } = machine.shares {
        let memory =
            format!("memory-backend-memfd,id=memory,share=on,size={}M", machine.memory_mib);
        add("-object", &plain(&memory));
    }
    add("-smp", &plain("1"));
    add("-display", &plain("none"));
    add("-kernel", machine.kernel.as_os_str());
    add("-initrd", machine.initramfs.as_os_str());
    let transport = match machine.shares {
        Shares::NinePea { .. } => "9p",
        Shares::Virtiofs { .. } => "virtiofs",
    };
    // The last ones help where each instruction is emulated; panics end the machine.
    let line = format!(
        "console=ttyS0 quiet panic=-1 strata.store={transport}:store strata.reports={transport}:reports \
         {} no_timer_check nokaslr mitigations=off",
        identity(machine.mac, machine.name)
    );
    add("-append", &plain(&line));
    let mut console =
        option("socket,id=console,server=on,wait=off,path=", machine.console_socket, "");
    console.push(option(",logappend=on,logfile=", machine.console, ""));
    add("-chardev", &console);
    add("-serial", &plain("chardev:console"));
    add("-qmp", &option("unix:", machine.control, ",server=on,wait=off"));
    match machine.shares {
        Shares::NinePea { store, reports } => {
            let rest = ",mount_tag=store,security_model=passthrough,readonly=on,multidevs=remap";
            add("-virtfs", &option("local,path=", store, rest));
            // Links and devices that a machine makes there are none on the host.
            let rest = ",mount_tag=reports,security_model=mapped-xattr";
            add("-virtfs", &option("local,path=", reports, rest));
        }
        Shares::Virtiofs { store, reports } => {
            for (tag, socket) in [("store", store), ("reports", reports)] {
                add("-chardev", &option(&format!("socket,id={tag},path="), socket, ""));
                add("-device", &plain(&format!("vhost-user-fs-pci,chardev={tag},tag={tag}")));
            }
        }
    }
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
    if machine.incoming {
        add("-incoming", &plain("defer"));
        words.push("-S".into());
    }
    for flag in ["-nodefaults", "-no-reboot", "-no-user-config"] {
        words.push(flag.into());
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(network: Network, accelerator: Accelerator, shares: Shares<'_>) -> String {
        let name = VaName::new("web-03").expect("valid");
        let words = arguments(&Machine {
            name: &name,
            mac: "52:54:00:12:34:56".parse().expect("an address"),
            kernel: Path::new("/s/boot/x/kernel"),
            initramfs: Path::new("/s/boot/x/initramfs"),
            shares,
            disk: Path::new("/s/machines/web-03/disk.img"),
            console: Path::new("/s/machines/web-03/console.log"),
            console_socket: Path::new("/run/x.console"),
            control: Path::new("/run/x.qmp"),
            machine_type: "pc-q35-10.0",
            memory_mib: 512,
            network,
            forwards: &[Forward { host: 8080, machine: 80 }, Forward { host: 8022, machine: 22 }],
            accelerator,
            incoming: matches!(shares, Shares::Virtiofs { .. }),
        });
        words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    fn nine_pea(store: &str) -> Shares<'_> {
        Shares::NinePea { store: Path::new(store), reports: Path::new("/s/reports/m") }
    }

    #[test]
    fn a_machine_is_told_all_it_needs() {
        let told = told(Network::Private, Accelerator::Software, nine_pea("/s"));
        for part in [
            "-machine pc-q35-10.0 -accel tcg,thread=multi -cpu max",
            "strata.store=9p:store strata.reports=9p:reports strata.mac=52:54:00:12:34:56 strata.hostname=web-03",
            "socket,id=console,server=on,wait=off,path=/run/x.console,logappend=on,logfile=/s/machines/web-03/console.log",
            "path=/s,mount_tag=store,security_model=passthrough,readonly=on",
            "path=/s/reports/m,mount_tag=reports,security_model=mapped-xattr",
            "user,id=network,restrict=on,hostfwd=tcp:127.0.0.1:8080-:80,hostfwd=tcp:127.0.0.1:8022-:22",
            "mac=52:54:00:12:34:56 -nodefaults",
        ] {
            assert!(told.contains(part), "{part}: {told}");
        }
        assert!(!told.contains("kvm") && !told.contains("virtiofs") && !told.contains("incoming"));
    }

    #[test]
    fn a_name_that_is_none_of_a_host_is_not_told() {
        let mac = "52:54:00:12:34:56".parse().expect("an address");
        let name = VaName::new("web+3").expect("valid");
        assert_eq!(identity(mac, &name), "strata.mac=52:54:00:12:34:56");
    }

    #[test]
    fn a_machine_that_is_resumed_sees_the_daemons_of_its_shares() {
        let (store, reports) = (Path::new("/run/x.store"), Path::new("/run/x.report"));
        let shares = Shares::Virtiofs { store, reports };
        let told = told(Network::Host, Accelerator::Software, shares);
        for part in [
            "-machine pc-q35-10.0,memory-backend=memory",
            "-object memory-backend-memfd,id=memory,share=on,size=512M",
            "strata.store=virtiofs:store strata.reports=virtiofs:reports",
            "socket,id=store,path=/run/x.store -device vhost-user-fs-pci,chardev=store,tag=store",
            "socket,id=reports,path=/run/x.report",
            "-incoming defer -S",
        ] {
            assert!(told.contains(part), "{part}: {told}");
        }
        assert!(!told.contains("virtfs"), "{told}");
    }

    #[test]
    fn a_comma_in_a_path_begins_no_option() {
        let told = told(Network::Host, Accelerator::Kvm, nine_pea("/s,readonly=off"));
        assert!(told.contains("path=/s,,readonly=off,mount_tag=store"), "{told}");
        assert!(told.contains("-accel kvm -cpu host"), "{told}");
        assert!(!told.contains("restrict"), "{told}");
    }
}
