//! Names of archive members, made safe once and then trusted.

use strata_core::limits;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    #[error("the name is absolute")]
    Absolute,
    #[error("the name leaves the layer through ..")]
    Parent,
    #[error("the name is empty")]
    Empty,
    #[error("the name contains a NUL byte")]
    Nul,
    #[error("the name has {0} bytes, the limit is {max}", max = limits::PATH_BYTES)]
    PathTooLong(usize),
    #[error("one component of the name has {0} bytes, the limit is {max}", max = limits::COMPONENT_BYTES)]
    ComponentTooLong(usize),
    #[error("the name is {0} directories deep, the limit is {max}", max = limits::TREE_DEPTH)]
    TooDeep(usize),
}

/// A member's name as a path relative to the layer's root; `./` is the root,
/// the empty path. Empty and `.` components carry no meaning and go.
///
/// # Errors
/// Anything that could leave the layer or that no file system can hold.
pub fn member_path(name: &[u8]) -> Result<Vec<u8>, MemberError> {
    if name.is_empty() {
        return Err(MemberError::Empty);
    }
    if name.contains(&0) {
        return Err(MemberError::Nul);
    }
    if name[0] == b'/' {
        return Err(MemberError::Absolute);
    }
    let mut path = Vec::with_capacity(name.len());
    let mut depth = 0;
    for component in name.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => continue,
            b".." => return Err(MemberError::Parent),
            long if long.len() > limits::COMPONENT_BYTES => {
                return Err(MemberError::ComponentTooLong(long.len()));
            }
            _ => {}
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(component);
        depth += 1;
    }
    if path.len() > limits::PATH_BYTES {
        return Err(MemberError::PathTooLong(path.len()));
    }
    if depth > limits::TREE_DEPTH {
        return Err(MemberError::TooDeep(depth));
    }
    Ok(path)
}

/// A path as people read it in a message: lossy, control characters escaped.
pub fn shown(path: &[u8]) -> String {
    let path = &path[..path.len().min(limits::PATH_BYTES)];
    String::from_utf8_lossy(path).escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn harmless_names_are_made_canonical() {
        for (name, path) in [
            ("./", ""),
            (".", ""),
            ("./usr/bin/", "usr/bin"),
            ("usr//bin/./perl", "usr/bin/perl"),
            ("..a/b..", "..a/b.."),
        ] {
            assert_eq!(member_path(name.as_bytes()), Ok(path.as_bytes().to_vec()), "{name:?}");
        }
        assert_eq!(member_path(b"./caf\xe9"), Ok(b"caf\xe9".to_vec()));
    }

    #[test]
    fn hostile_names_are_refused() {
        assert_eq!(member_path(b"/etc/passwd"), Err(MemberError::Absolute));
        assert_eq!(member_path(b"./a/../../b"), Err(MemberError::Parent));
        assert_eq!(member_path(b".."), Err(MemberError::Parent));
        assert_eq!(member_path(b""), Err(MemberError::Empty));
        assert_eq!(member_path(b"a\0b"), Err(MemberError::Nul));
        assert_eq!(member_path(&[b'x'; 256]), Err(MemberError::ComponentTooLong(256)));
        assert_eq!(member_path(&b"a/".repeat(300)), Err(MemberError::TooDeep(300)));
        let long = [&[b'x'; 250][..], b"/"].concat().repeat(17);
        assert!(matches!(member_path(&long), Err(MemberError::PathTooLong(_))));
    }
}
