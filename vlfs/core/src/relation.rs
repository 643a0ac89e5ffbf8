//! Dependency constraints between layers (§5.2, Figure 5).

use std::cmp::Ordering;
use std::fmt;

use crate::names::{LayerName, NameError};
use crate::version::{self, LayerVersion, VersionError};

/// How a constraint compares versions, in Debian's spelling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Comparison {
    Earlier,
    EarlierOrEqual,
    Exactly,
    LaterOrEqual,
    Later,
}

impl Comparison {
    pub fn as_str(self) -> &'static str {
        match self {
            Comparison::Earlier => "<<",
            Comparison::EarlierOrEqual => "<=",
            Comparison::Exactly => "=",
            Comparison::LaterOrEqual => ">=",
            Comparison::Later => ">>",
        }
    }

    fn admits(self, ordering: Ordering) -> bool {
        match self {
            Comparison::Earlier => ordering == Ordering::Less,
            Comparison::EarlierOrEqual => ordering != Ordering::Greater,
            Comparison::Exactly => ordering == Ordering::Equal,
            Comparison::LaterOrEqual => ordering != Ordering::Less,
            Comparison::Later => ordering == Ordering::Greater,
        }
    }
}

/// A layer (or virtual layer) with an optional constraint on its version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Relation {
    pub name: LayerName,
    /// Debian's `:any`, `:native` or an architecture, without the colon.
    pub architecture: Option<String>,
    pub constraint: Option<(Comparison, LayerVersion)>,
}

impl Relation {
    pub fn any_version(name: LayerName) -> Self {
        Relation { name, architecture: None, constraint: None }
    }

    /// Whether a unit of this version satisfies the constraint.
    pub fn admits(&self, version: &LayerVersion) -> bool {
        self.as_text().admits(version.as_str())
    }

    pub(crate) fn as_text(&self) -> RelationText<'_> {
        let constraint = self.constraint.as_ref();
        RelationText {
            name: self.name.as_str(),
            architecture: self.architecture.as_deref(),
            constraint: constraint.map(|(comparison, version)| (*comparison, version.as_str())),
            alternative: false,
        }
    }
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        if let Some(architecture) = &self.architecture {
            write!(f, ":{architecture}")?;
        }
        if let Some((comparison, version)) = &self.constraint {
            write!(f, " ({} {version})", comparison.as_str())?;
        }
        Ok(())
    }
}

/// Alternatives of which one must hold, in order of preference; never empty.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dependency {
    pub alternatives: Vec<Relation>,
}

impl fmt::Display for Dependency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, relation) in self.alternatives.iter().enumerate() {
            if index > 0 {
                f.write_str(" | ")?;
            }
            write!(f, "{relation}")?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RelationError {
    #[error("an entry is empty: two commas or bars follow each other")]
    Empty,
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Version(#[from] VersionError),
    #[error("{0:?} is no comparison; write one of << <= = >= >>")]
    Comparison(String),
    #[error("`{0}` is Debian's old spelling of `{0}=`; write `{0}=` or `{0}{0}`")]
    Archaic(char),
    #[error("the constraint is not closed by a parenthesis")]
    Parenthesis,
    #[error("alternatives (|) are not allowed in this field")]
    Alternatives,
    #[error("unexpected text {0:?} after the constraint")]
    Trailing(String),
}

/// An error with the byte offset it was found at.
pub type RelationFault = (usize, RelationError);

/// A relation as text that was checked, nothing copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RelationText<'a> {
    pub name: &'a str,
    pub architecture: Option<&'a str>,
    pub constraint: Option<(Comparison, &'a str)>,
    /// Whether it is another alternative to the relation before it.
    pub alternative: bool,
}

impl RelationText<'_> {
    /// Whether a unit of this version, which was checked, satisfies the constraint.
    pub(crate) fn admits(&self, version: &str) -> bool {
        self.constraint.is_none_or(|(comparison, bound)| {
            comparison.admits(version::debian_cmp(version, bound))
        })
    }

    /// As [`RelationText::admits`] of what a Provides says: one without a
    /// version satisfies no versioned relation.
    pub(crate) fn admits_provided(&self, version: Option<&str>) -> bool {
        self.constraint.is_none() || version.is_some_and(|version| self.admits(version))
    }
}

impl From<RelationText<'_>> for Relation {
    fn from(text: RelationText<'_>) -> Relation {
        let constraint = |(comparison, text)| (comparison, LayerVersion::of_checked(text));
        Relation {
            name: LayerName::of_checked(text.name),
            architecture: text.architecture.map(str::to_owned),
            constraint: text.constraint.map(constraint),
        }
    }
}

