//! What an RPM package needs, provides and excludes, as relations between layers
//! (`docs/formats.md`, "Conversion of .rpm").

use strata_core::names::{LayerName, NameError};
use strata_core::relation::{Comparison, Dependency, Relation};
use strata_core::version::{LayerVersion, VersionError};

use crate::usr_merge;

/// Sense flags of a dependency.
pub const LESS: u64 = 1 << 1;
pub const GREATER: u64 = 1 << 2;
pub const EQUAL: u64 = 1 << 3;
pub const RPMLIB: u64 = 1 << 24;
const MISSING_OK: u64 = 1 << 19;

/// Features of rpm that a package may ask for, which need nothing of us or which
/// the conversion has.
const RPMLIB_FEATURES: [&str; 14] = [
    "BuiltinLuaScripts",
    "CompressedFileNames",
    "ConcurrentAccess",
    "DynamicBuildRequires",
    "ExplicitPackageProvide",
    "FileCaps",
    "FileDigests",
    "HeaderLoadSortsTags",
    "LargeFiles",
    "PartialHardlinkSets",
    "PayloadFilesHavePrefix",
    "PayloadIsZstd",
    "RichDependencies",
    "TildeInVersions",
];
const RPMLIB_COMPRESSIONS: [&str; 4] =
    ["PayloadIsBzip2", "PayloadIsLzma", "PayloadIsXz", "CaretInVersions"];
/// Alternatives and conjunctions that one rich dependency may become.
const RICH_TERMS: usize = 64;
const RICH_DEPTH: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RelationError {
    #[error("{name:?}: {source}")]
    Name { name: String, source: NameError },
    #[error("{0:?} becomes a name that is too long or empty")]
    NoName(String),
    #[error("{text:?} is no version of a package: {source}")]
    Version { text: String, source: VersionError },
    #[error("it needs the feature {0} of rpm, which is not supported")]
    Feature(String),
    #[error("the dependency {0} has no counterpart: of rich dependencies `and` and `or` have one")]
    Rich(String),
    #[error("the dependency {0} cannot be read")]
    Syntax(String),
}

/// One dependency as the header has it.
#[derive(Debug, Clone, Copy)]
pub struct Raw<'a> {
    pub name: &'a str,
    pub flags: u64,
    /// `[epoch:]version[-release]`, or empty.
    pub version: &'a str,
}

/// The name that a capability goes by: bytes that names of layers may not have
/// are written `_xx`; of paths, those below a merged /usr.
///
/// # Errors
/// It is empty or too long then.
pub fn name(capability: &str) -> Result<LayerName, RelationError> {
    let path = capability.strip_prefix('/').map(|relative| {
        let merged = usr_merge::merged(relative.as_bytes());
        format!("/{}", String::from_utf8_lossy(&merged))
    });
    let capability = path.as_deref().unwrap_or(capability);
    let mut text = String::with_capacity(capability.len() + 8);
    for byte in capability.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'+' | b'-' => {
                text.push(char::from(byte));
            }
            other => text.push_str(&format!("_{other:02x}")),
        }
    }
    // Names start with a letter or digit: paths, macros and the like.
    if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        text.insert_str(0, "file");
    }
    LayerName::new(text).map_err(|source| RelationError::Name {
        name: capability.chars().take(100).collect(),
        source,
    })
}

/// A version of rpm as layers have it: `[epoch:]version_release`, which marks the
/// order of rpm. An epoch of 0 is left out; an underscore within becomes a dot,
/// which rpm holds equal.
///
/// # Errors
/// It holds what versions may not.
pub fn version(epoch: u64, text: &str) -> Result<LayerVersion, RelationError> {
    let (version, release) = text.rsplit_once('-').unwrap_or((text, ""));
    let [version, release] = [version, release].map(|part| part.replace('_', "."));
    let epoch = if epoch == 0 { String::new() } else { format!("{epoch}:") };
    LayerVersion::new(format!("{epoch}{version}_{release}"))
        .map_err(|source| RelationError::Version { text: text.chars().take(100).collect(), source })
}

fn evr(text: &str) -> Result<LayerVersion, RelationError> {
    match text.split_once(':') {
        Some((epoch, rest)) => {
            let number = epoch.parse().map_err(|_| RelationError::Syntax(text.to_owned()))?;
            version(number, rest)
        }
        None => version(0, text),
    }
}

