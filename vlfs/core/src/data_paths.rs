//! Data directories (§6.4; `docs/formats.md`, "Data directories"): paths of a VA
//! that live on its private disk and are mounted straight through.
//!
//! `templates/<name>.data` declares them, one absolute path a line; a sealed
//! generation has the sorted list in its file `data`. A path here never leaves the
//! VA's root, never is the root, and none lies in another.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fmt::Write as _;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::lines::lines;
use crate::position::Located;

/// First line of a generation's `data` file.
pub const HEADER: &str = "strata-data 1";
/// Where the VA's first process mounts the kernel's file systems.
const RESERVED: [&str; 4] = ["proc", "sys", "dev", "run"];

/// The path of a data directory: UTF-8, without a leading slash.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DataPath(String);

/// What is wrong with one path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DataPathError {
    #[error("the path {0:?} is not absolute: write it from /, as in /var/lib/mysql")]
    Relative(String),
    #[error("the whole root cannot be a data directory: name the directories in it that hold data")]
    Root,
    #[error("the path {0:?} has a component that is empty, `.` or `..`")]
    Component(String),
    #[error("the path {0:?} has a control character")]
    Control(String),
    #[error("the path {path:?} is too long: its name on the private disk would have {bytes} bytes, the limit is {max}", max = limits::COMPONENT_BYTES)]
    TooLong { path: String, bytes: usize },
    #[error("{path} is at or below /{reserved}, where every VA has a file system of the kernel's")]
    Reserved { path: String, reserved: &'static str },
}

/// What is wrong with a list of paths.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DataPathsError {
    #[error("the file has {0} bytes, the limit is {max}", max = limits::CONFIGURATION_BYTES)]
    TooLarge(usize),
    #[error("the line is not UTF-8")]
    Encoding,
    #[error(transparent)]
    Path(#[from] DataPathError),
    #[error("the path {path} stands on line {first} already")]
    Duplicate { path: DataPath, first: u32 },
    #[error("{inner} is in {outer}, which is a data directory itself")]
    Nested { inner: DataPath, outer: DataPath },
    #[error("more than {max} data directories", max = limits::DATA_PATHS)]
    TooMany,
    #[error("the first line must be {HEADER:?}; this file is of another version or none at all")]
    Header,
    #[error("the list is not as it would be printed: sorted absolute paths, one a line")]
    NotCanonical,
}

impl DataPath {
    /// Takes an absolute path; one slash at its end is dropped.
    ///
    /// # Errors
    /// The path is relative, is or leaves the root, or is one of Strata's own.
    pub fn new(text: &str) -> Result<Self, DataPathError> {
        let shown = || text.chars().take(64).collect::<String>();
        let path = text.strip_prefix('/').ok_or_else(|| DataPathError::Relative(shown()))?;
        let path = path.strip_suffix('/').unwrap_or(path);
        if path.is_empty() {
            return Err(DataPathError::Root);
        }
        if path.chars().any(char::is_control) {
            return Err(DataPathError::Control(shown()));
        }
        if path.split('/').any(|component| matches!(component, "" | "." | "..")) {
            return Err(DataPathError::Component(shown()));
        }
        let bytes = escape(path).len();
        if bytes > limits::COMPONENT_BYTES {
            return Err(DataPathError::TooLong { path: shown(), bytes });
        }
        let first = path.split('/').next().unwrap_or_default();
        if let Some(reserved) = RESERVED.into_iter().find(|reserved| *reserved == first) {
            return Err(DataPathError::Reserved { path: shown(), reserved });
        }
        Ok(DataPath(path.to_owned()))
    }

    /// The path from the VA's root, without a leading slash.
    pub fn relative(&self) -> &str {
        &self.0
    }

    /// Each directory from the top one down to the path itself.
    pub fn prefixes(&self) -> impl Iterator<Item = &str> {
        let ends = self.0.match_indices('/').map(|(at, _)| at).chain([self.0.len()]);
        ends.map(|end| &self.0[..end])
    }

    /// Its name below `data/` of a private directory: one component, and no
    /// other path has it.
    pub fn directory_name(&self) -> String {
        escape(&self.0)
    }

    /// The path that a name below `data/` stands for; `None` for any other name.
    pub fn of_directory_name(name: &[u8]) -> Option<Self> {
        let path = DataPath::new(&format!("/{}", unescape(name)?)).ok()?;
        (path.directory_name().as_bytes() == name).then_some(path)
    }

