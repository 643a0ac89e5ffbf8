//! Secrets: read where they are used, shown nowhere.
//!
//! Settings name the file or the environment variable that holds one; neither a log
//! nor an error ever shows what is in it.

use std::fmt;
use std::path::PathBuf;

const SECRET_BYTES: usize = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("the secret in {path}: {why}")]
    File { path: PathBuf, why: String },
    #[error("the environment variable {0} holds no secret")]
    Environment(String),
}

/// A text that must not be shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text itself. Whoever asks keeps it out of logs, arguments and files.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Secret(text.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Where a secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretReference {
    File(PathBuf),
    Environment(String),
}

impl SecretReference {
    /// Reads the secret, anew each time, so that a file that is renewed is taken as it
    /// is. One line break at its end is none of it.
    ///
    /// # Errors
    /// It is not there, empty, or no plain line of text.
    pub fn read(&self) -> Result<Secret, SecretError> {
        match self {
            SecretReference::Environment(name) => {
                let value = std::env::var(name).ok().filter(|value| is_line(value));
                value.map(Secret).ok_or_else(|| SecretError::Environment(name.clone()))
            }
            SecretReference::File(path) => {
                let failed = |why: String| SecretError::File { path: path.clone(), why };
                // Mounted secrets are links.
                let real = path.canonicalize().map_err(|error| failed(error.to_string()))?;
                let bytes = strata_store::read_limited(&real, SECRET_BYTES)
                    .map_err(|error| failed(error.to_string()))?;
                let text =
                    String::from_utf8(bytes).map_err(|_| failed("it is not UTF-8".to_owned()))?;
                let line = text.strip_suffix('\n').unwrap_or(&text);
                match is_line(line) {
                    true => Ok(Secret(line.to_owned())),
                    false => Err(failed("it is not one line of text".to_owned())),
                }
            }
        }
    }
}

fn is_line(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(char::is_control)
}

/// The text with what may convince somebody taken out of the URLs in it: users, passwords,
/// and queries, in which forges and object stores take tokens. Where a URL is odd, rather
/// too much is taken out.
pub fn without_credentials(text: &str) -> String {
    let mut pieces = text.split("://");
    let mut clean = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        clean.push_str("://");
        clean.push_str(&without_query(&piece[user_information(piece)..]));
    }
    clean
}

/// Bytes of the user and the password at the beginning of what follows a URL's scheme.
fn user_information(piece: &str) -> usize {
    let url = piece.split(char::is_whitespace).next().unwrap_or_default();
    let authority = url.split(['/', '?', '#']).next().unwrap_or_default();
    let port = authority.rsplit_once(':').map_or("", |(_, port)| port);
    let is_port = port.bytes().all(|byte| byte.is_ascii_digit()) || authority.starts_with('[');
    // What stands where a port would and is none is a password with a slash in it.
    let within = if authority.contains('@') || is_port { authority } else { url };
    within.rfind('@').map_or(0, |at| at + 1)
}

fn without_query(piece: &str) -> String {
    let end = piece.find(|c: char| c.is_whitespace() || matches!(c, '"' | '`' | '>'));
    let url = &piece[..end.unwrap_or(piece.len())];
    // What a sentence goes on with is no part of it.
    let (url, after) = piece.split_at(url.trim_end_matches([':', ';', ',', '.', ')', '\'']).len());
    match url.split_once('?') {
        Some((before, query)) if !query.is_empty() => {
            let fragment = query.find('#').map_or("", |at| &query[at..]);
            format!("{before}?…{fragment}{after}")
        }
        _ => piece.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_a_line_and_never_shown() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("token");
        let read = |text: &str| {
            std::fs::write(&path, text).expect("written");
            SecretReference::File(path.clone()).read()
        };
        let secret = read("s3cret\n").expect("read");
        assert_eq!((secret.expose(), format!("{secret:?}").as_str()), ("s3cret", "Secret"));
        for bad in ["", "\n", "two\nlines\n", "head\r\nInjected: x"] {
            let error = read(bad).expect_err("refused").to_string();
            assert!(error.contains("token") && !error.contains("Injected"), "{error}");
        }
        let gone = SecretReference::Environment("STRATA_TEST_NO_SUCH_VARIABLE".to_owned());
        assert!(gone.read().is_err());
    }

    #[test]
    fn urls_are_shown_without_credentials() {
        for (text, clean) in [
            ("no URL: ann@example.org", "no URL: ann@example.org"),
            ("https://h/r.git#main", "https://h/r.git#main"),
            ("https://ann:s3cret@h:8443/a@b", "https://h:8443/a@b"),
            ("https://s3cret@h/r", "https://h/r"),
            ("--from=https://ann:s3/cret@h/r", "--from=https://h/r"),
            ("https://ann:s3@cret@h/r", "https://h/r"),
            ("ssh://git@[::1]:22/r", "ssh://[::1]:22/r"),
            ("http://[::1]/r", "http://[::1]/r"),
            ("https://h/r?token=s3cret&x=1#part", "https://h/r?…#part"),
            ("https://h/r? yes", "https://h/r? yes"),
            ("https://h/r?t=s3cret: no answer", "https://h/r?…: no answer"),
            ("('https://h/r?t=s3cret').", "('https://h/r?…')."),
            (
                "two: 'https://a:s3cret@h/r': 404, \"ssh://b:s3cret@g/\"",
                "two: 'https://h/r': 404, \"ssh://g/\"",
            ),
            ("https://proxy/https://ann:s3cret@h/r", "https://proxy/https://h/r"),
            ("https://h/r?to=https://ann:s3cret@g/", "https://h/r?…://g/"),
            ("https://", "https://"),
        ] {
            assert_eq!(without_credentials(text), clean, "{text}");
            assert!(!clean.contains("s3"), "{clean}");
        }
    }
}