/// One dependency, without alternatives.
///
/// # Errors
/// Damage.
pub fn relation(raw: Raw<'_>) -> Result<Relation, RelationError> {
    let comparison = match raw.flags & (LESS | GREATER | EQUAL) {
        0 => None,
        LESS => Some(Comparison::Earlier),
        GREATER => Some(Comparison::Later),
        EQUAL => Some(Comparison::Exactly),
        flags if flags == LESS | EQUAL => Some(Comparison::EarlierOrEqual),
        flags if flags == GREATER | EQUAL => Some(Comparison::LaterOrEqual),
        _ => return Err(RelationError::Syntax(raw.name.to_owned())),
    };
    let constraint = match comparison.filter(|_| !raw.version.is_empty()) {
        Some(comparison) => Some((comparison, evr(raw.version)?)),
        None => None,
    };
    Ok(Relation { name: name(raw.name)?, architecture: None, constraint })
}

/// `Requires` as dependencies. Features of rpm are checked and left out, and so is
/// what a package configures of itself.
///
/// # Errors
/// A feature or a rich dependency that cannot be had, or damage.
pub fn requires(list: &[Raw<'_>]) -> Result<Vec<Dependency>, RelationError> {
    let mut dependencies = Vec::new();
    for raw in list.iter().filter(|raw| raw.flags & MISSING_OK == 0) {
        let feature = raw.name.strip_prefix("rpmlib(").and_then(|name| name.strip_suffix(')'));
        if let Some(feature) = feature {
            if !RPMLIB_FEATURES.contains(&feature) && !RPMLIB_COMPRESSIONS.contains(&feature) {
                return Err(RelationError::Feature(raw.name.to_owned()));
            }
        } else if raw.name.starts_with("config(") {
            // Provided by the package itself, always.
        } else if raw.name.starts_with('(') {
            dependencies.extend(rich(raw.name)?);
        } else {
            dependencies.push(Dependency { alternatives: vec![relation(*raw)?] });
        }
    }
    let mut unique = Vec::with_capacity(dependencies.len());
    for dependency in dependencies {
        if !unique.contains(&dependency) {
            unique.push(dependency);
        }
    }
    Ok(unique)
}

/// `Conflicts` or `Obsoletes`.
///
/// # Errors
/// A rich one, or damage.
pub fn excludes(list: &[Raw<'_>]) -> Result<Vec<Relation>, RelationError> {
    let plain = |raw: &Raw<'_>| match raw.name.starts_with('(') {
        true => Err(RelationError::Rich(raw.name.to_owned())),
        false => relation(*raw),
    };
    list.iter().map(plain).collect()
}

/// `Provides`, without the package's own name, which it has anyway. Only exact
/// versions are versions of what is provided.
///
/// # Errors
/// Damage.
pub fn provides(list: &[Raw<'_>], own: &str) -> Result<Vec<Relation>, RelationError> {
    let other = |raw: &&Raw<'_>| raw.name != own && !raw.name.starts_with("config(");
    let of = |raw: &Raw<'_>| match raw.flags & (LESS | GREATER) {
        0 => relation(*raw),
        _ => relation(Raw { flags: 0, version: "", ..*raw }),
    };
    list.iter().filter(other).map(of).collect()
}

/// A rich dependency as dependencies that must all hold (conjunctive normal form).
fn rich(text: &str) -> Result<Vec<Dependency>, RelationError> {
    let mut words = Words { text, rest: text };
    let terms = words.group(0)?;
    match words.rest.trim().is_empty() {
        true => Ok(terms),
        false => Err(RelationError::Syntax(text.to_owned())),
    }
}

struct Words<'a> {
    text: &'a str,
    rest: &'a str,
}

impl<'a> Words<'a> {
    fn syntax(&self) -> RelationError {
        RelationError::Syntax(self.text.chars().take(200).collect())
    }

    /// `(term)`, or `(term and term and …)`, or `(term or term or …)`.
    fn group(&mut self, depth: usize) -> Result<Vec<Dependency>, RelationError> {
        self.rest = self.rest.trim_start().strip_prefix('(').ok_or_else(|| self.syntax())?;
        if depth >= RICH_DEPTH {
            return Err(self.syntax());
        }
        let mut terms = self.term(depth)?;
        let mut operator = "";
        loop {
            self.rest = self.rest.trim_start();
            if let Some(rest) = self.rest.strip_prefix(')') {
                self.rest = rest;
                return Ok(terms);
            }
            let found = self.word();
            let known = matches!(found, "and" | "or") && (operator.is_empty() || operator == found);
            if !known {
                return Err(RelationError::Rich(self.text.chars().take(200).collect()));
            }
            operator = found;
            let next = self.term(depth)?;
            terms = match operator {
                "and" => [terms, next].concat(),
                _ => either(&terms, &next),
            };
            if terms.len() > RICH_TERMS {
                return Err(RelationError::Rich(self.text.chars().take(200).collect()));
            }
        }
    }

    fn term(&mut self, depth: usize) -> Result<Vec<Dependency>, RelationError> {
        self.rest = self.rest.trim_start();
        if self.rest.starts_with('(') {
            return self.group(depth + 1);
        }
        let name = self.word();
        if name.is_empty() {
            return Err(self.syntax());
        }
        let before = self.rest;
        let flags = match self.word() {
            "<" => LESS,
            ">" => GREATER,
            "=" => EQUAL,
            "<=" => LESS | EQUAL,
            ">=" => GREATER | EQUAL,
            _ => {
                self.rest = before;
                0
            }
        };
        let version = if flags == 0 { "" } else { self.word() };
        Ok(vec![Dependency { alternatives: vec![relation(Raw { name, flags, version })?] }])
    }

    /// Up to white space or the parenthesis that closes the group: a name may have
    /// pairs of its own, as in `libc.so.6(GLIBC_2.34)(64bit)`.
    fn word(&mut self) -> &'a str {
        self.rest = self.rest.trim_start();
        let mut open = 0_usize;
        let end = self.rest.find(|c: char| match c {
            '(' => {
                open += 1;
                false
            }
            ')' if open == 0 => true,
            ')' => {
                open -= 1;
                false
            }
            other => other.is_whitespace(),
        });
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        word
    }
}

