//! File capabilities: the text that rpm keeps (`cap_from_text(3)`), as the
//! extended attribute that the kernel reads (`security.capability`, version 2).

/// Names by their numbers (`capabilities(7)`).
const NAMES: [&str; 41] = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
];
const REVISION_2: u32 = 0x0200_0000;

/// The attribute's value; `None` where the text is not understood. An empty set
/// gives an empty value: no attribute.
pub fn attribute(text: &str) -> Option<Vec<u8>> {
    let (mut effective, mut permitted, mut inheritable) = (0_u64, 0_u64, 0_u64);
    for clause in text.split_whitespace() {
        let at = clause.find(['=', '+', '-'])?;
        let (names, mut actions) = clause.split_at(at);
        let set = capabilities(names, actions.starts_with('='))?;
        while let Some(operator) = actions.chars().next() {
            let rest = &actions[1..];
            let end = rest.find(['=', '+', '-']).unwrap_or(rest.len());
            let (flags, after) = rest.split_at(end);
            actions = after;
            if !flags.bytes().all(|flag| b"eip".contains(&flag)) {
                return None;
            }
            for (flag, held) in
                [('e', &mut effective), ('p', &mut permitted), ('i', &mut inheritable)]
            {
                match (operator, flags.contains(flag)) {
                    ('=' | '+', true) => *held |= set,
                    ('-', true) | ('=', false) => *held &= !set,
                    _ => {}
                }
            }
        }
    }
    if permitted == 0 && inheritable == 0 {
        return Some(Vec::new());
    }
    // A file has one effective bit: all of what it may have, or nothing.
    if effective != 0 && effective != permitted | inheritable {
        return None;
    }
    let words = [
        REVISION_2 | u32::from(effective != 0),
        permitted as u32,
        inheritable as u32,
        (permitted >> 32) as u32,
        (inheritable >> 32) as u32,
    ];
    Some(words.iter().flat_map(|word| word.to_le_bytes()).collect())
}

/// The set that a list of names means; a lone `=` means all.
fn capabilities(names: &str, sets: bool) -> Option<u64> {
    let all = (1 << NAMES.len()) - 1;
    if names.is_empty() {
        return sets.then_some(all);
    }
    names.split(',').try_fold(0, |set, name| {
        let name = name.to_ascii_lowercase();
        if name == "all" {
            return Some(all);
        }
        let short = name.strip_prefix("cap_")?;
        let number = NAMES.iter().position(|known| *known == short);
        let number = number.or_else(|| short.parse().ok().filter(|n| *n < NAMES.len()));
        Some(set | 1 << number?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Option<Vec<u32>> {
        let bytes = attribute(text)?;
        let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes"));
        Some(bytes.chunks_exact(4).map(word).collect())
    }

    #[test]
    fn texts_of_packages() {
        assert_eq!(words("cap_net_raw=ep"), Some(vec![0x0200_0001, 1 << 13, 0, 0, 0]));
        let both = Some(vec![0x0200_0001, 1 << 12 | 1 << 13, 0, 0, 0]);
        assert_eq!(words("cap_net_admin,cap_net_raw+ep"), both);
        assert_eq!(words("= cap_net_admin,cap_net_raw+ep"), both);
        assert_eq!(words("cap_setuid+p"), Some(vec![0x0200_0000, 1 << 7, 0, 0, 0]));
        assert_eq!(words("cap_bpf=ei"), Some(vec![0x0200_0001, 0, 0, 0, 1 << 7]));
        assert_eq!(words("="), Some(vec![]));
    }

    #[test]
    fn what_is_not_understood() {
        for bad in ["cap_fly=ep", "net_raw=ep", "cap_net_raw", "cap_net_raw=x", "cap_kill=e"] {
            assert_eq!(words(bad).filter(|words| !words.is_empty()), None, "{bad}");
        }
    }
}
