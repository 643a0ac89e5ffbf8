//! A network of a test's own, from which machines boot: a bridge in a network namespace with a
//! socket for each machine, dnsmasq for DHCP and TFTP, and a file server for the store.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::{Workspace, finish, program, wait_until};

/// This side of the bridge.
pub const SERVER: &str = "10.77.0.1";
/// Where `strata boot serve` listens.
pub const LISTEN: &str = "10.77.0.1:8081";
/// What the file server exports, under the names that machines know.
pub const STORE: &str = "/srv/strata";
pub const REPORTS: &str = "/srv/reports";

const PATIENCE: Duration = Duration::from_secs(30);

/// Lives as long as the process that holds it, which its workspace ends.
pub struct Network {
    pid: u32,
}

impl Network {
    /// Makes the network, with the sockets `tap0` and `tap1`.
    pub fn new(workspace: &mut Workspace) -> Self {
        let mut holder = Command::new("unshare");
        let pid = workspace.spawn("network", holder.args(["--net", "tail", "-f", "/dev/null"]));
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        wait_until("the network is there", PATIENCE, || {
            namespace(&pid.to_string()).is_some_and(|found| Some(found) != namespace("self"))
        });
        let network = Network { pid };
        let script = format!(
            "ip link set lo up
             ip link add br0 type bridge forward_delay 0
             ip addr add {SERVER}/24 dev br0
             ip addr add fd77::1/64 dev br0 nodad
             ip link set br0 up
             for tap in tap0 tap1; do ip tuntap add $tap mode tap; ip link set $tap master br0 up; done"
        );
        finish(network.command("sh").args(["-ec", &script])).ok();
        network
    }

    /// A command in this network.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.pid)).arg(program);
        command
    }

    /// `strata` in this network, with the store of the workspace.
    pub fn strata(&self, workspace: &Workspace) -> Command {
        let mut command = self.command(program("strata"));
        command.env("STRATA_STORE", workspace.store()).env("NO_COLOR", "1");
        command
    }

    /// What somebody in this network is answered.
    pub fn get(&self, path: &str) -> String {
        let url = format!("http://{LISTEN}{path}");
        let mut curl = self.command("curl");
        finish(curl.args(["--silent", "--show-error", "--max-time", "20", "--path-as-is", &url]))
            .stdout
    }

    /// Serves what machines need to boot; `options` are for all of them.
    pub fn serve_boot(&self, workspace: &mut Workspace, options: &str) {
        let mut serve = self.strata(workspace);
        serve.args(["boot", "serve", "--listen", LISTEN, "--append", options, "--hosts-dir"]);
        serve.arg(workspace.path("hosts")).arg("--ipxe").arg("/usr/lib/ipxe");
        workspace.spawn("boot-serve", &mut serve);
        wait_until("it serves", PATIENCE, || workspace.log("boot-serve").contains("serving"));
    }

    /// Answers DHCP and TFTP as `strata boot serve --dnsmasq` says.
    pub fn serve_addresses(&self, workspace: &mut Workspace) {
        let mut print = self.strata(workspace);
        print.args(["boot", "serve", "--listen", LISTEN, "--dnsmasq", "--interface", "br0"]);
        print.args(["--dhcp-range", "10.77.0.50-10.77.0.99", "--hosts-dir"]);
        let mut text = finish(print.arg(workspace.path("hosts"))).ok();
        // iPXE waits some ten seconds for routers of IPv6 where none announces itself.
        text.push_str("enable-ra\ndhcp-range=fd77::,ra-stateless,64\n");
        let configuration = workspace.write("dnsmasq", &[("conf", &text)]).join("conf");
        let option = |name: &str, path: PathBuf| format!("--{name}={}", path.display());
        let mut dnsmasq = self.command("dnsmasq");
        dnsmasq.args(["--keep-in-foreground", "--log-facility=-", "--log-dhcp", "--user=root"]);
        dnsmasq.args(["--pid-file=", "--no-ping"]).arg(option("conf-file", configuration));
        dnsmasq.arg(option("dhcp-leasefile", workspace.path("leases")));
        workspace.spawn("dnsmasq", &mut dnsmasq);
        wait_until("dnsmasq answers", PATIENCE, || {
            workspace.log("dnsmasq").contains("sockets bound exclusively to interface br0")
        });
    }

    /// Serves the store, read-only and without what is of single VAs, and the directory of the
    /// machine's reports, over NFS.
    pub fn serve_files(&self, workspace: &mut Workspace, reports: &Path) {
        let recovery = workspace.write("ganesha", &[("recovery/x", "")]).join("recovery");
        let export = |id: u32, path: &Path, pseudo: &str, access: &str| {
            format!(
                "EXPORT {{ Export_Id = {id}; Path = {}; Pseudo = {pseudo}; Access_Type = {access};\n\
                 Squash = No_Root_Squash; SecType = sys; Protocols = 4; Transports = TCP;\n\
                 Attr_Expiration_Time = 0; FSAL {{ Name = VFS; }} }}\n",
                path.display()
            )
        };
        let store = workspace.store();
        let text = format!(
            "NFS_CORE_PARAM {{ Protocols = 4; Bind_addr = {SERVER}; Enable_NLM = false;\n\
             Enable_RQUOTA = false; Enable_UDP = false; }}\n\
             NFSV4 {{ Graceless = true; Only_Numeric_Owners = true; RecoveryBackend = fs;\n\
             RecoveryRoot = {}; Minor_Versions = 1; }}\n\
             LOG {{ Default_Log_Level = EVENT; }}\n{}{}",
            recovery.display(),
            export(1, &store, STORE, "RO"),
            export(2, &workspace.path("ganesha/reports"), REPORTS, "RW"),
        );
        let configuration = workspace.write("ganesha", &[("conf", &text)]).join("conf");
        // What is mounted below an export is not exported; these mounts are the server's alone.
        let shown = workspace.write("ganesha/reports", &[]);
        let script = format!(
            "mount --bind {} {}\n\
             for name in machines reports state; do mount -t tmpfs -o ro none {}/$name; done\n\
             exec ganesha.nfsd -F -f {} -L /dev/stdout -p {}",
            reports.display(),
            shown.display(),
            store.display(),
            configuration.display(),
            workspace.path("ganesha/pid").display(),
        );
        let mut server = self.command("unshare");
        server.args(["--mount", "sh", "-ec", &script]);
        workspace.spawn("ganesha", &mut server);
    }

    /// QEMU on one of the sockets, booting from the network with what firmware is given.
    pub fn machine(&self, socket: &str, mac: &str, disk: &Path) -> Command {
        let mut qemu = self.command("qemu-system-x86_64");
        qemu.args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1"]);
        qemu.args(["-m", "512", "-nodefaults", "-no-reboot", "-display", "none", "-serial"]);
        qemu.args(["stdio", "-boot", "n", "-drive"]);
        qemu.arg(format!("file={},if=virtio,format=raw", disk.display()));
        qemu.arg("-netdev");
        qemu.arg(format!("tap,id=net,ifname={socket},script=no,downscript=no"));
        qemu.arg("-device").arg(format!("virtio-net-pci,netdev=net,mac={mac}"));
        qemu
    }
}
