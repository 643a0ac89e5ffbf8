//! A machine as a domain of libvirt, for those who have that: a function of plain data, and
//! what it is given. Libvirt's own schema says whether it is one (`tests/tests/libvirt.rs`).
//!
//! libvirt runs QEMU and virtiofsd itself, so nothing hides from the machine what else is in
//! the directory it is shown: that is the operator's to do (`docs/machines.md`).

use std::fmt::Write as _;
use std::path::Path;

use strata_core::MacAddr;

use crate::error::MachineError;
use crate::machines::{Forward, Machines, Network};
use crate::qemu::{Hardware, identity};
use crate::record::{Driver, VaRecord};

/// The first half of the domains' identifiers ("STRATA"), the second is the VA's address. The
/// version is 8, whose meaning is its maker's (RFC 9562).
const IDENTIFIER: &str = "53545241-5441-8000-8000-";

/// What a domain is made of. All paths are absolute.
struct Domain<'a> {
    record: &'a VaRecord,
    memory_mib: u64,
    network: Network,
    forwards: &'a [Forward],
    kvm: bool,
    environment: &'a Path,
    store: &'a Path,
    reports: &'a Path,
    disk: &'a Path,
    console: &'a Path,
}

impl Machines<'_> {
    /// The XML text of the domain that a VA's machine is, with the hardware of its last start, if
    /// there was one. `view` is what it sees of the store, where that is not the store itself.
    ///
    /// # Errors
    /// The VA is no machine, or there is no boot environment.
    pub fn libvirt_domain(
        &self,
        record: &VaRecord,
        view: Option<&Path>,
    ) -> Result<String, MachineError> {
        if record.driver != Driver::Qemu {
            return Err(MachineError::NoDomain(record.name.clone()));
        }
        let (directory, root) = (self.directory(&record.name), self.store().root());
        let hardware = match Hardware::last(&directory)? {
            Some(hardware) => hardware,
            None => Hardware::usual(self.store())?,
        };
        Ok(domain(&Domain {
            record,
            memory_mib: hardware.memory_mib,
            network: hardware.network,
            forwards: &hardware.forwards,
            kvm: hardware.has_kvm(),
            environment: &hardware.environment_in(self.store()),
            store: view.unwrap_or(root),
            reports: &self.store().reports().join(record.mac.to_string()),
            disk: &record.private_in(&directory),
            console: &directory.join("console.log"),
        }))
    }
}

fn domain(domain: &Domain<'_>) -> String {
    let record = domain.record;
    let (kind, processor) =
        if domain.kvm { ("kvm", "host-passthrough") } else { ("qemu", "maximum") };
    let line = format!(
        "console=ttyS0 quiet panic=-1 strata.store=virtiofs:store strata.reports=virtiofs:reports \
         {}",
        identity(record.mac, &record.name)
    );
    let path = |path: &Path| escaped(&path.to_string_lossy());
    let mut text = String::new();
    let mut add = |line: &str| {
        let _infallible = writeln!(text, "{line}");
    };
    add(&format!("<domain type=\"{kind}\">"));
    add(&format!("  <name>{}</name>", record.name));
    add(&format!("  <uuid>{}</uuid>", identifier(record.mac)));
    add(&format!("  <memory unit=\"MiB\">{}</memory>", domain.memory_mib));
    add("  <memoryBacking>\n    <source type=\"memfd\"/>\n    <access mode=\"shared\"/>");
    add("  </memoryBacking>\n  <vcpu>1</vcpu>");
    add("  <os>\n    <type arch=\"x86_64\" machine=\"q35\">hvm</type>");
    add(&format!("    <kernel>{}</kernel>", path(&domain.environment.join("kernel"))));
    add(&format!("    <initrd>{}</initrd>", path(&domain.environment.join("initramfs"))));
    add(&format!("    <cmdline>{}</cmdline>", escaped(&line)));
    add("  </os>\n  <features>\n    <acpi/>\n  </features>");
    add(&format!("  <cpu mode=\"{processor}\"/>"));
    add("  <on_poweroff>destroy</on_poweroff>\n  <on_reboot>destroy</on_reboot>");
    add("  <on_crash>destroy</on_crash>\n  <devices>");
    for (directory, tag, flag) in
        [(domain.store, "store", "\n      <readonly/>"), (domain.reports, "reports", "")]
    {
        add("    <filesystem type=\"mount\" accessmode=\"passthrough\">");
        add("      <driver type=\"virtiofs\"/>");
        add(&format!("      <source dir=\"{}\"/>", path(directory)));
        add(&format!("      <target dir=\"{tag}\"/>{flag}\n    </filesystem>"));
    }
    add("    <disk type=\"file\" device=\"disk\">");
    add("      <driver name=\"qemu\" type=\"raw\" discard=\"unmap\"/>");
    add(&format!("      <source file=\"{}\"/>", path(domain.disk)));
    add("      <target dev=\"vda\" bus=\"virtio\"/>\n    </disk>");
    let (network, forwards) = match (domain.network, domain.forwards) {
        (Network::Private, _) => ("null", ""),
        (Network::Host, []) => ("user", ""),
        (Network::Host, _) => ("user", "\n      <backend type=\"passt\"/>"),
    };
    add(&format!("    <interface type=\"{network}\">{forwards}"));
    add(&format!("      <mac address=\"{}\"/>", record.mac));
    if !forwards.is_empty() {
        add("      <portForward proto=\"tcp\" address=\"127.0.0.1\">");
        for Forward { host, machine } in domain.forwards {
            add(&format!("        <range start=\"{host}\" to=\"{machine}\"/>"));
        }
        add("      </portForward>");
    }
    add("      <model type=\"virtio\"/>\n    </interface>");
    add("    <serial type=\"pty\">");
    add(&format!("      <log file=\"{}\" append=\"on\"/>", path(domain.console)));
    add("      <target port=\"0\"/>\n    </serial>");
    add("    <console type=\"pty\">\n      <target type=\"serial\" port=\"0\"/>\n    </console>");
    add("  </devices>\n</domain>");
    text
}

/// The same for the same VA: libvirt knows a domain by it.
fn identifier(mac: MacAddr) -> String {
    let digits: String = mac.octets().iter().map(|octet| format!("{octet:02x}")).collect();
    format!("{IDENTIFIER}{digits}")
}

/// Text in an element or in an attribute.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            character => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_a_path_whatever_is_in_it() {
        assert_eq!(escaped("/a&b/<c>/\"d\""), "/a&amp;b/&lt;c&gt;/&quot;d&quot;");
    }

    #[test]
    fn a_va_is_one_domain() {
        let mac = "52:54:00:12:34:56".parse().expect("an address");
        assert_eq!(identifier(mac), "53545241-5441-8000-8000-525400123456");
    }
}
