//! Where commits come from: a local repository or a URL, and a branch.
//!
//! A [`Source`] that was constructed is safe to hand to git: its protocol is on
//! the allow-list, nothing in it can be taken for an option or a helper program,
//! and displaying it shows no credentials.

use std::fmt;
use std::path::{Path, PathBuf};

/// Protocols that git may use, in the form of `GIT_ALLOW_PROTOCOL`. `git://` and
/// `http://` are left out: neither proves who answers.
pub const ALLOWED_PROTOCOLS: &str = "file:https:ssh";

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    #[error("the source is empty")]
    Empty,
    #[error("the source {0:?} contains white space or a control character")]
    Character(String),
    #[error("the source {0} is not allowed: use a path, file://, https:// or ssh://")]
    Protocol(String),
    #[error("the source {0} names no host, or one that looks like an option")]
    Host(String),
    #[error("the source {path}: {error}")]
    Path { path: String, error: String },
    #[error("{0:?} is no name for a branch")]
    Branch(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Location {
    /// A repository on this host, as an absolute path.
    Local(PathBuf),
    Remote(String),
}

/// A branch of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    location: Location,
    branch: String,
}

impl Source {
    /// Reads what an operator wrote: a URL, `user@host:path`, or a path, which is
    /// made absolute here.
    ///
    /// # Errors
    /// A protocol that is not on the list, a path that is not there, or something
    /// that git could take for anything but a location.
    pub fn parse(text: &str, branch: &str) -> Result<Self, SourceError> {
        if !git2::Reference::is_valid_name(&format!("refs/heads/{branch}"))
            || branch.starts_with('-')
        {
            return Err(SourceError::Branch(branch.to_owned()));
        }
        let location = parse_location(text)?;
        Ok(Source { location, branch: branch.to_owned() })
    }

    pub fn branch(&self) -> &str {
        &self.branch
    }

    /// The full name of the branch's reference.
    pub fn reference(&self) -> String {
        format!("refs/heads/{}", self.branch)
    }

    /// The repository's directory, where it is on this host.
    pub fn local_path(&self) -> Option<&Path> {
        match &self.location {
            Location::Local(path) => Some(path),
            Location::Remote(_) => None,
        }
    }

    /// What git is told; may hold credentials.
    pub fn location(&self) -> &str {
        match &self.location {
            Location::Local(path) => path.to_str().expect("parsed from UTF-8"),
            Location::Remote(url) => url,
        }
    }

    /// The text with every trace of this source's credentials taken out.
    pub fn redact(&self, text: &str) -> String {
        let Location::Remote(url) = &self.location else { return text.to_owned() };
        let mut redacted = text.replace(url.as_str(), &redacted_url(url));
        if let Some(user) = user_information(url) {
            let secrets = [Some(user), user.split_once(':').map(|(_, password)| password)];
            for secret in secrets.into_iter().flatten().filter(|secret| !secret.is_empty()) {
                redacted = redacted.replace(secret, "***");
            }
        }
        redacted
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.location {
            Location::Local(path) => write!(f, "{}", path.display())?,
            Location::Remote(url) => write!(f, "{}", redacted_url(url))?,
        }
        write!(f, "#{}", self.branch)
    }
}

fn parse_location(text: &str) -> Result<Location, SourceError> {
    if text.is_empty() {
        return Err(SourceError::Empty);
    }
    let shown = || redacted_url(text);
    if text.chars().any(|c| c.is_control()) {
        return Err(SourceError::Character(shown()));
    }
    // `ext::command` and its like make git run a helper program.
    if text.split(['/', '@']).next().is_some_and(|head| head.contains("::")) {
        return Err(SourceError::Protocol(shown()));
    }
    if let Some((protocol, rest)) = text.split_once("://") {
        return match protocol {
            "file" if rest.starts_with('/') => local(rest),
            "file" => Err(SourceError::Host(shown())),
            "https" | "ssh" => remote(text, rest.split('/').next().unwrap_or("")),
            _ => Err(SourceError::Protocol(shown())),
        };
    }
    match text.split_once(':') {
        Some((host, path)) if !host.contains('/') && !Path::new(text).exists() => {
            if path.is_empty() {
                return Err(SourceError::Host(shown()));
            }
            remote(text, host)
        }
        _ => local(text),
    }
}

fn local(text: &str) -> Result<Location, SourceError> {
    let failed = |error: String| SourceError::Path { path: text.to_owned(), error };
    let path = Path::new(text).canonicalize().map_err(|error| failed(error.to_string()))?;
    match path.to_str() {
        Some(text) if !text.chars().any(char::is_control) => Ok(Location::Local(path)),
        _ => Err(failed("the path is not plain UTF-8".to_owned())),
    }
}

fn remote(text: &str, authority: &str) -> Result<Location, SourceError> {
    if text.chars().any(char::is_whitespace) {
        return Err(SourceError::Character(redacted_url(text)));
    }
    let host = authority.rsplit('@').next().unwrap_or("");
    if host.is_empty() || host.starts_with('-') || authority.starts_with('-') {
        return Err(SourceError::Host(redacted_url(text)));
    }
    Ok(Location::Remote(text.to_owned()))
}

/// `user:password` of a URL, without the user of `ssh://git@host`.
fn user_information(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split('/').next()?;
    let (user, _) = authority.rsplit_once('@')?;
    (user.contains(':') || !url.starts_with("ssh://")).then_some(user)
}

fn redacted_url(url: &str) -> String {
    match user_information(url) {
        Some(user) => url.replacen(&format!("{user}@"), "***@", 1),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_git_could_misunderstand_is_refused() {
        for bad in [
            "",
            "git://host/repository",
            "http://host/repository",
            "ext::sh -c true",
            "ext::sh",
            "fd::17/foo",
            "https://",
            "https:///path",
            "ssh://-oProxyCommand=true/path",
            "ssh://git@-oProxyCommand=true/path",
            "-oProxyCommand=true:path",
            "--upload-pack=true",
            "https://host/with space",
            "https://host/with\nnewline",
            "host:",
            "/no/such/repository",
            "ftp://host/x",
        ] {
            assert!(Source::parse(bad, "main").is_err(), "{bad:?}");
        }
        for good in
            ["https://host/r.git", "ssh://git@host:2222/r", "git@host:team/r.git", "/", "file:///"]
        {
            assert!(Source::parse(good, "main").is_ok(), "{good:?}");
        }
    }

    #[test]
    fn branches_are_names() {
        for bad in ["", "-x", "a..b", "a b", "a:b", "*", "a/", "x.lock"] {
            assert!(Source::parse("/", bad).is_err(), "{bad:?}");
        }
        assert!(Source::parse("/", "release/2.0").is_ok());
    }

    #[test]
    fn credentials_are_never_shown() {
        let url = "https://fleet:s3cret@host/r.git";
        let source = Source::parse(url, "main").expect("valid");
        assert_eq!(source.to_string(), "https://***@host/r.git#main");
        assert_eq!(source.location(), url);
        let message = format!("fatal: unable to access '{url}/': s3cret");
        assert!(!source.redact(&message).contains("s3cret"));
        let token = Source::parse("https://t0ken@host/r.git", "main").expect("valid");
        assert!(!token.to_string().contains("t0ken"));
        let refused = Source::parse("http://u:s3cret@host/r", "main").expect_err("refused");
        assert!(!refused.to_string().contains("s3cret"));
    }
}