/// Reads `a (>= 1), b | c` as Depends and Pre-Depends write it, one relation
/// after the other. An empty text is no dependency; a trailing comma is
/// accepted as Debian's tools accept it. After a fault there is nothing more.
pub(crate) fn relations(
    text: &str,
) -> impl Iterator<Item = Result<RelationText<'_>, RelationFault>> {
    let mut rest = text;
    let mut alternative = false;
    let mut over = false;
    std::iter::from_fn(move || {
        if over || !alternative && rest.trim_ascii().is_empty() {
            return None;
        }
        let offset = text.len() - rest.len();
        let end = rest.bytes().position(|b| b == b',' || b == b'|').unwrap_or(rest.len());
        let (part, after) = rest.split_at(end);
        let or = after.starts_with('|');
        rest = after.get(1..).unwrap_or("");
        let blank = part.trim_ascii().is_empty() && !alternative && !or;
        let parsed =
            if blank { Err((offset, RelationError::Empty)) } else { parse_relation(part, offset) };
        over = parsed.is_err();
        let parsed = parsed.map(|relation| RelationText { alternative, ..relation });
        alternative = or;
        Some(parsed)
    })
}

/// Parses what Depends and Pre-Depends hold.
///
/// # Errors
/// The first fault, with its byte offset in `text`.
pub fn parse_dependencies(text: &str) -> Result<Vec<Dependency>, RelationFault> {
    let mut dependencies: Vec<Dependency> = Vec::new();
    for relation in relations(text) {
        let relation = relation?;
        match dependencies.last_mut() {
            Some(last) if relation.alternative => last.alternatives.push(relation.into()),
            _ => dependencies.push(Dependency { alternatives: vec![relation.into()] }),
        }
    }
    Ok(dependencies)
}

/// Parses a list without alternatives: Conflicts, Breaks, Replaces, Provides.
///
/// # Errors
/// The first fault, with its byte offset in `text`.
pub fn parse_relations(text: &str) -> Result<Vec<Relation>, RelationFault> {
    single_relations(text).map(|relation| relation.map(Relation::from)).collect()
}

/// As [`parse_dependencies`], of what a person writes: the old spellings `<` and `>`, which
/// packages still have and which do not mean what they say, are faults.
///
/// # Errors
/// The first fault, with its byte offset in `text`.
pub fn parse_written_dependencies(text: &str) -> Result<Vec<Dependency>, RelationFault> {
    refuse_archaic(text)?;
    parse_dependencies(text)
}

/// As [`parse_relations`], of what a person writes: see [`parse_written_dependencies`].
///
/// # Errors
/// The first fault, with its byte offset in `text`.
pub fn parse_written_relations(text: &str) -> Result<Vec<Relation>, RelationFault> {
    refuse_archaic(text)?;
    parse_relations(text)
}

/// No other part of a relation has these characters.
fn refuse_archaic(text: &str) -> Result<(), RelationFault> {
    let is_sign = |b: u8| matches!(b, b'<' | b'=' | b'>');
    let mut at = 0;
    for run in text.as_bytes().chunk_by(|a, b| is_sign(*a) == is_sign(*b)) {
        if let [sign @ (b'<' | b'>')] = run {
            return Err((at, RelationError::Archaic(char::from(*sign))));
        }
        at += run.len();
    }
    Ok(())
}

/// As [`relations`], where alternatives are a fault.
pub(crate) fn single_relations(
    text: &str,
) -> impl Iterator<Item = Result<RelationText<'_>, RelationFault>> {
    relations(text).map(|relation| match relation? {
        RelationText { alternative: true, .. } => {
            Err((text.find('|').unwrap_or(0), RelationError::Alternatives))
        }
        relation => Ok(relation),
    })
}

