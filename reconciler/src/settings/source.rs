//! The tables `[source]`, `[trust]`, `[webhook]` and `[revert]` (`docs/sources.md`).

use std::net::SocketAddr;
use std::path::PathBuf;

use git2::Oid;
use serde::Deserialize;

use crate::revert::{Author, RevertSettings};
use crate::secret::SecretReference;
use crate::source::{Credentials, Remote, Selector, Source, SourceError, Testing, Token};
use crate::trust::{SignerLists, Trust};
use crate::webhook::{Forge, WebhookSettings};

/// What the names of branches that revert something begin with.
const BRANCH_PREFIX: &str = "strata/revert-";
/// What forges take as the user of a token unless they want a certain one.
const TOKEN_USER: &str = "git";

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SourceTable {
    branch: Option<String>,
    tag: Option<String>,
    range: Option<String>,
    commit: Option<String>,
    remote: Vec<RemoteTable>,
    testing: Option<TestingTable>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RemoteTable {
    url: String,
    user: Option<String>,
    token_file: Option<PathBuf>,
    token_env: Option<String>,
    ca_file: Option<PathBuf>,
    identity_file: Option<PathBuf>,
    known_hosts_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct TestingTable {
    branch: String,
    definitions: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TrustTable {
    #[serde(default)]
    signers: Place,
    ssh: Option<String>,
    ssh_revoked: Option<String>,
    openpgp: Option<String>,
    anchor: Option<String>,
}

/// Where the lists of signers are.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Place {
    /// Files of this host.
    #[default]
    Files,
    /// Files of the last trusted commit.
    Commit,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct WebhookTable {
    listen: SocketAddr,
    forge: Forge,
    secret_file: Option<PathBuf>,
    secret_env: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RevertTable {
    branch_prefix: Option<String>,
    author: Option<String>,
    remote: Option<RemoteTable>,
}

/// Why a table cannot be taken: the key, and what is wrong with it.
type Wrong = String;

impl SourceTable {
    /// # Errors
    /// What is wrong with it.
    pub fn check(self) -> Result<Source, Wrong> {
        let SourceTable { branch, tag, range, commit, remote, testing } = self;
        let wrong = |error: SourceError| format!("source: {error}");
        let selector = match (branch, tag, range, commit) {
            (None, None, None, None) => Selector::branch("main"),
            (Some(name), None, None, None) => Selector::branch(&name),
            (None, Some(name), None, None) => Selector::tag(&name),
            (None, None, Some(range), None) => Selector::range(&range),
            (None, None, None, Some(id)) => Selector::commit(&id),
            _ => return Err("source: give one of branch, tag, range and commit".to_owned()),
        };
        let remotes: Result<Vec<_>, _> =
            remote.into_iter().map(|remote| remote.check("source.remote")).collect();
        let source = Source::new(remotes?, selector.map_err(wrong)?).map_err(wrong)?;
        let Some(TestingTable { branch, definitions }) = testing else { return Ok(source) };
        let testing = Testing::new(&branch, definitions);
        let testing = testing.map_err(|error| format!("source.testing: {error}"))?;
        Ok(source.with_testing(testing))
    }
}

impl RemoteTable {
    /// `key` is the table's name.
    fn check(self, key: &str) -> Result<Remote, Wrong> {
        let token = secret(&format!("{key}.token"), self.token_file, self.token_env)?;
        if self.user.is_some() && token.is_none() {
            return Err(format!("{key}.user: a user goes with a token"));
        }
        let user = self.user.unwrap_or_else(|| TOKEN_USER.to_owned());
        if user.is_empty() || user.contains(|c: char| c == ':' || c.is_control()) {
            return Err(format!("{key}.user: {user:?} is no name of a user"));
        }
        let path = |name: &str, path| absolute(&format!("{key}.{name}"), path);
        let credentials = Credentials {
            token: token.map(|secret| Token { user, secret }),
            ca_file: path("ca-file", self.ca_file)?,
            identity_file: path("identity-file", self.identity_file)?,
            known_hosts_file: path("known-hosts-file", self.known_hosts_file)?,
        };
        Remote::with_credentials(&self.url, credentials)
            .map_err(|error| format!("{key}.url: {error}"))
    }
}

impl TrustTable {
    /// # Errors
    /// What is wrong with it.
    pub fn check(self) -> Result<Trust, Wrong> {
        let TrustTable { signers, ssh, ssh_revoked, openpgp, anchor } = self;
        if ssh.is_none() && openpgp.is_none() {
            return Err("trust: name a list of signers with `ssh` or `openpgp`".to_owned());
        }
        let anchor = anchor.map(|text| commit("trust.anchor", &text)).transpose()?;
        let lists = match signers {
            Place::Files => SignerLists::Files {
                ssh: absolute("trust.ssh", ssh.map(PathBuf::from))?,
                ssh_revoked: absolute("trust.ssh-revoked", ssh_revoked.map(PathBuf::from))?,
                openpgp: absolute("trust.openpgp", openpgp.map(PathBuf::from))?,
            },
            Place::Commit if anchor.is_none() => {
                let why = "with the signers in commits the first commit to believe must be named";
                return Err(format!("trust.anchor: {why}"));
            }
            Place::Commit => SignerLists::Commit {
                ssh: path_in_commit("trust.ssh", ssh)?,
                ssh_revoked: path_in_commit("trust.ssh-revoked", ssh_revoked)?,
                openpgp: path_in_commit("trust.openpgp", openpgp)?,
            },
        };
        Ok(Trust { lists, anchor })
    }
}

impl WebhookTable {
    /// # Errors
    /// What is wrong with it.
    pub fn check(self) -> Result<WebhookSettings, Wrong> {
        let WebhookTable { listen, forge, secret_file, secret_env } = self;
        let secret = secret("webhook.secret", secret_file, secret_env)?;
        let missing = "webhook.secret-file: without a secret anybody could send webhooks";
        let secret = secret.ok_or(missing)?;
        Ok(WebhookSettings { listen, forge, secret })
    }
}

impl RevertTable {
    /// # Errors
    /// What is wrong with it.
    pub fn check(self) -> Result<RevertSettings, Wrong> {
        let branch_prefix = self.branch_prefix.unwrap_or_else(|| BRANCH_PREFIX.to_owned());
        if !git2::Reference::is_valid_name(&format!("refs/heads/{branch_prefix}x")) {
            return Err(format!("revert.branch-prefix: {branch_prefix:?} begins no branch's name"));
        }
        let author = self.author.map(|text| author(&text)).transpose()?;
        let remote = self.remote.map(|remote| remote.check("revert.remote")).transpose()?;
        Ok(RevertSettings { branch_prefix, author, remote })
    }
}

/// `Name <address>`, as git writes it.
fn author(text: &str) -> Result<Author, Wrong> {
    let parts = text.strip_suffix('>').and_then(|text| text.split_once(" <"));
    let plain = |text: &str| {
        !text.trim().is_empty()
            && !text.contains(|c: char| matches!(c, '<' | '>') || c.is_control())
    };
    match parts {
        Some((name, email)) if plain(name) && plain(email) => {
            Ok(Author { name: name.to_owned(), email: email.to_owned() })
        }
        _ => Err(format!("revert.author: {text:?}: write it as in Strata <strata@example.org>")),
    }
}

/// A path of this host. It is absolute: a service has no directory to start from.
fn absolute(key: &str, path: Option<PathBuf>) -> Result<Option<PathBuf>, Wrong> {
    match path {
        Some(path) if path.is_relative() => {
            Err(format!("{key}: {} is no absolute path", path.display()))
        }
        path => Ok(path),
    }
}

/// A secret in a file or in the environment.
pub(super) fn secret(
    key: &str,
    file: Option<PathBuf>,
    variable: Option<String>,
) -> Result<Option<SecretReference>, Wrong> {
    match (file, variable) {
        (Some(_), Some(_)) => Err(format!("{key}-file: give a file or an environment variable")),
        (None, Some(name)) => Ok(Some(SecretReference::Environment(name))),
        (file, None) => Ok(absolute(&format!("{key}-file"), file)?.map(SecretReference::File)),
    }
}

fn path_in_commit(key: &str, text: Option<String>) -> Result<Option<String>, Wrong> {
    let plain = |text: &str| {
        text.split('/').all(|part| !matches!(part, "" | "." | "..")) && !text.contains('\0')
    };
    match text {
        Some(text) if !plain(&text) => Err(format!("{key}: {text:?} is no path in a commit")),
        text => Ok(text),
    }
}

fn commit(key: &str, text: &str) -> Result<Oid, Wrong> {
    let whole = text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let id = Oid::from_str(text).ok().filter(|_| whole);
    id.ok_or_else(|| format!("{key}: {text:?} is no commit id of 40 digits"))
}