/// `(a and b) or (c and d)`: each of the first with each of the second.
fn either(first: &[Dependency], second: &[Dependency]) -> Vec<Dependency> {
    let mut all = Vec::new();
    for a in first {
        for b in second.iter().take(RICH_TERMS) {
            let alternatives = [a.alternatives.as_slice(), &b.alternatives].concat();
            all.push(Dependency { alternatives });
            if all.len() > RICH_TERMS {
                return all;
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use strata_core::relation::print_list;

    fn raw(name: &str) -> Raw<'_> {
        Raw { name, flags: 0, version: "" }
    }

    #[test]
    fn names_of_capabilities() {
        for (capability, expected) in [
            ("bash", "bash"),
            ("libssl.so.3()(64bit)", "libssl.so.3_28_29_2864bit_29"),
            ("/bin/sh", "file_2fusr_2fbin_2fsh"),
            ("/usr/bin/sh", "file_2fusr_2fbin_2fsh"),
            ("mod_ssl", "mod_ssl"),
        ] {
            assert_eq!(name(capability).expect(capability).as_str(), expected);
        }
        assert!(name(&"(".repeat(100)).is_err());
    }

    #[test]
    fn lists() {
        let list = [
            raw("rpmlib(PayloadIsZstd)"),
            raw("config(a)"),
            Raw { name: "b", flags: GREATER | EQUAL, version: "1:2.0-3.fc40" },
            Raw { name: "b", flags: GREATER | EQUAL, version: "1:2.0-3.fc40" },
            Raw { name: "c", flags: LESS, version: "4_1" },
        ];
        let found = requires(&list).expect("valid");
        assert_eq!(print_list(&found), "b (>= 1:2.0_3.fc40), c (<< 4.1_)");
        let odd = requires(&[raw("rpmlib(Teleportation)")]).expect_err("unknown");
        assert!(matches!(odd, RelationError::Feature(_)));
        let own = [Raw { name: "a", flags: EQUAL, version: "1-1" }, raw("v"), raw("config(a)")];
        assert_eq!(print_list(&provides(&own, "a").expect("valid")), "v");
    }

    #[test]
    fn rich_dependencies() {
        let of = |text: &str| requires(&[raw(text)]).map(|found| print_list(&found));
        assert_eq!(of("(a or b or c)").as_deref(), Ok("a | b | c"));
        assert_eq!(of("(a and (b or c >= 1-1))").as_deref(), Ok("a, b | c (>= 1_1)"));
        assert_eq!(of("((a and b) or c)").as_deref(), Ok("a | c, b | c"));
        assert_eq!(of("(l.so(X)(64bit) or b)").as_deref(), Ok("l.so_28X_29_2864bit_29 | b"));
        for text in ["(a if b)", "(a unless b)", "(a with b)", "(a and b or c)"] {
            assert!(matches!(of(text), Err(RelationError::Rich(_))), "{text}");
        }
        for text in ["(a", "()", "(a) b", &"(".repeat(99)] {
            assert!(of(text).is_err(), "{text}");
        }
    }
}