fn parse_relation(text: &str, offset: usize) -> Result<RelationText<'_>, RelationFault> {
    let start = offset + text.len() - text.trim_ascii_start().len();
    let text = text.trim_ascii();
    let fault = |error: RelationError| (start, error);
    if text.is_empty() {
        return Err(fault(RelationError::Empty));
    }
    let ends_name = |b: u8| b.is_ascii_whitespace() || matches!(b, b'(' | b'[' | b'<');
    let name_end = text.bytes().position(ends_name).unwrap_or(text.len());
    let (name, rest) = text.split_at(name_end);
    let (name, architecture) = match name.split_once(':') {
        Some((name, architecture)) => (name, Some(architecture)),
        None => (name, None),
    };
    if let Some(architecture) = architecture {
        LayerName::check(architecture).map_err(|error| fault(error.into()))?;
    }
    LayerName::check(name).map_err(|error| fault(error.into()))?;
    let rest = rest.trim_ascii();
    let mut relation = RelationText { name, architecture, constraint: None, alternative: false };
    let Some(inner) = rest.strip_prefix('(') else {
        return match rest {
            "" => Ok(relation),
            _ => Err(fault(RelationError::Trailing(rest.chars().take(64).collect()))),
        };
    };
    let (inner, after) = inner.split_once(')').ok_or(fault(RelationError::Parenthesis))?;
    if !after.trim_ascii().is_empty() {
        return Err(fault(RelationError::Trailing(after.trim_ascii().chars().take(64).collect())));
    }
    let inner = inner.trim_ascii();
    let in_operator = |b: u8| matches!(b, b'<' | b'=' | b'>');
    let operator_end = inner.bytes().position(|b| !in_operator(b)).unwrap_or(inner.len());
    let (operator, version) = inner.split_at(operator_end);
    let comparison = match operator {
        "<<" => Comparison::Earlier,
        // `<` and `>` are Debian's obsolete spellings of the inclusive ones.
        "<=" | "<" => Comparison::EarlierOrEqual,
        "=" => Comparison::Exactly,
        ">=" | ">" => Comparison::LaterOrEqual,
        ">>" => Comparison::Later,
        other => return Err(fault(RelationError::Comparison(other.chars().take(16).collect()))),
    };
    let version = version.trim_ascii();
    version::check(version).map_err(|error| fault(error.into()))?;
    relation.constraint = Some((comparison, version));
    Ok(relation)
}

/// Prints a list as the fields of a stanza hold it.
pub fn print_list<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn figure_5() {
        // Figure 5: `Depends: layer1 (...), layer2 (...) | layer3, ...`
        let text = "layer1 (>= 5.6), layer2 (<< 2:1-1) | layer3,\n tcpd:any (= 7.6-4)";
        let parsed = parse_dependencies(text).expect("valid");
        assert_eq!(
            print_list(&parsed),
            "layer1 (>= 5.6), layer2 (<< 2:1-1) | layer3, tcpd:any (= 7.6-4)"
        );
        assert_eq!(parse_dependencies(""), Ok(vec![]));
        assert_eq!(parse_dependencies("a,").map(|d| d.len()), Ok(1));
    }

    #[test]
    fn constraints() {
        let admits = |relation: &str, version: &str| {
            let parsed = parse_relations(relation).expect("valid");
            parsed[0].admits(&LayerVersion::new(version).expect("valid"))
        };
        assert!(admits("a (>= 1.0)", "1.00"));
        assert!(admits("a (= 1.0)", "1.0"));
        assert!(!admits("a (>> 1.0)", "1.0"));
        assert!(admits("a (<< 1.0)", "1.0~rc1"));
        assert!(admits("a", "0"));
    }

    #[test]
    fn what_people_write_has_no_archaic_spelling() {
        for (text, at, sign) in [("a (< 1)", 3, '<'), ("b, a (> 1)", 6, '>'), ("a (<1)", 3, '<')] {
            assert!(parse_dependencies(text).is_ok(), "packages have it: {text}");
            let fault = (at, RelationError::Archaic(sign));
            assert_eq!(parse_written_dependencies(text), Err(fault.clone()), "{text}");
            assert_eq!(parse_written_relations(text), Err(fault), "{text}");
        }
        for text in ["a (<< 1), b (<= 1)", "a (= 1)", "a (>= 1), b (>>1)", "a", ""] {
            assert_eq!(parse_written_dependencies(text), parse_dependencies(text), "{text}");
        }
    }

    #[test]
    fn faults() {
        let fault = |text: &str| parse_dependencies(text).expect_err("a fault");
        assert_eq!(fault("a,,b"), (2, RelationError::Empty));
        assert_eq!(fault(",a").1, RelationError::Empty);
        assert_eq!(fault("a |").1, RelationError::Empty);
        assert_eq!(fault("a | | b").1, RelationError::Empty);
        assert_eq!(fault("a || b,").1, RelationError::Empty);
        assert_eq!(fault("a, b (1)").0, 3);
        assert_eq!(fault("a (>= 1").1, RelationError::Parenthesis);
        assert_eq!(fault("a (>= 1) x").1, RelationError::Trailing("x".into()));
        assert!(matches!(fault("a (>= )").1, RelationError::Version(_)));
        assert_eq!(parse_relations("a | b").expect_err("or").1, RelationError::Alternatives);
    }

    proptest! {
        #[test]
        fn never_panics(text in "[a-z0-9 ,|()<>=.:~é+-]{0,60}") {
            if let Ok(parsed) = parse_dependencies(&text) {
                prop_assert_eq!(parse_dependencies(&print_list(&parsed)), Ok(parsed));
            }
        }
    }
}
