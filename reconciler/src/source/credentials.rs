//! How a remote is convinced and how it is known: all by reference, nothing in a URL.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{MASKED_BYTES, SourceError};
use crate::secret::{SecretError, SecretReference};

/// What an HTTPS remote is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// The forges that take a token as a password want one, and some a certain one.
    pub user: String,
    pub secret: SecretReference,
}

/// Of one remote. Empty, git uses what the machine has: the agent and the known hosts
/// of the user, the certificates of the system.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    pub token: Option<Token>,
    /// Certificates to know an HTTPS remote by, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// The private key for SSH; without it, the agent's are tried.
    pub identity_file: Option<PathBuf>,
    /// Host keys to know an SSH remote by, instead of the user's.
    pub known_hosts_file: Option<PathBuf>,
}

impl Credentials {
    /// Makes sure that ssh takes every path as it is written.
    ///
    /// # Errors
    /// A path has characters that ssh or the shell that starts it would expand.
    pub fn check(&self) -> Result<(), SourceError> {
        let paths = [&self.identity_file, &self.known_hosts_file];
        for path in paths.into_iter().flatten() {
            let plain = |text: &str| {
                text.starts_with('/')
                    && text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+@,:".contains(c))
            };
            if !path.to_str().is_some_and(plain) {
                return Err(SourceError::CredentialPath(path.clone()));
            }
        }
        Ok(())
    }

    /// The command that git runs for SSH. Host keys are always checked, and nothing is
    /// asked or forwarded.
    pub fn ssh_command(&self) -> String {
        let mut command = String::from(
            "ssh -oBatchMode=yes -oStrictHostKeyChecking=yes -oUpdateHostKeys=no \
             -oForwardAgent=no -oClearAllForwardings=yes -oPermitLocalCommand=no",
        );
        let text = |path: &Path| path.to_str().expect("checked").to_owned();
        if let Some(path) = &self.known_hosts_file {
            command.push_str(&format!(
                " -oUserKnownHostsFile={} -oGlobalKnownHostsFile=/dev/null",
                text(path)
            ));
        }
        if let Some(path) = &self.identity_file {
            command.push_str(&format!(" -oIdentitiesOnly=yes -oIdentityFile={}", text(path)));
        }
        command
    }

    /// Settings of git for one fetch from `url`. They go through the environment of the
    /// child: only this user's processes see that, and it is on no disk.
    ///
    /// # Errors
    /// The token cannot be read.
    pub fn git_settings(&self, url: &str) -> Result<Vec<(String, String)>, SecretError> {
        let mut settings = Vec::new();
        if let Some(path) = &self.ca_file {
            settings.push(("http.sslCAInfo".to_owned(), path.display().to_string()));
        }
        if let Some(Token { user, secret }) = &self.token {
            let secret = secret.read()?;
            let both = STANDARD.encode(format!("{user}:{}", secret.expose()));
            // For this URL alone; redirections are not followed.
            settings
                .push((format!("http.{url}.extraHeader"), format!("Authorization: Basic {both}")));
        }
        Ok(settings)
    }

    /// The text with every trace of the secret taken out, where it is long enough that no
    /// other word has its letters.
    pub fn redact(&self, text: &str) -> String {
        let secret = self.token.as_ref().and_then(|token| {
            let secret = token.secret.read().ok()?;
            Some((secret.expose().to_owned(), format!("{}:{}", token.user, secret.expose())))
        });
        match secret {
            Some((secret, both)) => {
                let text = text.replace(&STANDARD.encode(both), "***");
                if secret.len() < MASKED_BYTES { text } else { text.replace(&secret, "***") }
            }
            None => text.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_ssh_would_expand_are_refused() {
        for bad in ["relative", "/a b", "/~", "/%h", "/$HOME", "/x';true;'", "/a\nb", "/a\"b"] {
            let known_hosts_file = Some(PathBuf::from(bad));
            assert!(
                Credentials { known_hosts_file, ..Credentials::default() }.check().is_err(),
                "{bad}"
            );
        }
        let identity_file = Some(PathBuf::from("/etc/strata/id_ed25519"));
        let good = Credentials { identity_file, ..Credentials::default() };
        assert_eq!(good.check(), Ok(()));
        assert!(good.ssh_command().contains(" -oIdentityFile=/etc/strata/id_ed25519"));
        assert!(good.ssh_command().contains("StrictHostKeyChecking=yes"));
    }

    #[test]
    fn a_token_is_in_nothing_that_is_shown() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("token");
        std::fs::write(&path, "t0ken\n").expect("written");
        let token = Token { user: "git".to_owned(), secret: SecretReference::File(path) };
        let credentials = Credentials { token: Some(token), ..Credentials::default() };
        assert!(!format!("{credentials:?}").contains("t0ken"));
        let settings = credentials.git_settings("https://host/r.git").expect("readable");
        let [(key, value)] = &settings[..] else { panic!("{settings:?}") };
        assert_eq!(key, "http.https://host/r.git.extraHeader");
        let said = format!("sent {value} and t0ken");
        assert_eq!(credentials.redact(&said), "sent Authorization: Basic *** and ***");
    }
}
