//! The kernel command line that machines boot with, as it stands in a script of iPXE's.

use std::str::FromStr;

use strata_core::{MacAddr, VaName};

/// The kernel takes 2,048 bytes (x86), of which each machine's own words need some.
const BYTES: usize = 1600;
/// What each machine's script says itself.
const OWN: [&str; 4] = ["strata.mac=", "strata.hostname=", "BOOTIF=", "initrd="];
/// Stands for a machine's address.
const MAC: &str = "{mac}";

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandLineError {
    #[error("the kernel command line does not say where the store is")]
    NoStore,
    #[error("the kernel command line has {0} bytes, more than {BYTES}")]
    TooLong(usize),
    #[error("{0:?} is set for each machine by itself")]
    Own(String),
    #[error(
        "{0:?} cannot be on the kernel command line: a word has letters, digits and . _ : = / , @ % + - [ ], and {MAC}"
    )]
    Word(String),
}

/// Words for the kernel and for `strata-init` (`docs/boot.md`). They mean nothing else to iPXE,
/// which has quotes, variables and separators of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine(Vec<String>);

impl FromStr for CommandLine {
    type Err = CommandLineError;

    fn from_str(text: &str) -> Result<Self, CommandLineError> {
        if text.len() > BYTES {
            return Err(CommandLineError::TooLong(text.len()));
        }
        let words: Vec<String> = text.split_whitespace().map(ToOwned::to_owned).collect();
        for word in &words {
            let plain = |c: char| c.is_ascii_alphanumeric() || "._:=/,@%+-[]".contains(c);
            if !word.replace(MAC, "").chars().all(plain) {
                return Err(CommandLineError::Word(word.clone()));
            }
            if OWN.iter().any(|own| word.starts_with(own)) {
                return Err(CommandLineError::Own(word.clone()));
            }
        }
        if !words.iter().any(|word| word.starts_with("strata.store=")) {
            return Err(CommandLineError::NoStore);
        }
        Ok(CommandLine(words))
    }
}

impl CommandLine {
    /// The words for one machine. `${netX/…}` is what iPXE got from the DHCP server: most kernels
    /// cannot ask it themselves, and the store may be on the network.
    pub(super) fn for_machine(&self, mac: MacAddr, name: Option<&VaName>) -> String {
        let mac = mac.to_string();
        let mut words: Vec<String> = self.0.iter().map(|word| word.replace(MAC, &mac)).collect();
        words.push(format!("strata.mac={mac}"));
        if let Some(hostname) = name.and_then(VaName::hostname) {
            words.push(format!("strata.hostname={hostname}"));
        }
        if !words.iter().any(|word| word.starts_with("ip=")) {
            words.push("ip=${netX/ip}::${netX/gateway}:${netX/netmask}".to_owned());
        }
        words.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac() -> MacAddr {
        "52:54:00:12:34:56".parse().expect("an address")
    }

    #[test]
    fn a_machine_is_told_who_it_is_and_where_it_is() {
        let line: CommandLine = "quiet strata.store=nfs:10.0.0.1:/srv/strata \
             strata.reports=nfs:10.0.0.1:/srv/reports/{mac}"
            .parse()
            .expect("valid");
        let name = VaName::new("web-03").expect("valid");
        assert_eq!(
            line.for_machine(mac(), Some(&name)),
            "quiet strata.store=nfs:10.0.0.1:/srv/strata \
             strata.reports=nfs:10.0.0.1:/srv/reports/52:54:00:12:34:56 \
             strata.mac=52:54:00:12:34:56 strata.hostname=web-03 \
             ip=${netX/ip}::${netX/gateway}:${netX/netmask}"
        );
        let own: CommandLine = "strata.store=9p:store ip=10.0.0.7".parse().expect("valid");
        let strange = VaName::new("web+3").expect("valid");
        for name in [None, Some(&strange)] {
            let told = own.for_machine(mac(), name);
            assert_eq!(told, "strata.store=9p:store ip=10.0.0.7 strata.mac=52:54:00:12:34:56");
        }
    }

    #[test]
    fn what_ipxe_would_read_in_its_own_way_is_refused() {
        for (line, told) in [
            ("quiet", "does not say where the store is"),
            ("strata.store=9p:s ${net0/ip}", "cannot be on the kernel command line"),
            ("strata.store=9p:s a||b", "cannot be on the kernel command line"),
            ("strata.store=9p:s #", "cannot be on the kernel command line"),
            ("strata.store=9p:s \"a b\"", "cannot be on the kernel command line"),
            ("strata.store=9p:s {name}", "cannot be on the kernel command line"),
            ("strata.store=9p:s strata.mac=52:54:00:12:34:56", "set for each machine by itself"),
        ] {
            let error = line.parse::<CommandLine>().expect_err(line).to_string();
            assert!(error.contains(told), "{line}: {error}");
        }
        let long = format!("strata.store=9p:s {}", "a".repeat(BYTES));
        assert!(long.parse::<CommandLine>().is_err());
        // A line of its own would be a command of its own.
        let lines: CommandLine = "strata.store=9p:s\nshell".parse().expect("one line");
        assert!(!lines.for_machine(mac(), None).contains('\n'));
    }
}
