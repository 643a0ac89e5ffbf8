//! The configuration of dnsmasq, which answers DHCP and TFTP: a function of plain data.
//!
//! Machines that are no VAs are not answered. Firmware that has no iPXE is sent one, by TFTP or,
//! where it boots over HTTP, by that; iPXE is sent to the first script.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::{BootableVa, FIRST_SCRIPT, IPXE_PROGRAMS};

/// What client-arch says of firmware (RFC 4578, and the registry of IANA).
const ARCHITECTURES: [(&str, &[u16]); 3] = [("pc", &[0]), ("uefi", &[7, 9]), ("uefi-http", &[16])];
/// Bytes of a label in the domain name system.
const LABEL_BYTES: usize = 63;

/// Addresses for machines, from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DhcpRange {
    first: Ipv4Addr,
    last: Ipv4Addr,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no range of addresses; write two of them, as in 10.0.0.50-10.0.0.99")]
pub struct DhcpRangeError(String);

impl FromStr for DhcpRange {
    type Err = DhcpRangeError;

    fn from_str(text: &str) -> Result<Self, DhcpRangeError> {
        let wrong = || DhcpRangeError(text.to_owned());
        let (first, last) = text.split_once('-').ok_or_else(wrong)?;
        let first: Ipv4Addr = first.parse().map_err(|_| wrong())?;
        let last: Ipv4Addr = last.parse().map_err(|_| wrong())?;
        if first > last {
            return Err(wrong());
        }
        Ok(DhcpRange { first, last })
    }
}

/// A network interface of this host, as a line of the configuration can name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceName(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no name of a network interface")]
pub struct InterfaceNameError(String);

impl FromStr for InterfaceName {
    type Err = InterfaceNameError;

    fn from_str(text: &str) -> Result<Self, InterfaceNameError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
        // The kernel's names have 15 bytes; a star has a meaning to dnsmasq.
        match (1..=15).contains(&text.len()) && text.chars().all(plain) {
            true => Ok(InterfaceName(text.to_owned())),
            false => Err(InterfaceNameError(text.to_owned())),
        }
    }
}

/// Where dnsmasq learns which machines are VAs.
#[derive(Debug)]
pub enum Hosts {
    Listed(Vec<BootableVa>),
    /// A directory that `strata boot serve` keeps up to date.
    Directory(PathBuf),
}

#[derive(Debug)]
pub struct Configuration {
    pub interface: InterfaceName,
    pub range: DhcpRange,
    /// Where this server is reached, without a slash at its end.
    pub url: String,
    /// Where iPXE's programs are.
    pub ipxe: PathBuf,
    pub hosts: Hosts,
}

/// A path that cannot stand on a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the path {0:?} cannot be written into a configuration of dnsmasq")]
pub struct PathError(PathBuf);

impl Configuration {
    /// The text, as dnsmasq reads it (dnsmasq(8)).
    ///
    /// # Errors
    /// A path has characters that mean something there.
    pub fn print(&self) -> Result<String, PathError> {
        let Configuration { interface: InterfaceName(interface), range, url, ipxe, .. } = self;
        let ipxe = on_a_line(ipxe)?;
        let [pc, uefi, uefi_http] = IPXE_PROGRAMS;
        let mut text = format!(
            "# dnsmasq for machines that boot into their VAs: made by strata boot serve --dnsmasq.\n\
             # DHCP and TFTP alone.\n\
             port=0\n\
             interface={interface}\n\
             bind-dynamic\n\
             dhcp-range={},{},1h\n\
             \n\
             # Machines that are no VAs are not answered.\n\
             dhcp-ignore=tag:!known\n",
            range.first, range.last
        );
        match &self.hosts {
            Hosts::Directory(directory) => {
                text.push_str(&format!("dhcp-hostsdir={}\n", on_a_line(directory)?));
            }
            Hosts::Listed(vas) => {
                let lines = hosts(vas);
                lines.lines().for_each(|line| text.push_str(&format!("dhcp-host={line}\n")));
            }
        }
        text.push_str("\n# Firmware without iPXE is sent it; what is sent is in this directory.\n");
        text.push_str(&format!("enable-tftp\ntftp-root={ipxe}\ntftp-no-fail\n"));
        text.push_str("dhcp-match=set:ipxe,175\n");
        for (tag, architectures) in ARCHITECTURES {
            for number in architectures {
                let line = format!("dhcp-match=set:{tag},option:client-arch,{number}\n");
                text.push_str(&line);
            }
        }
        text.push_str(&format!(
            "dhcp-boot=tag:ipxe,{url}/{FIRST_SCRIPT}\n\
             dhcp-boot=tag:pc,tag:!ipxe,{pc}\n\
             dhcp-boot=tag:uefi,tag:!ipxe,{uefi}\n\
             dhcp-boot=tag:uefi-http,tag:!ipxe,{url}/ipxe/{uefi_http}\n\
             dhcp-option-force=tag:uefi-http,tag:!ipxe,60,HTTPClient\n"
        ));
        Ok(text)
    }
}

