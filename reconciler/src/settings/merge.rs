//! Puts files together and checks what came of them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use strata_core::event::{Event, Importance};
use strata_core::rollout::policy::Span;

use super::raw::{self, Kind};
use super::source::{RevertTable, SourceTable, TrustTable, WebhookTable};
use super::traces::TracesTable;
use super::{
    Channel, CommitStatus, Email, Encryption, Fault, Forge, Notify, Secret, Settings, SettingsError,
};

/// What is not told again where nothing is said.
const QUIET: Duration = Duration::from_secs(3_600);

/// An entry and where it was first named.
#[derive(Debug)]
struct Entry<T> {
    file: PathBuf,
    line: u32,
    value: T,
}

impl<T> Entry<T> {
    fn fault(&self, message: impl Into<String>) -> Fault {
        Fault { file: self.file.clone(), line: self.line, message: message.into() }
    }
}

#[derive(Debug, Default)]
pub struct Merged {
    source: Option<Entry<SourceTable>>,
    trust: Option<Entry<TrustTable>>,
    webhook: Option<Entry<WebhookTable>>,
    revert: Option<Entry<RevertTable>>,
    traces: Option<Entry<TracesTable>>,
    listen: raw::Listen,
    commit_status: Vec<Entry<raw::CommitStatus>>,
    notify: Vec<Entry<raw::Notify>>,
}

/// Takes members over that the other one has.
macro_rules! overlay {
    ($into:expr, $from:expr; $($member:ident),*) => {
        {
            $(if $from.$member.is_some() { $into.$member = $from.$member; })*
        }
    };
}

impl Merged {
    pub fn add(&mut self, file: &Path, text: &str, faults: &mut Vec<Fault>) {
        let line = |at: usize| {
            let before = text.as_bytes().get(..at).unwrap_or_default();
            before.iter().fold(1u32, |line, byte| line + u32::from(*byte == b'\n'))
        };
        let parsed: raw::File = match toml::from_str(text) {
            Ok(parsed) => parsed,
            Err(error) => {
                let line = error.span().map_or(0, |span| line(span.start));
                let message = error.message().to_owned();
                faults.push(Fault { file: file.to_owned(), line, message });
                return;
            }
        };
        // These are taken as a whole.
        replace(&mut self.source, parsed.source, file, &line);
        replace(&mut self.trust, parsed.trust, file, &line);
        replace(&mut self.webhook, parsed.webhook, file, &line);
        replace(&mut self.revert, parsed.revert, file, &line);
        replace(&mut self.traces, parsed.traces, file, &line);
        if let Some(listen) = parsed.listen {
            let new = listen.into_inner();
            overlay!(self.listen, new; metrics);
        }
        for entry in parsed.commit_status {
            let (at, new) = (line(entry.span().start), entry.into_inner());
            match self.commit_status.iter_mut().find(|known| known.value.name == new.name) {
                Some(known) => {
                    overlay!(known.value, new; forge, api, repository, token_file, token_env, context, target_url)
                }
                None => self.commit_status.push(Entry { file: file.into(), line: at, value: new }),
            }
        }
        for entry in parsed.notify {
            let (at, new) = (line(entry.span().start), entry.into_inner());
            match self.notify.iter_mut().find(|known| known.value.name == new.name) {
                Some(known) => {
                    overlay!(known.value, new; kind, importance, events, templates, subject, text, quiet,
                    url, url_file, url_env, secret_file, secret_env, homeserver, room, token_file, token_env, server,
                    port, encryption, from, to, user, password_file, password_env)
                }
                None => self.notify.push(Entry { file: file.into(), line: at, value: new }),
            }
        }
    }

    /// Checks every entry as a whole. `faults` are those that were found before.
    ///
    /// # Errors
    /// All faults.
    pub fn settings(self, mut faults: Vec<Fault>) -> Result<Settings, SettingsError> {
        let mut settings = Settings { listen: self.listen.metrics, ..Settings::default() };
        settings.source = checked(self.source, SourceTable::check, &mut faults);
        settings.trust = checked(self.trust, TrustTable::check, &mut faults);
        settings.webhook = checked(self.webhook, WebhookTable::check, &mut faults);
        settings.revert = checked(self.revert, RevertTable::check, &mut faults);
        settings.traces = checked(self.traces, TracesTable::check, &mut faults);
        for entry in self.commit_status {
            match commit_status(&entry) {
                Ok(status) => settings.commit_status.push(status),
                Err(message) => faults.push(entry.fault(message)),
            }
        }
        for entry in self.notify {
            match notify(&entry.value) {
                Ok(notify) => settings.notify.push(notify),
                Err(message) => faults.push(entry.fault(message)),
            }
        }
        match faults.is_empty() {
            true => Ok(settings),
            false => Err(SettingsError { faults }),
        }
    }
}

