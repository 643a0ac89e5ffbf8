//! Where a repository is mirrored from (`docs/formats.md`, "Remote repositories"): its
//! location and where its credentials are, as `strata.toml` has them. Credentials themselves
//! never stand in git.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::limits;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    #[error("it has {0} bytes, the limit is {max}", max = limits::LOCATION_BYTES)]
    TooLong(usize),
    #[error("it has white space or control characters")]
    Characters,
    #[error(
        "it must begin with https://, http://, ftp://, s3:// or / (a directory), as in https://layers.example.org/main"
    )]
    Scheme,
    #[error(
        "ftps:// cannot be read: its servers leave it open for ever whether a file is there; use https://, or ftp:// with `keys`, which protect what comes"
    )]
    Ftps,
    #[error("a name or password stands in it; say with `credentials` where they are")]
    Credentials,
    #[error("there is no host, or no bucket, in it")]
    Host,
    #[error("`?` and `#` have no meaning here")]
    Query,
    #[error("`.` and `..` are no parts of it")]
    Dots,
}

/// How a repository is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scheme {
    Http,
    Https,
    Ftp,
    S3,
    Directory,
}

const SCHEMES: [(&str, Scheme); 4] = [
    ("http://", Scheme::Http),
    ("https://", Scheme::Https),
    ("ftp://", Scheme::Ftp),
    ("s3://", Scheme::S3),
];

/// A URL or the absolute path of a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    scheme: Scheme,
    /// Host and port, or the bucket; empty for a directory.
    authority: String,
    /// Without slashes at its ends.
    path: String,
}

impl Location {
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Host and port, or the bucket; empty for a directory.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Below the host, the bucket or the root directory; no slashes at its ends.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl FromStr for Location {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Self, LocationError> {
        if text.len() > limits::LOCATION_BYTES {
            return Err(LocationError::TooLong(text.len()));
        }
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(LocationError::Characters);
        }
        let known = SCHEMES
            .iter()
            .find_map(|(prefix, scheme)| text.strip_prefix(prefix).map(|rest| (*scheme, rest)));
        let (scheme, authority, path) = match known {
            Some((scheme, rest)) => {
                let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
                (scheme, authority, path)
            }
            None if text.starts_with("ftps://") => return Err(LocationError::Ftps),
            None if text.starts_with('/') => (Scheme::Directory, "", text),
            None => return Err(LocationError::Scheme),
        };
        if authority.contains('@') {
            return Err(LocationError::Credentials);
        }
        if scheme != Scheme::Directory {
            if authority.is_empty() || authority.starts_with(':') {
                return Err(LocationError::Host);
            }
            if text.contains(['?', '#']) {
                return Err(LocationError::Query);
            }
        }
        let path = path.trim_matches('/');
        if path.split('/').any(|part| matches!(part, "." | "..")) {
            return Err(LocationError::Dots);
        }
        Ok(Location { scheme, authority: authority.to_owned(), path: path.to_owned() })
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = SCHEMES.iter().find(|(_, scheme)| *scheme == self.scheme);
        let prefix = prefix.map_or("", |(prefix, _)| prefix);
        let slash = if self.path.is_empty() && self.scheme != Scheme::Directory { "" } else { "/" };
        write!(f, "{prefix}{}{slash}{}", self.authority, self.path)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("write `file:/absolute/path` or `env:NAME`: where it is kept, never the secret itself")]
pub struct CredentialsError;

/// Where the credentials for a repository are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Credentials {
    File(PathBuf),
    Environment(String),
}

impl FromStr for Credentials {
    type Err = CredentialsError;

    fn from_str(text: &str) -> Result<Self, CredentialsError> {
        if let Some(path) = text.strip_prefix("file:").filter(|path| path.starts_with('/')) {
            return Ok(Credentials::File(PathBuf::from(path)));
        }
        let name = text.strip_prefix("env:").ok_or(CredentialsError)?;
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if name.is_empty() || !name.bytes().all(is_name) {
            return Err(CredentialsError);
        }
        Ok(Credentials::Environment(name.to_owned()))
    }
}

impl fmt::Display for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credentials::File(path) => write!(f, "file:{}", path.display()),
            Credentials::Environment(name) => write!(f, "env:{name}"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "write the absolute path of a file of certificates in PEM, as in /etc/strata/layers-ca.pem"
)]
pub struct CertificatesError;

/// The file of certificates that a server is known by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Certificates(PathBuf);

impl Certificates {
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl FromStr for Certificates {
    type Err = CertificatesError;

    fn from_str(text: &str) -> Result<Self, CertificatesError> {
        match text.starts_with('/') {
            true => Ok(Certificates(PathBuf::from(text))),
            false => Err(CertificatesError),
        }
    }
}

/// Where a repository comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Remote {
    pub location: Location,
    pub credentials: Option<Credentials>,
    /// Certificates to know an HTTPS server by, instead of the system's.
    pub certificates: Option<Certificates>,
    /// Of an S3 service: its URL and its region.
    pub endpoint: Option<Location>,
    pub region: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_read_and_printed() {
        for text in [
            "https://layers.example.org/main",
            "http://[::1]:8080",
            "ftp://mirror/pub/strata",
            "s3://bucket/a/b",
            "/srv/layers/main",
            "/",
        ] {
            let location: Location = text.parse().expect("valid");
            assert_eq!(location.to_string(), text);
        }
        let slashes: Location = "https://host//a/b//".parse().expect("valid");
        assert_eq!(slashes.path(), "a/b");
    }

    #[test]
    fn what_is_no_location_is_refused() {
        let cases = [
            ("layers.example.org", LocationError::Scheme),
            ("gopher://host", LocationError::Scheme),
            ("ftps://mirror:990/strata", LocationError::Ftps),
            ("https://alice:secret@host/a", LocationError::Credentials),
            ("https:///a", LocationError::Host),
            ("s3://", LocationError::Host),
            ("https://host/a?b=c", LocationError::Query),
            ("https://host/a/../b", LocationError::Dots),
            ("/srv/../etc", LocationError::Dots),
            ("https://ho st/a", LocationError::Characters),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<Location>(), Err(error), "{text}");
        }
    }

    #[test]
    fn credentials_are_a_place() {
        for text in ["file:/run/secrets/layers", "env:LAYERS_TOKEN"] {
            assert_eq!(text.parse::<Credentials>().expect("valid").to_string(), text);
        }
        for text in ["secret", "file:relative", "env:", "env:A=B", "alice:secret"] {
            assert_eq!(text.parse::<Credentials>(), Err(CredentialsError), "{text}");
        }
        let certificates: Certificates = "/etc/ca.pem".parse().expect("valid");
        assert_eq!(certificates.path(), Path::new("/etc/ca.pem"));
        assert_eq!("ca.pem".parse::<Certificates>(), Err(CertificatesError));
    }
}
