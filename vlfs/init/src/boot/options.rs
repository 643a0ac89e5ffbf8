//! What the kernel command line says to the boot environment (`docs/boot.md`).
//!
//! Words that begin with `strata.` are ours, and an unknown one is an error: a
//! misspelt option must not start an appliance with something left out. All other
//! words are the kernel's and the appliance's.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use strata_core::MacAddr;

/// Bytes of a tag: virtiofs takes 36, 9p's virtio transport 32.
const TAG_BYTES: usize = 31;
/// Bytes of a path on a file server (`NFS3_MAXPATHLEN`).
const EXPORT_BYTES: usize = 1024;
const PREFIX: &str = "strata.";
/// Words in an address's place with which a kernel asks for one.
const AUTOMATIC: [&str; 7] = ["off", "none", "on", "any", "dhcp", "bootp", "both"];

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    #[error(
        "it does not say where the store is\n  hint: add strata.store=virtiofs:TAG, 9p:TAG or nfs:ADDRESS:/PATH"
    )]
    NoStore,
    #[error("{0:?} is no option of Strata\n  hint: see docs/boot.md for all of them")]
    Unknown(String),
    #[error("{option}={value:?}: {reason}")]
    Value { option: &'static str, value: String, reason: String },
}

/// A directory of the host that the machine shows, or of a file server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Share {
    Virtiofs { tag: String },
    NinePea { tag: String },
    Nfs { server: Ipv4Addr, path: String },
}

impl Share {
    fn parse(option: &'static str, value: &str) -> Result<Self, OptionsError> {
        let wrong = |reason: &str| OptionsError::Value {
            option,
            value: value.to_owned(),
            reason: reason.to_owned(),
        };
        let (transport, place) = value
            .split_once(':')
            .ok_or_else(|| wrong("write virtiofs:TAG, 9p:TAG or nfs:ADDRESS:/PATH"))?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let tag = || match (1..=TAG_BYTES).contains(&place.len()) && place.chars().all(plain) {
            true => Ok(place.to_owned()),
            false => Err(wrong("a tag has 1 to 31 letters, digits, dots, dashes or underscores")),
        };
        match transport {
            "virtiofs" => Ok(Share::Virtiofs { tag: tag()? }),
            "9p" => Ok(Share::NinePea { tag: tag()? }),
            "nfs" => {
                let (server, path) =
                    place.split_once(':').ok_or_else(|| wrong("write nfs:ADDRESS:/PATH"))?;
                // There is nobody yet who could be asked for a name.
                let server = server
                    .parse()
                    .map_err(|_| wrong("the file server is an IPv4 address, as in 10.0.0.1"))?;
                if !path.starts_with('/') || path.len() > EXPORT_BYTES {
                    return Err(wrong("the path on the file server is absolute"));
                }
                Ok(Share::Nfs { server, path: path.to_owned() })
            }
            _ => Err(wrong("the transports are virtiofs, 9p and nfs")),
        }
    }

    pub fn is_on_the_network(&self) -> bool {
        matches!(self, Share::Nfs { .. })
    }
}

/// What `ip=` says, as the kernel reads it where it can
/// (`ip=ADDRESS:SERVER:GATEWAY:NETMASK:HOSTNAME:INTERFACE:…`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticAddress {
    pub address: Ipv4Addr,
    pub netmask: Ipv4Addr,
    pub gateway: Option<Ipv4Addr>,
    pub interface: Option<String>,
}

impl StaticAddress {
    /// `None` where no address is given: the kernel is to ask for one.
    fn parse(value: &str) -> Result<Option<Self>, OptionsError> {
        let wrong = |reason: &str| OptionsError::Value {
            option: "ip",
            value: value.to_owned(),
            reason: reason.to_owned(),
        };
        let mut fields = value.split(':');
        let mut field = || fields.next().filter(|field| !field.is_empty());
        let (address, _server, gateway, netmask) = (field(), field(), field(), field());
        let (_hostname, interface) = (field(), field());
        let Some(address) = address.filter(|word| !AUTOMATIC.contains(word)) else {
            return Ok(None);
        };
        let parse = |text: &str| {
            text.parse::<Ipv4Addr>().map_err(|_| wrong("an IPv4 address is written as 10.0.0.2"))
        };
        let netmask = netmask
            .ok_or_else(|| wrong("write the netmask, too: ip=ADDRESS::GATEWAY:NETMASK"))
            .and_then(parse)?;
        Ok(Some(StaticAddress {
            address: parse(address)?,
            netmask,
            gateway: gateway.map(parse).transpose()?,
            interface: interface.map(|name| component("ip", name)).transpose()?,
        }))
    }
}