/// Takes a table in place of that of an earlier file.
fn replace<T>(
    known: &mut Option<Entry<T>>,
    new: Option<toml::Spanned<T>>,
    file: &Path,
    line: &impl Fn(usize) -> u32,
) {
    if let Some(new) = new {
        let line = line(new.span().start);
        *known = Some(Entry { file: file.to_owned(), line, value: new.into_inner() });
    }
}

/// What a table says, where there is one and nothing is wrong with it.
fn checked<T, S>(
    entry: Option<Entry<T>>,
    check: impl Fn(T) -> Result<S, String>,
    faults: &mut Vec<Fault>,
) -> Option<S> {
    let Entry { file, line, value } = entry?;
    match check(value) {
        Ok(checked) => Some(checked),
        Err(message) => {
            faults.push(Fault { file, line, message });
            None
        }
    }
}

fn needed<T: Clone>(name: &str, key: &str, value: &Option<T>) -> Result<T, String> {
    value.clone().ok_or_else(|| format!("{name:?} has no {key}"))
}

fn secret(
    name: &str,
    what: &str,
    file: &Option<PathBuf>,
    env: &Option<String>,
) -> Result<Option<Secret>, String> {
    match (file, env) {
        (Some(_), Some(_)) => Err(format!("{name:?} has both {what}-file and {what}-env")),
        (Some(file), None) if file.is_relative() => {
            Err(format!("{name:?}: {what}-file is no absolute path"))
        }
        (Some(file), None) => Ok(Some(Secret::File(file.clone()))),
        (None, Some(env)) => Ok(Some(Secret::Environment(env.clone()))),
        (None, None) => Ok(None),
    }
}

fn needed_secret(
    name: &str,
    what: &str,
    file: &Option<PathBuf>,
    env: &Option<String>,
) -> Result<Secret, String> {
    secret(name, what, file, env)?
        .ok_or_else(|| format!("{name:?} has no {what}-file or {what}-env"))
}

/// The name is that of a file, too.
fn checked_name(name: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    match !name.is_empty() && name.len() <= 64 && name.chars().all(good) {
        true => Ok(name.to_owned()),
        false => Err(format!("the name {name:?}: write 1 to 64 letters, digits, - and _")),
    }
}

/// An address that tells nobody on the way what is sent.
pub fn checked_url(text: &str) -> Result<String, String> {
    let url = reqwest::Url::parse(text).map_err(|error| format!("{text:?}: {error}"))?;
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    let loopback = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
    if !url.username().is_empty() || url.password().is_some() {
        return Err("an address with credentials: they belong into a file".to_owned());
    }
    match url.scheme() {
        "https" => Ok(text.trim_end_matches('/').to_owned()),
        "http" if loopback => Ok(text.trim_end_matches('/').to_owned()),
        "http" => Err(format!("{text:?}: http:// is for this host alone; use https://")),
        scheme => Err(format!("{text:?}: {scheme}:// is not known; use https://")),
    }
}

fn commit_status(entry: &Entry<raw::CommitStatus>) -> Result<CommitStatus, String> {
    let raw = &entry.value;
    let name = checked_name(&raw.name)?;
    let forge = match needed(&name, "forge", &raw.forge)? {
        raw::Forge::GitHub => Forge::GitHub,
        raw::Forge::GitLab => Forge::GitLab,
        raw::Forge::Gitea | raw::Forge::Forgejo => Forge::Gitea,
    };
    let api = match (&raw.api, forge) {
        (Some(api), _) => checked_url(api)?,
        (None, Forge::GitHub) => "https://api.github.com".to_owned(),
        (None, Forge::GitLab) => "https://gitlab.com/api/v4".to_owned(),
        (None, Forge::Gitea) => return Err(format!("{name:?} has no api")),
    };
    let repository = needed(&name, "repository", &raw.repository)?;
    let parts = repository.split('/').count();
    let word = |part: &str| {
        let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && part != "." && part != ".." && part.chars().all(good)
    };
    // GitLab has groups in groups.
    let fits = if forge == Forge::GitLab { parts >= 2 } else { parts == 2 };
    if !fits || !repository.split('/').all(word) {
        return Err(format!("{name:?}: write the repository as owner/name"));
    }
    Ok(CommitStatus {
        forge,
        api,
        repository,
        token: needed_secret(&name, "token", &raw.token_file, &raw.token_env)?,
        context: raw.context.clone().unwrap_or_else(|| "strata".to_owned()),
        target_url: raw.target_url.clone(),
        name,
    })
}

