//! The merged /usr: what a package ships below /bin, /sbin and /lib* is moved
//! below /usr when it is converted, because the union of layers follows no link
//! while it is composed (`docs/formats.md`, "Conversion of .deb").

/// Top-level names that a merged system has as links into /usr.
pub const ALIASES: [&str; 6] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"];

fn alias(path: &[u8]) -> bool {
    let top = path.split(|byte| *byte == b'/').next().unwrap_or(b"");
    ALIASES.iter().any(|name| name.as_bytes() == top)
}

/// The place of a path (relative to the root) on a merged system.
pub fn merged(path: &[u8]) -> Vec<u8> {
    if alias(path) { [b"usr/", path].concat() } else { path.to_vec() }
}

/// Whether a link at the unmerged `path` is one of the links that make a
/// system merged, as `base-files` and `usr-is-merged` ship them.
pub fn is_merge_link(path: &[u8], target: &[u8]) -> bool {
    let target = target.strip_prefix(b"/").unwrap_or(target);
    let target = target.strip_suffix(b"/").unwrap_or(target);
    alias(path) && !path.contains(&b'/') && target == merged(path)
}

/// Whether a link at the unmerged `path` names itself once the system is
/// merged: a compatibility link between the two halves of an unmerged system.
pub fn is_self_link(path: &[u8], target: &[u8]) -> bool {
    let place = merged(path);
    let Some(target) = resolve(path, target) else { return false };
    // Only the merge may make them equal: a link to itself is left alone.
    merged(&target) == place && target != path
}

/// The path that a link's target names, `..` taken textually; `None` above the root.
pub fn resolve(path: &[u8], target: &[u8]) -> Option<Vec<u8>> {
    let mut components: Vec<&[u8]> = match target.first() {
        Some(b'/') => Vec::new(),
        _ => path.split(|byte| *byte == b'/').collect(),
    };
    if target.first() != Some(&b'/') {
        components.pop();
    }
    for component in target.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                components.pop()?;
            }
            name => components.push(name),
        }
    }
    Some(components.join(&b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_move_below_usr() {
        for (path, place) in [
            ("bin/ls", "usr/bin/ls"),
            ("lib", "usr/lib"),
            ("lib64/ld.so", "usr/lib64/ld.so"),
            ("library/x", "library/x"),
            ("usr/bin/x", "usr/bin/x"),
            ("etc/lib/x", "etc/lib/x"),
            ("", ""),
        ] {
            assert_eq!(merged(path.as_bytes()), place.as_bytes(), "{path}");
        }
    }

    #[test]
    fn links_of_the_merge() {
        assert!(is_merge_link(b"bin", b"usr/bin"));
        assert!(is_merge_link(b"lib64", b"/usr/lib64"));
        assert!(!is_merge_link(b"lib64", b"lib"));
        assert!(!is_merge_link(b"lib/x", b"usr/lib/x"));
    }

    #[test]
    fn links_between_the_halves() {
        assert!(is_self_link(b"bin/which", b"/usr/bin/which"));
        assert!(is_self_link(b"usr/sbin/ip", b"/sbin/ip"));
        assert!(is_self_link(b"usr/sbin/ip", b"../../sbin/ip"));
        assert!(!is_self_link(b"sbin/ip", b"/bin/ip"));
        assert!(!is_self_link(b"bin/sh", b"dash"));
        assert!(!is_self_link(b"bin/loop", b"loop"));
        assert!(!is_self_link(b"usr/bin/x", b"../../../etc/x"));
    }
}