    /// Whether `other` lies in this directory.
    pub fn holds(&self, other: &DataPath) -> bool {
        other.0.strip_prefix(&self.0).is_some_and(|rest| rest.starts_with('/'))
    }
}

impl fmt::Display for DataPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0)
    }
}

impl From<DataPath> for String {
    fn from(path: DataPath) -> String {
        path.to_string()
    }
}

impl TryFrom<String> for DataPath {
    type Error = DataPathError;
    fn try_from(text: String) -> Result<Self, DataPathError> {
        DataPath::new(&text)
    }
}

impl FromStr for DataPath {
    type Err = DataPathError;
    fn from_str(text: &str) -> Result<Self, DataPathError> {
        DataPath::new(text)
    }
}

/// Letters, digits, `.`, `_` and `-` stand for themselves, every other byte is `%xx`.
fn escape(path: &str) -> String {
    let mut name = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"._-".contains(&byte) {
            name.push(char::from(byte));
        } else {
            let _infallible = write!(name, "%{byte:02x}");
        }
    }
    name
}

fn unescape(name: &[u8]) -> Option<String> {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first == b'%' {
            let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &rest[2..];
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).ok()
}

/// A sound list: sorted, none in another, not too many.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "BTreeSet<DataPath>", into = "BTreeSet<DataPath>")]
pub struct DataPaths(BTreeSet<DataPath>);

impl From<DataPaths> for BTreeSet<DataPath> {
    fn from(paths: DataPaths) -> BTreeSet<DataPath> {
        paths.0
    }
}

impl TryFrom<BTreeSet<DataPath>> for DataPaths {
    type Error = DataPathsError;
    fn try_from(paths: BTreeSet<DataPath>) -> Result<Self, DataPathsError> {
        DataPaths::new(paths)
    }
}

impl DataPaths {
    /// # Errors
    /// One path lies in another, or there are too many.
    pub fn new(paths: BTreeSet<DataPath>) -> Result<Self, DataPathsError> {
        if paths.len() > limits::DATA_PATHS {
            return Err(DataPathsError::TooMany);
        }
        if let Some((outer, inner)) = nested(paths.iter()).next() {
            return Err(DataPathsError::Nested { inner: inner.clone(), outer: outer.clone() });
        }
        Ok(DataPaths(paths))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn contains(&self, path: &DataPath) -> bool {
        self.0.contains(path)
    }

    pub fn iter(&self) -> impl Iterator<Item = &DataPath> {
        self.0.iter()
    }

    /// The text of a generation's `data` file.
    pub fn print(&self) -> String {
        let mut text = format!("{HEADER}\n");
        for path in &self.0 {
            let _infallible = writeln!(text, "{path}");
        }
        text
    }

    /// Reads a generation's `data` file.
    ///
    /// # Errors
    /// Anything but the print of a list that is not empty.
    pub fn parse(text: &[u8]) -> Result<Self, Located<DataPathsError>> {
        let whole = |error| Located::new(1, 1, error);
        if text.len() > limits::GENERATION_BYTES {
            return Err(whole(DataPathsError::TooLarge(text.len())));
        }
        let text = std::str::from_utf8(text).map_err(|_| whole(DataPathsError::Encoding))?;
        let mut lines = (1..).zip(text.lines());
        if lines.next().is_none_or(|(_, line)| line != HEADER) {
            return Err(whole(DataPathsError::Header));
        }
        let mut paths = BTreeSet::new();
        for (number, line) in lines {
            let path = DataPath::new(line).map_err(|e| Located::new(number, 1, e.into()))?;
            paths.insert(path);
        }
        let paths = DataPaths::new(paths).map_err(whole)?;
        if paths.is_empty() || paths.print() != text {
            return Err(whole(DataPathsError::NotCanonical));
        }
        Ok(paths)
    }
}

/// All pairs of paths of which the second lies in the first.
pub fn nested<'p>(
    paths: impl Iterator<Item = &'p DataPath> + Clone,
) -> impl Iterator<Item = (&'p DataPath, &'p DataPath)> {
    let inner = paths.clone();
    paths.flat_map(move |outer| {
        inner.clone().filter(|inner| outer.holds(inner)).map(move |inner| (outer, inner))
    })
}

/// The declared paths with their lines.
pub type Declared = BTreeMap<DataPath, u32>;

