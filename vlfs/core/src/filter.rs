//! Which units of a repository compositions may draw on, and which one of them may
//! (`docs/formats.md`, "Filters").
//!
//! A rule names units by conditions that must all hold. A unit is left out when a
//! `deny` rule names it, or when there are `allow` rules and none of them does. Why it was left
//! out is told wherever it would have been chosen.

use std::fmt;
use std::str::FromStr;

use crate::configuration::CONFIGURATION_FILE;
use crate::database::Unit;
use crate::relation::{Relation, RelationError, parse_written_relations};
use crate::toml_reader::{Placed, TableReader, TomlFile};
use crate::version::LayerVersion;

/// Bytes of one pattern.
const PATTERN_BYTES: usize = 256;
/// Rules of one kind in one filter.
const RULES: usize = 1000;

/// A pattern of names: `*` stands for any text, `?` for one character.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    #[error("a pattern has 1 to {PATTERN_BYTES} bytes")]
    Pattern,
    #[error("{0:?} is no range of versions; write one or two of `>= 1.2`, with a comma between")]
    Range(String),
    #[error(transparent)]
    Archaic(RelationError),
}

impl FromStr for Pattern {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        match (1..=PATTERN_BYTES).contains(&text.len()) {
            true => Ok(Pattern(text.to_owned())),
            false => Err(FilterError::Pattern),
        }
    }
}

impl Pattern {
    pub fn matches(&self, text: &str) -> bool {
        let (pattern, text) = (self.0.as_bytes(), text.as_bytes());
        let (mut p, mut t) = (0, 0);
        // Where the last `*` was, and the text that it covers so far.
        let mut star: Option<(usize, usize)> = None;
        while t < text.len() {
            match pattern.get(p) {
                Some(b'*') => {
                    star = Some((p, t));
                    p += 1;
                }
                Some(c) if *c == b'?' || *c == text[t] => (p, t) = (p + 1, t + 1),
                Some(_) | None => match star {
                    Some((at, covered)) => {
                        star = Some((at, covered + 1));
                        (p, t) = (at + 1, covered + 1);
                    }
                    None => return false,
                },
            }
        }
        pattern[p..].iter().all(|c| *c == b'*')
    }
}

/// Versions between bounds, as in `>= 1.2, << 2`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    text: String,
    relations: Vec<Relation>,
}

impl FromStr for Range {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let error = || FilterError::Range(text.chars().take(64).collect());
        let mut relations = Vec::new();
        for bound in text.split(',') {
            let relation = parse_written_relations(&format!("x ({})", bound.trim()));
            let relation = relation.map_err(|(_, fault)| match fault {
                RelationError::Archaic(_) => FilterError::Archaic(fault),
                _ => error(),
            });
            match relation?.as_slice() {
                [one] if one.constraint.is_some() => relations.push(one.clone()),
                _ => return Err(error()),
            }
        }
        match relations.len() {
            1 | 2 => Ok(Range { text: text.trim().to_owned(), relations }),
            _ => Err(error()),
        }
    }
}

impl Range {
    fn contains(&self, version: &LayerVersion) -> bool {
        self.relations.iter().all(|relation| relation.admits(version))
    }
}

/// Conditions that must all hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    pub name: Option<Pattern>,
    pub version: Option<Range>,
    pub origin: Option<Pattern>,
    pub section: Option<Pattern>,
    /// Units whose files have more MiB.
    pub over_mib: Option<u32>,
    /// Why, for those who meet it.
    pub reason: Option<String>,
    pub line: u32,
}

impl Rule {
    fn matches(&self, unit: &Unit) -> bool {
        let metadata = &unit.metadata;
        let held = |pattern: &Option<Pattern>, text: Option<&str>| {
            pattern.as_ref().is_none_or(|pattern| text.is_some_and(|text| pattern.matches(text)))
        };
        held(&self.name, Some(metadata.layer.as_str()))
            && held(&self.origin, metadata.origin.as_deref())
            && held(&self.section, metadata.section.as_deref())
            && self.version.as_ref().is_none_or(|range| range.contains(&metadata.version))
            && self.over_mib.is_none_or(|mib| unit.content_bytes > u64::from(mib) << 20)
    }

