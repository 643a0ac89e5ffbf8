//! `templates/<name>.modes`: what git cannot keep (`docs/formats.md`, "Modes").
//!
//! One `path mode owner group` a line. A path that ends in `/` is a directory
//! and need not stand in the tree, since git keeps no empty ones.

use std::collections::BTreeMap;

use crate::limits;
use crate::lines::{Line, lines};
use crate::position::Located;

/// One line of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModeLine {
    pub line: u32,
    /// Whether the path was written as a directory, with `/` at its end.
    pub directory: bool,
    /// Permission bits; `None` (written `-`) leaves them as they are.
    pub mode: Option<u32>,
    pub uid: u32,
    pub gid: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModeError {
    #[error("the file has {0} bytes, the limit is {max}", max = limits::CONFIGURATION_BYTES)]
    TooLarge(usize),
    #[error("the line is not UTF-8")]
    Encoding,
    #[error("write `path mode owner group`, as in `etc/ssl/private/key.pem 0640 root 110`")]
    Fields,
    #[error("the path {0:?} is empty or has a component that is empty, `.` or `..`")]
    Path(String),
    #[error("{0:?} is no mode: write up to four octal digits as in 0640, or - to leave it")]
    Mode(String),
    #[error(
        "{0:?} is no owner: write a number, or root (names differ from appliance to appliance)"
    )]
    Owner(String),
    #[error("the path {path:?} stands on line {first} already")]
    Duplicate { path: String, first: u32 },
}

/// The lines by path, relative to the template's root.
pub type Modes = BTreeMap<String, ModeLine>;

/// Parses the file; what could be read is returned along with every fault.
pub fn parse(text: &[u8]) -> (Modes, Vec<Located<ModeError>>) {
    let mut modes = Modes::new();
    if text.len() > limits::CONFIGURATION_BYTES {
        return (modes, vec![Located::new(1, 1, ModeError::TooLarge(text.len()))]);
    }
    let mut faults = Vec::new();
    for line in lines(text) {
        let parsed = match &line {
            Err(number) => Err(Located::new(*number, 1, ModeError::Encoding)),
            Ok(line) => parse_line(line),
        };
        match parsed {
            Err(fault) => faults.push(fault),
            Ok((path, line)) => {
                if let Some(first) = modes.get(&path).map(|first| first.line) {
                    let number = line.line as usize;
                    faults.push(Located::new(number, 1, ModeError::Duplicate { path, first }));
                } else {
                    modes.insert(path, line);
                }
            }
        }
    }
    (modes, faults)
}

/// The last three words are mode, owner and group: a path may hold spaces.
fn parse_line(line: &Line<'_>) -> Result<(String, ModeLine), Located<ModeError>> {
    let (content, number) = (line.content, line.number);
    let fault = |part: &str, error: ModeError| line.at(part, error);
    let shown = |part: &str| part.chars().take(64).collect::<String>();
    let last_word = |text: &str| -> Option<usize> {
        text.rfind(char::is_whitespace)
            .map(|at| at + text[at..].chars().next().map_or(1, char::len_utf8))
    };
    let mut rest = content;
    let mut words = [""; 3];
    for word in words.iter_mut().rev() {
        let at = last_word(rest).ok_or_else(|| fault(content, ModeError::Fields))?;
        *word = &rest[at..];
        rest = rest[..at].trim_end();
    }
    let [mode, owner, group] = words;
    let path = rest.strip_prefix('/').unwrap_or(rest);
    let directory = path.ends_with('/');
    let path = path.strip_suffix('/').unwrap_or(path);
    if path.contains('\0') || path.split('/').any(|c| matches!(c, "" | "." | "..")) {
        return Err(fault(content, ModeError::Path(shown(rest))));
    }
    let bits = match mode {
        "-" => None,
        _ => {
            let digits = mode.len() <= 4 && mode.bytes().all(|b| matches!(b, b'0'..=b'7'));
            let bits = u32::from_str_radix(mode, 8).ok().filter(|_| digits);
            Some(bits.ok_or_else(|| fault(mode, ModeError::Mode(shown(mode))))?)
        }
    };
    let id = |word: &str| match word {
        "root" => Ok(0),
        _ => word
            .parse()
            .ok()
            .filter(|id| *id != u32::MAX && word.bytes().all(|b| b.is_ascii_digit()))
            .ok_or_else(|| fault(word, ModeError::Owner(shown(word)))),
    };
    let line = u32::try_from(number).unwrap_or(u32::MAX);
    let line = ModeLine { line, directory, mode: bits, uid: id(owner)?, gid: id(group)? };
    Ok((path.to_owned(), line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let (modes, faults) = parse(
            b"# keys\netc/my key.pem 0640 root 110\n/var/spool/x/ 1777 root root\nbin/su - 0 0\n",
        );
        assert_eq!(faults, []);
        assert_eq!(
            modes["etc/my key.pem"],
            ModeLine { line: 2, directory: false, mode: Some(0o640), uid: 0, gid: 110 }
        );
        assert!(modes["var/spool/x"].directory);
        assert_eq!(modes["bin/su"].mode, None);
    }

    #[test]
    fn every_fault_at_once() {
        let text = b"a 0644 root\na/../b 0644 root root\na 9 root root\nb 0644 alice root\n\xff\nc 0644 root root\nc 0600 root root\nd 12345 0 0\ne 0644 0 +1\n";
        let (_, faults) = parse(text);
        let places: Vec<_> = faults.iter().map(|f| (f.line, f.column)).collect();
        assert_eq!(places, [(1, 1), (2, 1), (3, 3), (4, 8), (5, 1), (7, 1), (8, 3), (9, 10)]);
    }

    proptest::proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200), text in "[a/ .0-9#\u{3000}-]{0,60}") {
            let _checked = parse(&bytes);
            let _checked = parse(text.as_bytes());
        }
    }
}
