//! Dependency constraints between layers (§5.2, Figure 5).

use std::cmp::Ordering;
use std::fmt;

use crate::names::{LayerName, NameError};
use crate::version::{LayerVersion, VersionError};

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
        self.constraint
            .as_ref()
            .is_none_or(|(comparison, bound)| comparison.admits(version.debian_cmp(bound)))
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
    #[error("the constraint is not closed by a parenthesis")]
    Parenthesis,
    #[error("alternatives (|) are not allowed in this field")]
    Alternatives,
    #[error("unexpected text {0:?} after the constraint")]
    Trailing(String),
}

/// An error with the byte offset it was found at.
pub type RelationFault = (usize, RelationError);

/// Parses `a (>= 1), b | c` as Depends and Pre-Depends write it. An empty text
/// is no dependency; a trailing comma is accepted as Debian's tools accept it.
///
/// # Errors
/// The first fault, with its byte offset in `text`.
pub fn parse_dependencies(text: &str) -> Result<Vec<Dependency>, RelationFault> {
    let mut dependencies = Vec::new();
    let mut offset = 0;
    let mut parts = text.split(',').peekable();
    while let Some(part) = parts.next() {
        let blank = part.trim().is_empty();
        if blank && parts.peek().is_some() {
            return Err((offset, RelationError::Empty));
        }
        if !blank {
            let mut alternatives = Vec::new();
            let mut at = offset;
            for alternative in part.split('|') {
                alternatives.push(parse_relation(alternative, at)?);
                at += alternative.len() + 1;
            }
            dependencies.push(Dependency { alternatives });
        }
        offset += part.len() + 1;
    }
    Ok(dependencies)
}

/// Parses a list without alternatives: Conflicts, Breaks, Replaces, Provides.
///
/// # Errors
/// The first fault, with its byte offset in `text`.
pub fn parse_relations(text: &str) -> Result<Vec<Relation>, RelationFault> {
    let dependencies = parse_dependencies(text)?;
    let single = |dependency: Dependency| match <[Relation; 1]>::try_from(dependency.alternatives) {
        Ok([relation]) => Ok(relation),
        Err(_) => Err((text.find('|').unwrap_or(0), RelationError::Alternatives)),
    };
    dependencies.into_iter().map(single).collect()
}

fn parse_relation(text: &str, offset: usize) -> Result<Relation, RelationFault> {
    let start = offset + text.len() - text.trim_start().len();
    let text = text.trim();
    let fault = |error: RelationError| (start, error);
    if text.is_empty() {
        return Err(fault(RelationError::Empty));
    }
    let name_end = text
        .find(|c: char| c.is_whitespace() || matches!(c, '(' | '[' | '<'))
        .unwrap_or(text.len());
    let (name, rest) = text.split_at(name_end);
    let (name, architecture) = match name.split_once(':') {
        Some((name, architecture)) => (name, Some(architecture.to_owned())),
        None => (name, None),
    };
    if let Some(architecture) = &architecture {
        LayerName::new(architecture.as_str()).map_err(|error| fault(error.into()))?;
    }
    let name = LayerName::new(name).map_err(|error| fault(error.into()))?;
    let rest = rest.trim();
    let mut relation = Relation { name, architecture, constraint: None };
    let Some(inner) = rest.strip_prefix('(') else {
        return match rest {
            "" => Ok(relation),
            _ => Err(fault(RelationError::Trailing(rest.chars().take(64).collect()))),
        };
    };
    let (inner, after) = inner.split_once(')').ok_or(fault(RelationError::Parenthesis))?;
    if !after.trim().is_empty() {
        return Err(fault(RelationError::Trailing(after.trim().chars().take(64).collect())));
    }
    let inner = inner.trim();
    let operator_end = inner.find(|c| !matches!(c, '<' | '=' | '>')).unwrap_or(inner.len());
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
    let version = LayerVersion::new(version.trim()).map_err(|error| fault(error.into()))?;
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
    fn faults() {
        let fault = |text: &str| parse_dependencies(text).expect_err("a fault");
        assert_eq!(fault("a,,b"), (2, RelationError::Empty));
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
