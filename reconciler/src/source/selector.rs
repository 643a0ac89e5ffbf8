//! What of a repository is followed: a branch, a tag, the highest tag of a range of
//! versions, or one commit.

use std::fmt;

use git2::Oid;
use semver::{Version, VersionReq};

use super::SourceError;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    Branch(String),
    Tag(String),
    /// The highest version among tags such as `v1.2.3` and `1.2.3`.
    Range(VersionReq),
    Commit(Oid),
}

impl Selector {
    /// # Errors
    /// No branch can have this name.
    pub fn branch(name: &str) -> Result<Self, SourceError> {
        match is_name("heads", name) {
            true => Ok(Selector::Branch(name.to_owned())),
            false => Err(SourceError::Branch(name.to_owned())),
        }
    }

    /// # Errors
    /// No tag can have this name.
    pub fn tag(name: &str) -> Result<Self, SourceError> {
        match is_name("tags", name) {
            true => Ok(Selector::Tag(name.to_owned())),
            false => Err(SourceError::Tag(name.to_owned())),
        }
    }

    /// # Errors
    /// It is no range of versions, as in `^1.4` or `>=2, <3`.
    pub fn range(text: &str) -> Result<Self, SourceError> {
        let wrong = |error: semver::Error| SourceError::Range(text.to_owned(), error.to_string());
        Ok(Selector::Range(VersionReq::parse(text).map_err(wrong)?))
    }

    /// # Errors
    /// It is no commit id, whole.
    pub fn commit(text: &str) -> Result<Self, SourceError> {
        let whole = text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let id = Oid::from_str(text).ok().filter(|_| whole);
        id.map(Selector::Commit).ok_or_else(|| SourceError::Commit(text.to_owned()))
    }

    /// The full name of the one reference that is followed.
    pub fn reference(&self) -> Option<String> {
        match self {
            Selector::Branch(name) => Some(format!("refs/heads/{name}")),
            Selector::Tag(name) => Some(format!("refs/tags/{name}")),
            Selector::Range(_) | Selector::Commit(_) => None,
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selector::Branch(name) => f.write_str(name),
            Selector::Tag(name) => write!(f, "tag {name}"),
            Selector::Range(range) => write!(f, "tags {range}"),
            Selector::Commit(id) => write!(f, "commit {id}"),
        }
    }
}

/// Two tags of one version that lead to different commits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ambiguous(pub String, pub String);

/// The name of the highest tag of a range, with what it leads to. Tags that are no
/// versions do not count; one version by two names must lead to one commit.
///
/// # Errors
/// Nobody can say which of two tags is meant.
pub fn highest<T: Copy + PartialEq>(
    range: &VersionReq,
    tags: impl IntoIterator<Item = (String, T)>,
) -> Result<Option<(String, T)>, Ambiguous> {
    let mut best: Option<(Version, String, T)> = None;
    let mut doubt: Option<Ambiguous> = None;
    for (name, target) in tags {
        let version = Version::parse(name.strip_prefix('v').unwrap_or(&name));
        let Some(version) = version.ok().filter(|version| range.matches(version)) else { continue };
        let order = best.as_ref().map(|(best, ..)| version.cmp_precedence(best));
        match order {
            Some(std::cmp::Ordering::Less) => {}
            Some(std::cmp::Ordering::Equal) => {
                let (_, other, same) = best.as_ref().expect("compared");
                if *same != target {
                    doubt.get_or_insert(Ambiguous(other.clone(), name));
                }
            }
            Some(std::cmp::Ordering::Greater) | None => {
                (best, doubt) = (Some((version, name, target)), None);
            }
        }
    }
    match doubt {
        Some(doubt) => Err(doubt),
        None => Ok(best.map(|(_, name, target)| (name, target))),
    }
}

pub(super) fn is_name(kind: &str, name: &str) -> bool {
    git2::Reference::is_valid_name(&format!("refs/{kind}/{name}")) && !name.starts_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_tag_of_a_range() {
        let tags = ["v1.2.0", "1.10.0", "v1.9.3", "v2.0.0", "v1.11.0-rc.1", "latest", "v1.2"];
        for (range, expected) in [
            ("^1", Some("1.10.0")),
            ("~1.9", Some("v1.9.3")),
            (">=1, <3", Some("v2.0.0")),
            ("^3", None),
            (">=1.11.0-rc.0, <2", Some("v1.11.0-rc.1")),
        ] {
            let Selector::Range(range) = Selector::range(range).expect("a range") else { panic!() };
            let named = tags.iter().enumerate().map(|(number, name)| ((*name).to_owned(), number));
            let found = highest(&range, named).expect("clear").map(|(name, _)| name);
            assert_eq!(found.as_deref(), expected, "{range}");
        }
    }

    #[test]
    fn one_version_by_two_names_leads_to_one_commit() {
        let Selector::Range(range) = Selector::range("^1").expect("a range") else { panic!() };
        let tags = |other| [("v1.0.0".to_owned(), 1), ("1.0.0".to_owned(), other)];
        assert_eq!(highest(&range, tags(1)), Ok(Some(("v1.0.0".to_owned(), 1))));
        assert!(highest(&range, tags(2)).is_err());
        let above = tags(2).into_iter().chain([("v1.0.1".to_owned(), 3)]);
        assert_eq!(highest(&range, above), Ok(Some(("v1.0.1".to_owned(), 3))));
    }

    #[test]
    fn what_is_no_selector_is_refused() {
        assert!(Selector::tag("-x").is_err() && Selector::tag("a..b").is_err());
        assert!(Selector::range("one").is_err() && Selector::range("").is_err());
        assert!(Selector::commit("abc").is_err() && Selector::commit("HEAD").is_err());
    }
}
