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
}
