//! Diversions: a layer that takes over a path of others, as `dpkg-divert` does
//! it for packages (`docs/formats.md`, "Metadata").
//!
//! A unit is never changed, so the file that others have at the path is not
//! moved to its other name: the diverting layer stands above them, and theirs
//! is obscured. The other name is kept for the distribution's own tools.

use std::fmt;

use crate::limits;

/// One path that is taken over, and the name that the others' file goes by.
/// Both are absolute.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Diversion {
    from: String,
    to: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiversionError {
    #[error("write /path => /other, one after the other with commas")]
    Form,
    #[error(
        "{0:?} is no path that can be diverted: it must be absolute, without spaces, commas, empty, . and .. components"
    )]
    Path(String),
}

impl Diversion {
    /// # Errors
    /// A path that is not absolute and canonical, or that the list cannot hold.
    pub fn new(from: &str, to: &str) -> Result<Self, DiversionError> {
        for path in [from, to] {
            let plain = |c: char| !c.is_whitespace() && !c.is_control() && c != ',';
            let canonical = path.strip_prefix('/').is_some_and(|rest| {
                rest.split('/').all(|component| !matches!(component, "" | "." | ".."))
            });
            if !canonical || path.len() > limits::PATH_BYTES || !path.chars().all(plain) {
                return Err(DiversionError::Path(path.chars().take(64).collect()));
            }
        }
        Ok(Diversion { from: from.to_owned(), to: to.to_owned() })
    }

    /// The path that is taken over, relative to the root, as manifests name it.
    pub fn path(&self) -> &[u8] {
        &self.from.as_bytes()[1..]
    }

    pub fn from(&self) -> &str {
        &self.from
    }

    pub fn to(&self) -> &str {
        &self.to
    }
}

impl fmt::Display for Diversion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} => {}", self.from, self.to)
    }
}

/// Parses `/a => /b, /c => /d`.
///
/// # Errors
/// The first fault, with its byte offset in `text`.
pub fn parse_list(text: &str) -> Result<Vec<Diversion>, (usize, DiversionError)> {
    let mut list = Vec::new();
    let mut offset = 0;
    for part in text.split(',') {
        let at = offset + part.len() - part.trim_start().len();
        offset += part.len() + 1;
        let (from, to) = part.split_once("=>").ok_or((at, DiversionError::Form))?;
        list.push(Diversion::new(from.trim(), to.trim()).map_err(|error| (at, error))?);
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relation::print_list;

    #[test]
    fn lists_round_trip() {
        let text = "/bin/sh => /bin/sh.distrib, /usr/share/man/man1/sh.1.gz => /x";
        let list = parse_list(text).expect("valid");
        assert_eq!(list[0].path(), b"bin/sh");
        assert_eq!(print_list(&list), text);
    }

    #[test]
    fn faults_have_their_place() {
        assert_eq!(parse_list("/a"), Err((0, DiversionError::Form)));
        assert_eq!(parse_list("/a => /b,").map_err(|(at, _)| at), Err(9));
        for bad in ["a => /b", "/a => /b/../c", "/a => /", "/a b => /c", "/a//b => /c"] {
            assert!(matches!(parse_list(bad), Err((0, DiversionError::Path(_)))), "{bad}");
        }
    }
}
