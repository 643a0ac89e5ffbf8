//! Where a repository is: a path of this host, or a URL.
//!
//! A [`Remote`] that was constructed is safe to hand to git: its protocol is on the
//! allow-list, nothing in it can be taken for an option or a helper program, and
//! displaying it shows no credentials.

use std::fmt;
use std::path::{Path, PathBuf};

use super::{Credentials, MASKED_BYTES, SourceError};

#[derive(Debug, Clone, PartialEq, Eq)]
enum Location {
    /// A repository on this host, as an absolute path.
    Local(PathBuf),
    Remote(String),
}

/// One repository, and how it is convinced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    location: Location,
    credentials: Credentials,
}

impl Remote {
    /// Reads what an operator wrote: a URL, `user@host:path`, or a path, which is
    /// made absolute here.
    ///
    /// # Errors
    /// A protocol that is not on the list, a path that is not there, or something
    /// that git could take for anything but a location.
    pub fn parse(text: &str) -> Result<Self, SourceError> {
        Ok(Remote { location: parse_location(text)?, credentials: Credentials::default() })
    }

    /// One of several that settings name, with credentials. A URL with a password, or with a
    /// token in its place, is refused: it would be where the URL is. Whether an absolute path
    /// is there is for the fetch to say: a share that is away must not keep the other remotes
    /// from being asked.
    ///
    /// # Errors
    /// As of [`Remote::parse`], or the credentials are not for this kind of remote.
    pub fn with_credentials(text: &str, credentials: Credentials) -> Result<Self, SourceError> {
        let location = match parse_location(text) {
            Err(error @ SourceError::Path { .. }) => away(text).ok_or(error)?,
            location => location?,
        };
        let remote = Remote { location, credentials: Credentials::default() };
        if let Location::Remote(url) = &remote.location
            && user_information(url).is_some()
        {
            return Err(SourceError::Password(redacted_url(url)));
        }
        credentials.check()?;
        let is_https = remote.location().starts_with("https://");
        let is_ssh = matches!(remote.location, Location::Remote(_)) && !is_https;
        let of_https = credentials.token.is_some() || credentials.ca_file.is_some();
        let of_ssh = credentials.identity_file.is_some() || credentials.known_hosts_file.is_some();
        if (of_https && !is_https) || (of_ssh && !is_ssh) {
            return Err(SourceError::Credentials(remote.to_string()));
        }
        Ok(Remote { credentials, ..remote })
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

    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// The text with every trace of this remote's credentials taken out. A secret that is
    /// shorter than [`MASKED_BYTES`] goes with the URL that it stands in, and is left
    /// elsewhere: masked, the words that have its letters would tell them.
    pub fn redact(&self, text: &str) -> String {
        let text = self.credentials.redact(text);
        let Location::Remote(url) = &self.location else { return text };
        let mut redacted = text.replace(url.as_str(), &redacted_url(url));
        if let Some(user) = user_information(url) {
            redacted = redacted.replace(&format!("//{user}@"), "//***@");
            let secrets = [Some(user), user.split_once(':').map(|(_, password)| password)];
            let secrets = secrets.into_iter().flatten();
            for secret in secrets.filter(|secret| secret.len() >= MASKED_BYTES) {
                redacted = redacted.replace(secret, "***");
            }
        }
        redacted
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.location {
            Location::Local(path) => write!(f, "{}", path.display()),
            Location::Remote(url) => f.write_str(&redacted_url(url)),
        }
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

/// A path of this host that cannot be followed now.
fn away(text: &str) -> Option<Location> {
    let path = Path::new(text.strip_prefix("file://").unwrap_or(text));
    path.is_absolute().then(|| Location::Local(path.to_owned()))
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
    use crate::source::Source;

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
    fn a_path_of_the_settings_may_be_away() {
        for (text, path) in [
            ("/no/such/repository", Some("/no/such/repository")),
            ("file:///no/such/repository", Some("/no/such/repository")),
            ("no/such/repository", None),
            ("/no/such\nrepository", None),
            ("", None),
        ] {
            let remote = Remote::with_credentials(text, Credentials::default()).ok();
            let found = remote.as_ref().and_then(Remote::local_path);
            assert_eq!(found, path.map(Path::new), "{text:?}");
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
        assert_eq!(source.remotes()[0].location(), url);
        let message = format!("fatal: unable to access '{url}/': s3cret");
        assert!(!source.remotes()[0].redact(&message).contains("s3cret"));
        // Where its letters would be masked one could read them.
        let short = Source::parse("https://u:e@127.0.0.1:1/fleet.git", "main").expect("valid");
        let message = "unable to access 'https://u:e@127.0.0.1:1/fleet.git/': no (//u:e@127)";
        let redacted = short.remotes()[0].redact(message);
        assert_eq!(
            redacted,
            "unable to access 'https://***@127.0.0.1:1/fleet.git/': no (//***@127)"
        );
        let token = Source::parse("https://t0ken@host/r.git", "main").expect("valid");
        assert!(!token.to_string().contains("t0ken"));
        let refused = Source::parse("http://u:s3cret@host/r", "main").expect_err("refused");
        assert!(!refused.to_string().contains("s3cret"));
    }

    #[test]
    fn credentials_go_with_their_kind_of_remote() {
        let known_hosts_file = Some(PathBuf::from("/etc/strata/known_hosts"));
        let ssh = Credentials { known_hosts_file, ..Credentials::default() };
        let ca_file = Some(PathBuf::from("/etc/strata/ca.pem"));
        let https = Credentials { ca_file, ..Credentials::default() };
        for (url, credentials, good) in [
            ("git@host:r.git", &ssh, true),
            ("ssh://git@host/r.git", &ssh, true),
            ("https://host/r.git", &https, true),
            ("https://host/r.git", &ssh, false),
            ("ssh://git@host/r.git", &https, false),
            ("/", &ssh, false),
            ("https://t0ken@host/r.git", &Credentials::default(), false),
            ("ssh://git:s3cret@host/r.git", &Credentials::default(), false),
        ] {
            let parsed = Remote::with_credentials(url, credentials.clone());
            assert_eq!(parsed.is_ok(), good, "{url}");
            if let Err(error) = parsed {
                let shown = error.to_string();
                assert!(!shown.contains("t0ken") && !shown.contains("s3cret"), "{shown}");
            }
        }
    }
}