/// The machines, one a line, as `dhcp-host=` and files in `dhcp-hostsdir=` have them.
pub fn hosts(vas: &[BootableVa]) -> String {
    let mut text = String::new();
    for va in vas {
        text.push_str(&va.mac.to_string());
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if let Some(name) = va.name.as_ref().map(|name| name.as_str())
            && name.len() <= LABEL_BYTES
            && name.chars().all(plain)
        {
            text.push(',');
            text.push_str(name);
        }
        text.push('\n');
    }
    text
}

fn on_a_line(path: &Path) -> Result<&str, PathError> {
    let text = path.to_str().filter(|text| {
        let harmless = |c: char| !c.is_control() && !"\"\\,#".contains(c);
        text.chars().all(harmless) && text.trim() == *text
    });
    text.ok_or_else(|| PathError(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use strata_core::VaName;

    fn va(last: u8, name: Option<&str>) -> BootableVa {
        let mac = format!("52:54:00:12:34:{last:02x}").parse().expect("an address");
        BootableVa { mac, name: name.map(|name| VaName::new(name).expect("valid")) }
    }

    fn configuration(hosts: Hosts) -> Configuration {
        Configuration {
            interface: "br0".parse().expect("valid"),
            range: "10.0.0.50-10.0.0.99".parse().expect("valid"),
            url: "http://10.0.0.1:8081".to_owned(),
            ipxe: "/usr/lib/ipxe".into(),
            hosts,
        }
    }

    #[test]
    fn each_kind_of_firmware_is_sent_on_its_way() {
        let vas = vec![va(1, Some("web-03")), va(2, None), va(3, Some("no_label"))];
        let text = configuration(Hosts::Listed(vas)).print().expect("plain paths");
        for line in [
            "port=0",
            "interface=br0",
            "dhcp-range=10.0.0.50,10.0.0.99,1h",
            "dhcp-ignore=tag:!known",
            "dhcp-host=52:54:00:12:34:01,web-03",
            "dhcp-host=52:54:00:12:34:02",
            "dhcp-host=52:54:00:12:34:03",
            "tftp-root=/usr/lib/ipxe",
            "dhcp-boot=tag:ipxe,http://10.0.0.1:8081/boot.ipxe",
            "dhcp-boot=tag:pc,tag:!ipxe,undionly.kpxe",
            "dhcp-boot=tag:uefi,tag:!ipxe,snponly.efi",
            "dhcp-boot=tag:uefi-http,tag:!ipxe,http://10.0.0.1:8081/ipxe/ipxe.efi",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}:\n{text}");
        }
        let directory = configuration(Hosts::Directory("/run/strata/dhcp".into()));
        let text = directory.print().expect("plain paths");
        assert!(text.contains("dhcp-hostsdir=/run/strata/dhcp\n"), "{text}");
        assert!(!text.contains("dhcp-host="), "{text}");
    }

    #[test]
    fn nothing_begins_a_line_of_its_own() {
        let mut configuration = configuration(Hosts::Listed(Vec::new()));
        for path in ["/x\ndhcp-script=/bin/sh", "/x,y", "/x #", " /x"] {
            configuration.ipxe = path.into();
            assert!(configuration.print().is_err(), "{path}");
        }
        for name in ["", "br0,lo", "br0\nx", "br*", "a-very-long-name"] {
            assert!(name.parse::<InterfaceName>().is_err(), "{name}");
        }
        for range in ["10.0.0.1", "10.0.0.9-10.0.0.1", "10.0.0.1-10.0.0", "10.0.0.1,10.0.0.2"] {
            assert!(range.parse::<DhcpRange>().is_err(), "{range}");
        }
    }
}
