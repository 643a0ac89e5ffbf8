//! Which VA this machine is: its address, and that the store has a link for it.
//!
//! The interfaces are read below a directory that is given, `/sys` in a machine,
//! so that tests need no machine.

use std::path::Path;

use strata_core::MacAddr;

use crate::boot::error::BootError;
use crate::boot::options::Identity;

/// `ARPHRD_ETHER` of `/sys/class/net/<name>/type`.
const ETHERNET: &str = "1";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub mac: MacAddr,
}

/// The Ethernet interfaces that the kernel has, by name.
///
/// # Errors
/// The directory cannot be listed.
pub fn interfaces(sys: &Path) -> Result<Vec<Interface>, BootError> {
    let directory = sys.join("class/net");
    let failed = |source| BootError::Read { path: directory.clone(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        // One that vanishes meanwhile is none.
        let read = |name: &str| std::fs::read_to_string(path.join(name)).unwrap_or_default();
        let mac = read("address").trim().parse::<MacAddr>();
        let name = path.file_name().and_then(|name| name.to_str()).map(ToOwned::to_owned);
        if let (Some(name), Ok(mac)) = (name, mac)
            && read("type").trim() == ETHERNET
            && mac.octets() != [0; 6]
        {
            found.push(Interface { name, mac });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Chooses this machine's address. `linked` says whether the store has a VA with it.
///
/// # Errors
/// There is no such interface, no linked one, or more than one.
pub fn choose(
    identity: &Identity,
    interfaces: &[Interface],
    mut linked: impl FnMut(MacAddr) -> Result<bool, BootError>,
) -> Result<MacAddr, BootError> {
    let named = match identity {
        Identity::Mac(mac) => Some(*mac),
        Identity::Interface(name) => {
            let found = interfaces.iter().find(|interface| interface.name == *name);
            let found = found.ok_or_else(|| BootError::NoInterface {
                name: name.clone(),
                found: shown(interfaces),
            })?;
            Some(found.mac)
        }
        Identity::Linked => None,
    };
    if let Some(mac) = named {
        return match linked(mac)? {
            true => Ok(mac),
            false => Err(BootError::NotProvisioned { macs: mac.to_string() }),
        };
    }
    let mut own = Vec::new();
    for interface in interfaces {
        if linked(interface.mac)? {
            own.push(interface.clone());
        }
    }
    match own.as_slice() {
        [one] => Ok(one.mac),
        [] if interfaces.is_empty() => Err(BootError::NoInterfaces),
        [] => Err(BootError::NotProvisioned { macs: shown(interfaces) }),
        several => Err(BootError::SeveralVas { found: shown(several) }),
    }
}

/// Interfaces as messages have them.
pub fn shown(interfaces: &[Interface]) -> String {
    if interfaces.is_empty() {
        return "none".to_owned();
    }
    let each = interfaces.iter().map(|interface| format!("{} ({})", interface.mac, interface.name));
    each.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn interface(name: &str, last: u8) -> Interface {
        let mac = format!("52:54:00:00:00:{last:02x}").parse().expect("an address");
        Interface { name: name.to_owned(), mac }
    }

    #[test]
    fn loopback_and_what_has_no_address_are_no_interfaces() {
        let sys = std::env::temp_dir().join(format!("strata-init-net-{}", std::process::id()));
        for (name, kind, address) in [
            ("lo", "772", "00:00:00:00:00:00"),
            ("eth1", "1", "52:54:00:00:00:02"),
            ("eth0", "1", "52:54:00:00:00:01"),
            ("sit0", "776", "00:00:00:00"),
            ("dummy", "1", "00:00:00:00:00:00"),
        ] {
            let directory = sys.join("class/net").join(name);
            fs::create_dir_all(&directory).expect("made");
            fs::write(directory.join("type"), format!("{kind}\n")).expect("written");
            fs::write(directory.join("address"), format!("{address}\n")).expect("written");
        }
        let found = interfaces(&sys);
        fs::remove_dir_all(&sys).expect("removed");
        assert_eq!(found.expect("listed"), [interface("eth0", 1), interface("eth1", 2)]);
    }

    #[test]
    fn the_one_linked_interface_is_the_machines() {
        let two = [interface("eth0", 1), interface("eth1", 2)];
        let linked = |macs: &'static [u8]| move |mac: MacAddr| Ok(macs.contains(&mac.octets()[5]));
        let choose = |identity: &Identity, macs| {
            choose(identity, &two, linked(macs)).map_err(|error| error.to_string())
        };
        assert_eq!(choose(&Identity::Linked, &[2]), Ok(two[1].mac));
        let none = choose(&Identity::Linked, &[]).expect_err("none");
        assert!(none.contains("52:54:00:00:00:01 (eth0), 52:54:00:00:00:02 (eth1)"), "{none}");
        let both = choose(&Identity::Linked, &[1, 2]).expect_err("two");
        assert!(both.contains("several"), "{both}");
        let named = Identity::Interface("eth0".to_owned());
        assert_eq!(choose(&named, &[1, 2]), Ok(two[0].mac));
        let unlinked = choose(&named, &[2]).expect_err("not linked");
        assert!(unlinked.contains("52:54:00:00:00:01"), "{unlinked}");
        let absent = choose(&Identity::Interface("eth7".to_owned()), &[1]).expect_err("absent");
        assert!(absent.contains("eth7"), "{absent}");
        // A machine without a network card can still be told which VA it is.
        let other = interface("", 9).mac;
        assert_eq!(choose(&Identity::Mac(other), &[9]), Ok(other));
    }
}
