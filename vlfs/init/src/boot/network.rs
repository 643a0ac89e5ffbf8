//! The network of the boot environment, for shares that are on it.
//!
//! One interface gets one address, which the kernel command line names: `strata boot serve` hands
//! on what the machine's network boot got from the DHCP server. Where the kernel has asked for
//! one itself (`ip=dhcp`, of kernels with IP autoconfiguration and the card's driver built in), that
//! one is taken. There is no DHCP client here: the appliance has one of its own.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::boot::error::BootError;
use crate::boot::identity::Interface;
use crate::boot::options::{Identity, Options, StaticAddress};
use crate::error::Context;
use crate::system;

/// Where file servers of version 4 are asked, and most of version 3.
const NFS_PORT: u16 = 2049;
/// A server in a network that is up answers sooner.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);

/// Brings up the interface to which the shares are reached.
///
/// # Errors
/// There is no such interface yet, or it has no address and none is given.
pub fn bring_up(options: &Options, interfaces: &[Interface]) -> Result<(), BootError> {
    let name = &choose(options.address.as_ref(), &options.identity, interfaces)?.name;
    system::bring_up(name).context("bring up", name)?;
    match &options.address {
        Some(StaticAddress { address, netmask, gateway, .. }) => {
            system::set_address(name, *address, *netmask).context("set the address of", name)?;
            if let Some(gateway) = gateway {
                let subject = format!("the gateway {gateway}");
                system::set_gateway(*gateway).context("reach", &subject)?;
            }
            Ok(())
        }
        None => match system::address_of(name).context("ask for the address of", name)? {
            Some(_the_kernels) => Ok(()),
            None => Err(BootError::NoAddress { interface: name.clone() }),
        },
    }
}

/// The interface that is named, or is that of the machine's address, or is the only one.
fn choose<'i>(
    address: Option<&StaticAddress>,
    identity: &Identity,
    interfaces: &'i [Interface],
) -> Result<&'i Interface, BootError> {
    let absent = |what: &str| BootError::NoInterface {
        name: what.to_owned(),
        found: crate::boot::identity::shown(interfaces),
    };
    let named = address.and_then(|address| address.interface.as_deref());
    let named = named.or(match identity {
        Identity::Interface(name) => Some(name.as_str()),
        Identity::Linked | Identity::Mac(_) => None,
    });
    match (named, identity, interfaces) {
        (_, _, []) => Err(BootError::NoInterfaces),
        (Some(name), _, _) => {
            interfaces.iter().find(|known| known.name == name).ok_or_else(|| absent(name))
        }
        (None, _, [one]) => Ok(one),
        (None, Identity::Mac(mac), _) => {
            let own = interfaces.iter().find(|known| known.mac == *mac);
            own.ok_or_else(|| absent(&format!("with the address {mac}")))
        }
        (None, Identity::Linked | Identity::Interface(_), _) => {
            Err(BootError::SeveralInterfaces { found: crate::boot::identity::shown(interfaces) })
        }
    }
}

/// Waits for a file server to take a connection: mounting from one that is away takes minutes
/// to fail, with nothing to read meanwhile.
///
/// # Errors
/// It takes none within five seconds.
pub fn ask(server: Ipv4Addr) -> Result<(), BootError> {
    let address = SocketAddr::from((server, NFS_PORT));
    match TcpStream::connect_timeout(&address, ANSWER_PATIENCE) {
        Ok(_connection) => Ok(()),
        Err(source) => Err(BootError::NoServer { server, port: NFS_PORT, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use strata_core::MacAddr;

    fn mac(last: u8) -> MacAddr {
        format!("52:54:00:00:00:{last:02x}").parse().expect("an address")
    }

    fn interface(name: &str, last: u8) -> Interface {
        Interface { name: name.to_owned(), mac: mac(last) }
    }

    #[test]
    fn the_interface_is_named_or_the_machines_own_or_the_only_one() {
        let two = [interface("eth0", 1), interface("eth1", 2)];
        let address = StaticAddress {
            address: Ipv4Addr::new(10, 0, 0, 2),
            netmask: Ipv4Addr::new(255, 255, 255, 0),
            gateway: None,
            interface: Some("eth1".to_owned()),
        };
        let name = |address: Option<&StaticAddress>, identity: &Identity, all: &[Interface]| {
            choose(address, identity, all)
                .map(|chosen| chosen.name.clone())
                .map_err(|error| error.to_string())
        };
        let eth = |name: &str| Ok(name.to_owned());
        assert_eq!(name(Some(&address), &Identity::Mac(mac(1)), &two), eth("eth1"));
        assert_eq!(name(None, &Identity::Interface("eth0".to_owned()), &two), eth("eth0"));
        assert_eq!(name(None, &Identity::Mac(mac(2)), &two), eth("eth1"));
        assert_eq!(name(None, &Identity::Linked, &two[..1]), eth("eth0"));
        // A machine may be told that it is a VA by an address that no card of its own has.
        assert_eq!(name(None, &Identity::Mac(mac(9)), &two[..1]), eth("eth0"));
        let several = name(None, &Identity::Linked, &two).expect_err("two");
        assert!(several.contains("52:54:00:00:00:01 (eth0), 52:54:00:00:00:02"), "{several}");
        let absent = name(None, &Identity::Mac(mac(9)), &two).expect_err("absent");
        assert!(absent.contains("with the address 52:54:00:00:00:09"), "{absent}");
        assert!(name(None, &Identity::Linked, &[]).is_err());
    }
}