fn notify(raw: &raw::Notify) -> Result<Notify, String> {
    let name = checked_name(&raw.name)?;
    let importance = match raw.importance {
        None | Some(raw::Level::Warning) => Importance::Warning,
        Some(raw::Level::Info) => Importance::Info,
        Some(raw::Level::Error) => Importance::Error,
    };
    let quiet = match &raw.quiet {
        None => QUIET,
        Some(text) => {
            let span: Span = text.parse().map_err(|error| format!("{name:?}: quiet: {error}"))?;
            Duration::from_millis(span.ms)
        }
    };
    let events = raw.events.clone().unwrap_or_default();
    if let Some(unknown) = events.iter().find(|event| !Event::KINDS.contains(&event.as_str())) {
        let kinds = Event::KINDS.join(", ");
        return Err(format!("{name:?}: there is no event {unknown:?}; there are {kinds}"));
    }
    for template in [&raw.subject, &raw.text].into_iter().flatten() {
        crate::telling::message::check(template).map_err(|error| format!("{name:?}: {error}"))?;
    }
    let channel = match needed(&name, "kind", &raw.kind)? {
        Kind::Webhook => Channel::Webhook {
            url: checked_url(&needed(&name, "url", &raw.url)?)?,
            secret: secret(&name, "secret", &raw.secret_file, &raw.secret_env)?,
        },
        Kind::Slack => {
            let url = needed_secret(&name, "url", &raw.url_file, &raw.url_env)?;
            Channel::Slack { url }
        }
        Kind::Matrix => Channel::Matrix {
            homeserver: checked_url(&needed(&name, "homeserver", &raw.homeserver)?)?,
            room: needed(&name, "room", &raw.room)?,
            token: needed_secret(&name, "token", &raw.token_file, &raw.token_env)?,
        },
        Kind::Email => Channel::Email(email(&name, raw)?),
    };
    Ok(Notify {
        name,
        channel,
        importance,
        events,
        templates: raw.templates.clone().unwrap_or_default(),
        subject: raw.subject.clone(),
        text: raw.text.clone(),
        quiet,
    })
}

fn email(name: &str, raw: &raw::Notify) -> Result<Email, String> {
    let server = needed(name, "server", &raw.server)?;
    let encryption = match raw.encryption {
        None | Some(raw::Encryption::StartTls) => Encryption::StartTls,
        Some(raw::Encryption::Tls) => Encryption::Tls,
        Some(raw::Encryption::None) => Encryption::None,
    };
    let address = server.parse::<std::net::IpAddr>();
    let local = server == "localhost" || address.is_ok_and(|address| address.is_loopback());
    if encryption == Encryption::None && !local {
        return Err(format!("{name:?}: encryption \"none\" is for this host alone"));
    }
    let port = raw.port.unwrap_or(match encryption {
        Encryption::Tls => 465,
        Encryption::StartTls => 587,
        Encryption::None => 25,
    });
    let (from, to) = (needed(name, "from", &raw.from)?, needed(name, "to", &raw.to)?);
    if to.is_empty() {
        return Err(format!("{name:?} has nobody in to"));
    }
    for address in to.iter().chain([&from]) {
        let parsed: Result<lettre::message::Mailbox, _> = address.parse();
        parsed.map_err(|error| format!("{name:?}: the address {address:?}: {error}"))?;
    }
    let password = secret(name, "password", &raw.password_file, &raw.password_env)?;
    let credentials = match (raw.user.clone(), password) {
        (Some(user), Some(password)) => Some((user, password)),
        (None, None) => None,
        (Some(_), None) => {
            return Err(format!("{name:?} has a user and no password-file or password-env"));
        }
        (None, Some(_)) => return Err(format!("{name:?} has a password and no user")),
    };
    Ok(Email { server, port, encryption, from, to, credentials })
}