/// Parses `templates/<name>.data`; what could be read is returned along with
/// every fault. That none lies in another is for the whole composition to see.
pub fn parse(text: &[u8]) -> (Declared, Vec<Located<DataPathsError>>) {
    let mut declared = Declared::new();
    if text.len() > limits::CONFIGURATION_BYTES {
        return (declared, vec![Located::new(1, 1, DataPathsError::TooLarge(text.len()))]);
    }
    let mut faults = Vec::new();
    for line in lines(text) {
        let line = match line {
            Ok(line) => line,
            Err(number) => {
                faults.push(Located::new(number, 1, DataPathsError::Encoding));
                continue;
            }
        };
        let number = line.number;
        let fault = |error| line.at(line.content, error);
        match DataPath::new(line.content) {
            Err(error) => faults.push(fault(error.into())),
            Ok(path) => match declared.get(&path) {
                Some(first) => {
                    let first = *first;
                    faults.push(fault(DataPathsError::Duplicate { path, first }));
                }
                None if declared.len() >= limits::DATA_PATHS => {
                    faults.push(fault(DataPathsError::TooMany));
                    break;
                }
                None => {
                    declared.insert(path, u32::try_from(number).unwrap_or(u32::MAX));
                }
            },
        }
    }
    (declared, faults)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(text: &str) -> DataPath {
        DataPath::new(text).expect("a data path")
    }

    #[test]
    fn golden() {
        let text = include_str!("../golden/generation-data");
        let paths = DataPaths::parse(text.as_bytes()).expect("the golden file");
        assert_eq!(paths.print(), text);
        let shown: Vec<_> = paths.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["/srv/mail queue", "/var/lib/mysql"]);
    }

    #[test]
    fn lines_and_every_fault_at_once() {
        let (declared, faults) = parse(b"# queue\n /var/spool/mail/ \n\n/srv/a b\n");
        assert_eq!(faults, []);
        assert_eq!(declared[&path("/var/spool/mail")], 2);
        assert_eq!(declared[&path("/srv/a b")], 4);
        let text = b"var/lib\n/\n  /a/../b\n/a//b\n/run/x\n/proc\n\xff\n/a\x07\n/x\n/x/\n/..\n";
        let (declared, faults) = parse(text);
        let lines: Vec<_> = faults.iter().map(|fault| fault.line).collect();
        assert_eq!(lines, [1, 2, 3, 4, 5, 6, 7, 8, 10, 11]);
        assert_eq!(faults[2].column, 3);
        assert_eq!(declared.len(), 1);
    }

    #[test]
    fn limits_are_kept() {
        assert!(DataPath::new(&format!("/{}", "a".repeat(255))).is_ok());
        assert!(DataPath::new(&format!("/{}", "a".repeat(256))).is_err());
        assert!(DataPath::new(&"/ä".repeat(30)).is_err(), "nine bytes each once escaped");
        let many: String = (0..=limits::DATA_PATHS).map(|n| format!("/d{n}\n")).collect();
        let (declared, faults) = parse(many.as_bytes());
        assert_eq!((declared.len(), faults.len()), (limits::DATA_PATHS, 1));
    }

    #[test]
    fn none_lies_in_another() {
        let set = |texts: &[&str]| DataPaths::new(texts.iter().map(|text| path(text)).collect());
        assert!(set(&["/a", "/a-b", "/ab/c"]).is_ok());
        let (inner, outer) = (path("/a/b/c"), path("/a"));
        assert_eq!(set(&["/a", "/a-b", "/a/b/c"]), Err(DataPathsError::Nested { inner, outer }));
    }

    #[test]
    fn only_what_was_printed_is_read() {
        for text in [
            "strata-data 1\n",
            "strata-data 1\n/b\n/a\n",
            "strata-data 1\n/a/\n",
            "strata-data 1\n/a",
            "strata-data 2\n/a\n",
            "strata-data 1\n/a\n/a/b\n",
        ] {
            assert!(DataPaths::parse(text.as_bytes()).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn names_on_disk_stand_for_one_path(text in "/[a-z%/. é]{1,40}") {
            if let Ok(path) = DataPath::new(&text) {
                let name = path.directory_name();
                prop_assert!(!name.contains('/') && name != "." && name != "..");
                prop_assert_eq!(DataPath::of_directory_name(name.as_bytes()), Some(path));
            }
        }

        #[test]
        fn foreign_names_never_panic(name: Vec<u8>) {
            if let Some(path) = DataPath::of_directory_name(&name) {
                prop_assert_eq!(path.directory_name().into_bytes(), name);
            }
        }
    }
}