/// How the machine's own address is told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Identity {
    /// The one interface whose address has a link in the store.
    #[default]
    Linked,
    Interface(String),
    Mac(MacAddr),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    pub store: Share,
    /// The VA's only writable place of the host's; on its own disk where none is given.
    pub reports: Option<Share>,
    /// Heeded where the store or the reports are on the network.
    pub address: Option<StaticAddress>,
    pub identity: Identity,
    /// The disk to take, whatever others there are.
    pub disk: Option<String>,
    /// The appliance's first program.
    pub init: Option<PathBuf>,
    pub hostname: Option<String>,
    /// How long to wait for what is missing; for ever where none is given.
    pub give_up: Option<Duration>,
}

impl Options {
    /// Reads a kernel command line.
    ///
    /// # Errors
    /// [`OptionsError`].
    pub fn parse(line: &str) -> Result<Self, OptionsError> {
        let (mut store, mut reports, mut disk, mut init) = (None, None, None, None);
        let (mut hostname, mut give_up) = (None, None);
        let mut identity = Identity::Linked;
        let (mut booted_from, mut ip) = (None, None);
        for word in line.split_ascii_whitespace() {
            if let Some(address) = word.strip_prefix("BOOTIF=") {
                // As PXE loaders write it: the kind of hardware, then the address.
                booted_from = Some(mac("BOOTIF", address.strip_prefix("01-").unwrap_or(address))?);
                continue;
            }
            if let Some(value) = word.strip_prefix("ip=") {
                ip = Some(value);
                continue;
            }
            let Some(option) = word.strip_prefix(PREFIX) else { continue };
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            match name {
                "store" => store = Some(Share::parse("strata.store", value)?),
                "reports" => reports = Some(Share::parse("strata.reports", value)?),
                "mac" => identity = Identity::Mac(mac("strata.mac", value)?),
                "interface" => {
                    identity = Identity::Interface(component("strata.interface", value)?);
                }
                "disk" => {
                    let name = value.strip_prefix("/dev/").unwrap_or(value);
                    disk = Some(component("strata.disk", name)?);
                }
                "init" => init = Some(program(value)?),
                "hostname" => hostname = Some(component("strata.hostname", value)?),
                "give-up" => give_up = Some(seconds(value)?),
                _ => return Err(OptionsError::Unknown(word.to_owned())),
            }
        }
        if let (Identity::Linked, Some(mac)) = (&identity, booted_from) {
            identity = Identity::Mac(mac);
        }
        let store = store.ok_or(OptionsError::NoStore)?;
        let mut shares = std::iter::once(&store).chain(&reports);
        let address = match ip.filter(|_| shares.any(Share::is_on_the_network)) {
            Some(value) => StaticAddress::parse(value)?,
            None => None,
        };
        Ok(Options { store, reports, address, identity, disk, init, hostname, give_up })
    }

    /// Whether anything that is needed to boot is on the network.
    pub fn need_network(&self) -> bool {
        std::iter::once(&self.store).chain(&self.reports).any(Share::is_on_the_network)
    }
}

fn mac(option: &'static str, value: &str) -> Result<MacAddr, OptionsError> {
    value.parse().map_err(|error: strata_core::names::NameError| OptionsError::Value {
        option,
        value: value.to_owned(),
        reason: error.to_string(),
    })
}

/// A name that is one component of a path.
fn component(option: &'static str, value: &str) -> Result<String, OptionsError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let starts_well = value.starts_with(|c: char| c.is_ascii_alphanumeric());
    if starts_well && value.len() <= 64 && value.chars().all(plain) {
        return Ok(value.to_owned());
    }
    let reason = "write a plain name".to_owned();
    Err(OptionsError::Value { option, value: value.to_owned(), reason })
}

fn program(value: &str) -> Result<PathBuf, OptionsError> {
    if value.starts_with('/') && value.len() > 1 {
        return Ok(PathBuf::from(value));
    }
    let reason = "write an absolute path in the appliance".to_owned();
    Err(OptionsError::Value { option: "strata.init", value: value.to_owned(), reason })
}