    fn read(file: &mut TomlFile<'_>, table: &toml::de::DeTable<'_>, at: usize) -> Option<Self> {
        let faults = file.diagnostics.len();
        let mut reader = TableReader::new(table, at, "a rule of a filter");
        let value = |placed: Placed<Pattern>| placed.value;
        let rule = Rule {
            name: reader.parsed(file, "name").map(value),
            version: reader.parsed::<Range>(file, "version").map(|placed| placed.value),
            origin: reader.parsed(file, "origin").map(value),
            section: reader.parsed(file, "section").map(value),
            over_mib: reader.number(file, "over-mib", u32::MAX),
            reason: reader.parsed::<String>(file, "reason").map(|placed| placed.value),
            line: file.line(at),
        };
        reader.finish(file);
        let empty = Rule { line: rule.line, reason: rule.reason.clone(), ..Rule::default() };
        if file.diagnostics.len() > faults {
            return None;
        }
        if rule == empty {
            let message = "a rule needs a condition".to_owned();
            let hint = "conditions are name, version, origin, section and over-mib".to_owned();
            file.report(at, "filter", message, Some(hint));
            return None;
        }
        Some(rule)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        let patterns = [("name", &self.name), ("origin", &self.origin), ("section", &self.section)];
        for (key, pattern) in patterns {
            parts.extend(pattern.as_ref().map(|pattern| format!("{key} {}", pattern.0)));
        }
        parts.extend(self.version.as_ref().map(|range| format!("version {}", range.text)));
        parts.extend(self.over_mib.map(|mib| format!("over {mib} MiB")));
        f.write_str(&parts.join(", "))
    }
}

/// The rules of one repository, or of one composition.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    pub allow: Vec<Rule>,
    pub deny: Vec<Rule>,
}

impl Filter {
    /// Reads `[[….allow]]` and `[[….deny]]` of a table.
    pub(crate) fn read(file: &mut TomlFile<'_>, reader: &mut TableReader<'_, '_>) -> Self {
        let mut filter = Filter::default();
        for (key, rules) in [("allow", &mut filter.allow), ("deny", &mut filter.deny)] {
            let tables = reader.tables(file, key);
            if let Some((_, at)) = tables.get(RULES) {
                let message = format!("a filter has at most {RULES} rules of a kind");
                let hint = "a pattern such as `lib*` stands for many names".to_owned();
                file.report(*at, "limit", message, Some(hint));
            }
            for (table, at) in tables.into_iter().take(RULES) {
                rules.extend(Rule::read(file, table, at));
            }
        }
        filter
    }

