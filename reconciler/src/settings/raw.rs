//! The files as they are written: every member may be left out, as another file may
//! have it.

use serde::Deserialize;
use strata_core::CompositionName;
use toml::Spanned;

use super::source::{RevertTable, SourceTable, TrustTable, WebhookTable};
use super::traces::TracesTable;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct File {
    pub source: Option<Spanned<SourceTable>>,
    pub trust: Option<Spanned<TrustTable>>,
    pub webhook: Option<Spanned<WebhookTable>>,
    pub revert: Option<Spanned<RevertTable>>,
    pub listen: Option<Spanned<Listen>>,
    pub traces: Option<Spanned<TracesTable>>,
    #[serde(default)]
    pub commit_status: Vec<Spanned<CommitStatus>>,
    #[serde(default)]
    pub notify: Vec<Spanned<Notify>>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Listen {
    pub metrics: Option<std::net::SocketAddr>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CommitStatus {
    pub name: String,
    pub forge: Option<Forge>,
    pub api: Option<String>,
    pub repository: Option<String>,
    pub token_file: Option<std::path::PathBuf>,
    pub token_env: Option<String>,
    pub context: Option<String>,
    pub target_url: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Forge {
    GitHub,
    GitLab,
    Gitea,
    Forgejo,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Notify {
    pub name: String,
    pub kind: Option<Kind>,
    pub importance: Option<Level>,
    pub events: Option<Vec<String>>,
    pub templates: Option<Vec<CompositionName>>,
    pub subject: Option<String>,
    pub text: Option<String>,
    pub quiet: Option<String>,
    pub url: Option<String>,
    pub url_file: Option<std::path::PathBuf>,
    pub url_env: Option<String>,
    pub secret_file: Option<std::path::PathBuf>,
    pub secret_env: Option<String>,
    pub homeserver: Option<String>,
    pub room: Option<String>,
    pub token_file: Option<std::path::PathBuf>,
    pub token_env: Option<String>,
    pub server: Option<String>,
    pub port: Option<u16>,
    pub encryption: Option<Encryption>,
    pub from: Option<String>,
    pub to: Option<Vec<String>>,
    pub user: Option<String>,
    pub password_file: Option<std::path::PathBuf>,
    pub password_env: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Webhook,
    Slack,
    Matrix,
    Email,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Info,
    Warning,
    Error,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encryption {
    Tls,
    StartTls,
    None,
}
