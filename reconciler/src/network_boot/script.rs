//! Scripts of iPXE's: functions of plain data.

use strata_core::{MacAddr, VaName};
use strata_import::boot::{INITRAMFS, KERNEL};

use super::command_line::CommandLine;

/// Seconds until a machine that could not boot asks again.
const AGAIN: u32 = 15;

/// Leads each machine to its own script. The address has dashes there: what stands before a
/// colon is a scheme to iPXE.
pub fn first() -> String {
    format!(
        "#!ipxe\n\
         :again\n\
         chain --replace --autofree va/${{netX/mac:hexhyp}}.ipxe ||\n\
         echo Strata: the script of ${{netX/mac}} cannot be had; again in {AGAIN} s\n\
         sleep {AGAIN}\n\
         goto again\n"
    )
}

/// Boots a machine into its VA, and asks again where that fails: there may be another
/// environment by then.
pub fn machine(
    mac: MacAddr,
    name: Option<&VaName>,
    environment: &str,
    command_line: &CommandLine,
) -> String {
    let words = command_line.for_machine(mac, name);
    let va = name.map_or_else(|| mac.to_string(), |name| format!("{name} ({mac})"));
    // Firmware of the UEFI kind finds the initramfs by its name alone.
    format!(
        "#!ipxe\n\
         echo Strata: {va} boots {environment}\n\
         kernel ../boot/{environment}/{KERNEL} initrd={INITRAMFS} {words} || goto failed\n\
         initrd ../boot/{environment}/{INITRAMFS} || goto failed\n\
         boot || goto failed\n\
         :failed\n\
         imgfree\n\
         {}",
        again(&format!("{va} does not boot"))
    )
}

/// Tells why a machine does not boot, and asks again.
pub fn waiting(mac: MacAddr, why: &str) -> String {
    format!("#!ipxe\n{}", again(&format!("{mac} {why}")))
}

fn again(message: &str) -> String {
    format!(
        "echo Strata: {message}; again in {AGAIN} s\n\
         sleep {AGAIN}\n\
         chain --replace --autofree ../boot.ipxe\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_names_one_environment_and_one_machine() {
        let mac: MacAddr = "52:54:00:12:34:56".parse().expect("an address");
        let name = VaName::new("web-03").expect("valid");
        let line = "quiet strata.store=9p:store ip=10.0.0.7".parse().expect("valid");
        assert_eq!(
            machine(mac, Some(&name), "6.1.0-56-amd64-0123456789ab", &line),
            "#!ipxe\n\
             echo Strata: web-03 (52:54:00:12:34:56) boots 6.1.0-56-amd64-0123456789ab\n\
             kernel ../boot/6.1.0-56-amd64-0123456789ab/kernel initrd=initramfs quiet \
             strata.store=9p:store ip=10.0.0.7 strata.mac=52:54:00:12:34:56 \
             strata.hostname=web-03 || goto failed\n\
             initrd ../boot/6.1.0-56-amd64-0123456789ab/initramfs || goto failed\n\
             boot || goto failed\n\
             :failed\n\
             imgfree\n\
             echo Strata: web-03 (52:54:00:12:34:56) does not boot; again in 15 s\n\
             sleep 15\n\
             chain --replace --autofree ../boot.ipxe\n"
        );
        let waiting = waiting(mac, "is no VA of this store");
        assert!(waiting.starts_with("#!ipxe\necho Strata: 52:54:00:12:34:56 is no VA"));
        assert!(first().starts_with("#!ipxe\n"));
    }
}