    pub fn is_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }

    /// Whether a unit is left out.
    pub fn leaves_out(&self, unit: &Unit) -> bool {
        self.deny.iter().any(|rule| rule.matches(unit))
            || !self.allow.is_empty() && !self.allow.iter().any(|rule| rule.matches(unit))
    }

    /// Why a unit is left out, where it is.
    pub fn reason(&self, unit: &Unit) -> Option<String> {
        if let Some(rule) = self.deny.iter().find(|rule| rule.matches(unit)) {
            let why = rule.reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
            return Some(format!("{CONFIGURATION_FILE}:{} denies {rule}{why}", rule.line));
        }
        let first = self.allow.first()?;
        let allowed = self.allow.iter().any(|rule| rule.matches(unit));
        (!allowed).then(|| format!("{CONFIGURATION_FILE}:{} allows others only", first.line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::configuration::Configuration;
    use crate::metadata::{LayerKind, Metadata};

    fn unit(name: &str, version: &str, section: &str, mib: u64) -> Unit {
        let (layer, version) = (name.parse().expect("valid"), version.parse().expect("valid"));
        let mut metadata = Metadata::new(layer, version, LayerKind::Software);
        metadata.section = Some(section.to_owned());
        metadata.origin = Some("Debian".to_owned());
        let digest = crate::Digest::of(b"");
        Unit { metadata, digest, content_bytes: mib << 20, withdrawn: None }
    }

    fn filter(rules: &str) -> Filter {
        let text = format!("[[repository]]\nname = \"main\"\n{rules}");
        let (configuration, faults) = Configuration::read(text.as_bytes());
        assert_eq!(faults, []);
        configuration.repositories[0].filter.clone()
    }

    #[test]
    fn patterns() {
        let matches = |pattern: &str, text: &str| Pattern(pattern.to_owned()).matches(text);
        for (pattern, text) in
            [("*", ""), ("lib*", "libc6"), ("*-dev", "a-dev"), ("a?c", "abc"), ("*b*b", "abcb")]
        {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("lib", "libc6"), ("*-dev", "a-dev-x"), ("a?c", "ac"), ("", "a")] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn what_is_denied_is_left_out_with_the_reason() {
        let filter = filter(
            "[[repository.deny]]\nname = \"telnet*\"\nreason = \"plain text\"\n[[repository.deny]]\nname = \"openssl\"\nversion = \">= 3, << 3.0.15\"\n[[repository.deny]]\nover-mib = 100\n",
        );
        let reason =
            |name: &str, version: &str, mib| filter.reason(&unit(name, version, "net", mib));
        let telnet = reason("telnetd", "1", 1).expect("left out");
        assert_eq!(telnet, "strata.toml:3 denies name telnet*: plain text");
        assert!(reason("openssl", "3.0.14", 1).is_some());
        assert_eq!(reason("openssl", "3.0.15", 1), None);
        assert_eq!(reason("openssl", "2.9", 1), None);
        assert!(reason("big", "1", 101).is_some());
    }

    #[test]
    fn where_something_is_allowed_nothing_else_is() {
        let filter = filter(
            "[[repository.allow]]\nsection = \"net\"\norigin = \"Deb*\"\n[[repository.allow]]\nname = \"base\"\n",
        );
        assert_eq!(filter.reason(&unit("ssh", "1", "net", 1)), None);
        assert_eq!(filter.reason(&unit("base", "1", "admin", 1)), None);
        let other = filter.reason(&unit("games", "1", "games", 1)).expect("left out");
        assert_eq!(other, "strata.toml:3 allows others only");
    }

    #[test]
    fn more_rules_than_the_limit_are_a_fault() {
        for (rules, codes) in [(RULES, vec![]), (RULES + 2, vec![("limit", 2 * RULES + 3)])] {
            let text = "[[repository.deny]]\nname = \"a\"\n".repeat(rules);
            let text = format!("[[repository]]\nname = \"main\"\n{text}");
            let (_, faults) = Configuration::read(text.as_bytes());
            let found: Vec<_> = faults.iter().map(|f| (f.code, f.line as usize)).collect();
            assert_eq!(found, codes);
        }
    }

    #[test]
    fn rules_without_a_condition_and_bad_ranges_are_faults() {
        for (rule, code) in [
            ("reason = \"x\"", "filter"),
            ("version = \"3\"", "value"),
            ("version = \"< 2\"", "value"),
            ("version = \">= 1, > 0.5\"", "value"),
            ("version = \">= 1, << 2, << 3\"", "value"),
            ("colour = \"red\"\nname = \"a\"", "unknown-key"),
        ] {
            let text = format!("[[repository]]\nname = \"main\"\n[[repository.deny]]\n{rule}\n");
            let (_, faults) = Configuration::read(text.as_bytes());
            let codes: Vec<_> = faults.iter().map(|fault| fault.code).collect();
            assert_eq!(codes, [code], "{rule}");
        }
    }
}