fn seconds(value: &str) -> Result<Duration, OptionsError> {
    value.parse().map(Duration::from_secs).map_err(|_| OptionsError::Value {
        option: "strata.give-up",
        value: value.to_owned(),
        reason: "write a number of seconds".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(tag: &str) -> Share {
        Share::NinePea { tag: tag.to_owned() }
    }

    #[test]
    fn a_command_line_with_everything() {
        let line = "BOOT_IMAGE=/vmlinuz root=/dev/sda1 quiet console=ttyS0 strata.store=9p:store \
                    strata.reports=9p:reports strata.mac=52-54-00-12-34-56 strata.disk=/dev/vdb \
                    strata.init=/sbin/init strata.hostname=web-03 strata.give-up=90\n";
        let options = Options::parse(line).expect("valid");
        assert_eq!(
            options,
            Options {
                store: tag("store"),
                reports: Some(tag("reports")),
                address: None,
                identity: Identity::Mac("52:54:00:12:34:56".parse().expect("an address")),
                disk: Some("vdb".to_owned()),
                init: Some("/sbin/init".into()),
                hostname: Some("web-03".to_owned()),
                give_up: Some(Duration::from_secs(90)),
            }
        );
    }

    #[test]
    fn the_store_is_enough() {
        let options = Options::parse("strata.store=virtiofs:strata").expect("valid");
        assert_eq!(options.store, Share::Virtiofs { tag: "strata".to_owned() });
        assert_eq!((options.reports, options.identity), (None, Identity::Linked));
        assert_eq!((options.disk, options.init, options.give_up), (None, None, None));
    }

    #[test]
    fn the_interface_of_the_network_boot_is_taken_unless_another_is_named() {
        let line = "strata.store=9p:s BOOTIF=01-52-54-00-aa-bb-cc";
        let mac = Identity::Mac("52:54:00:aa:bb:cc".parse().expect("an address"));
        assert_eq!(Options::parse(line).expect("valid").identity, mac);
        let named = Options::parse(&format!("{line} strata.interface=eth1")).expect("valid");
        assert_eq!(named.identity, Identity::Interface("eth1".to_owned()));
    }

    #[test]
    fn a_store_on_the_network_and_an_address_to_reach_it() {
        let line = "strata.store=nfs:10.0.0.1:/srv/strata ip=";
        let parse = |ip: &str| Options::parse(&format!("{line}{ip}")).expect("valid");
        let options = parse("10.0.0.50::10.0.0.254:255.255.255.0");
        let server = Ipv4Addr::new(10, 0, 0, 1);
        assert_eq!(options.store, Share::Nfs { server, path: "/srv/strata".to_owned() });
        assert!(options.need_network());
        let mut address = StaticAddress {
            address: Ipv4Addr::new(10, 0, 0, 50),
            netmask: Ipv4Addr::new(255, 255, 255, 0),
            gateway: Some(Ipv4Addr::new(10, 0, 0, 254)),
            interface: None,
        };
        assert_eq!(options.address, Some(address.clone()));
        address.gateway = None;
        address.interface = Some("eth1".to_owned());
        let options = parse("10.0.0.50:::255.255.255.0:web-03:eth1:off");
        assert_eq!(options.address, Some(address));
        for automatic in ["dhcp", ":::", ":::::eth1:dhcp", "", "on"] {
            assert_eq!(parse(automatic).address, None, "{automatic}");
        }
        // Where nothing is on the network, the word is the kernel's alone.
        let local = Options::parse("strata.store=9p:s ip=whatever").expect("valid");
        assert_eq!((local.need_network(), local.address), (false, None));
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for (line, told) in [
            ("quiet", "does not say where the store is"),
            ("strata.store=9p:s strata.stroe=9p:s", "\"strata.stroe=9p:s\" is no option"),
            ("strata.store=ftp:s", "the transports are virtiofs, 9p and nfs"),
            ("strata.store=9p", "write virtiofs:TAG, 9p:TAG or nfs:ADDRESS:/PATH"),
            ("strata.store=nfs:10.0.0.1", "write nfs:ADDRESS:/PATH"),
            ("strata.store=nfs:server:/s", "the file server is an IPv4 address"),
            ("strata.store=nfs:10.0.0.1:s", "the path on the file server is absolute"),
            ("strata.store=nfs:10.0.0.1:/s ip=10.0.0.2", "write the netmask, too"),
            ("strata.store=nfs:10.0.0.1:/s ip=10.0.0:::255.0.0.0", "an IPv4 address is written as"),
            ("strata.store=9p:a,b", "a tag has 1 to 31"),
            ("strata.store=9p:s strata.mac=1", "strata.mac=\"1\""),
            ("strata.store=9p:s strata.mac=01:00:5e:00:00:01", "strata.mac="),
            ("strata.store=9p:s strata.interface=../x", "write a plain name"),
            ("strata.store=9p:s strata.disk=/dev/../mem", "write a plain name"),
            ("strata.store=9p:s strata.init=init", "write an absolute path"),
            ("strata.store=9p:s strata.give-up=-1", "write a number of seconds"),
        ] {
            let error = Options::parse(line).expect_err(line).to_string();
            assert!(error.contains(told), "{line}: {error}");
        }
    }
}
