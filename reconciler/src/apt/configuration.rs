//! What apt on this machine is configured to use, as apt's own tools say it:
//! `apt-config dump` for the settings, `apt-get indextargets` for the sources.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use strata_core::deb822;
use strata_import::apt::auth::Logins;
use strata_import::apt::sources::{SourceOptions, yes_no};

use super::AptError;

/// The settings of apt, by lower-case name.
#[derive(Debug, Clone, Default)]
pub struct Configuration {
    values: BTreeMap<String, String>,
}

/// One `Packages` index of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Where its release is: `…/dists/bookworm/`.
    pub release_uri: String,
    /// The root of the archive, below which the packages are.
    pub archive_uri: String,
    /// The index's path below `release_uri`, without a compression's suffix.
    pub path: String,
    /// The file and the entry in it that name the source.
    pub entry: String,
    pub options: SourceOptions,
}

impl Configuration {
    /// # Errors
    /// There is no apt, or it is not configured well.
    pub fn ask() -> Result<Self, AptError> {
        Ok(Self::parse(&ask("apt-config", &["dump"])?))
    }

    /// Reads lines of the form `Name "value";`.
    fn parse(text: &str) -> Self {
        let mut values = BTreeMap::new();
        for line in text.lines() {
            let Some((name, rest)) = line.split_once(' ') else { continue };
            let value = rest.strip_prefix('"').and_then(|rest| rest.strip_suffix("\";"));
            if let Some(value) = value {
                values.insert(name.to_ascii_lowercase(), value.to_owned());
            }
        }
        Configuration { values }
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.values
            .get(&name.to_ascii_lowercase())
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// # Errors
    /// The value is neither yes nor no.
    pub fn yes_no(&self, name: &str, default: bool) -> Result<bool, AptError> {
        let Some(value) = self.get(name) else { return Ok(default) };
        yes_no(name, value).map_err(|source| AptError::Setting { source })
    }

    pub fn architecture(&self) -> Result<&str, AptError> {
        self.get("APT::Architecture").ok_or(AptError::NoSetting("APT::Architecture"))
    }

    /// A path such as `Dir::Etc::Trusted`, below those of its parents.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        let mut path = PathBuf::from(self.get(name)?);
        let mut parent = name.rsplit_once("::");
        while let (false, Some((name, _))) = (path.is_absolute(), parent) {
            path = Path::new(self.get(name).unwrap_or("")).join(path);
            parent = name.rsplit_once("::");
        }
        Some(path)
    }

    /// The regular files that apt reads for a setting and the directory of more of them
    /// (`NAME` and `NAMEparts`), in apt's order; in the directory those of these suffixes.
    fn files(&self, name: &str, suffixes: &[&str]) -> Result<Vec<PathBuf>, AptError> {
        let mut files: Vec<_> = self.path(name).into_iter().filter(|path| path.is_file()).collect();
        let Some(directory) = self.path(&format!("{name}parts")) else { return Ok(files) };
        let at = |source| AptError::Read { path: directory.clone(), source };
        let entries = match std::fs::read_dir(&directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(files),
            entries => entries.map_err(at)?,
        };
        let mut parts = Vec::new();
        for entry in entries {
            let path = entry.map_err(at)?.path();
            let suffix = path.extension().map(|suffix| suffix.to_string_lossy().into_owned());
            let is_hidden =
                path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
            if suffixes.contains(&suffix.as_deref().unwrap_or("")) && !is_hidden && path.is_file() {
                parts.push(path);
            }
        }
        parts.sort();
        files.extend(parts);
        Ok(files)
    }

    /// Names and passwords for archives (`apt_auth.conf(5)`).
    ///
    /// # Errors
    /// A file cannot be read or understood.
    pub fn logins(&self) -> Result<Logins, AptError> {
        let mut logins = Logins::default();
        for path in self.files("Dir::Etc::netrc", &["conf"])? {
            let text = std::fs::read(&path)
                .map_err(|source| AptError::Read { path: path.clone(), source })?;
            logins.add(&text).map_err(|source| AptError::Auth { path, source })?;
        }
        Ok(logins)
    }

    /// What would give packages other priorities and is not looked at: files of
    /// preferences that say something, and a default release.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn preferences(&self) -> Result<Vec<String>, AptError> {
        let mut found = Vec::new();
        for path in self.files("Dir::Etc::preferences", &["", "pref"])? {
            let text = std::fs::read(&path)
                .map_err(|source| AptError::Read { path: path.clone(), source })?;
            let says = |line: &str| !line.trim().is_empty() && !line.starts_with('#');
            if String::from_utf8_lossy(&text).lines().any(says) {
                found.push(path.display().to_string());
            }
        }
        found.extend(self.get("APT::Default-Release").map(|_| "APT::Default-Release".to_owned()));
        Ok(found)
    }

    /// The proxy for a host, if there is one.
    pub fn proxy(&self, scheme: &str, host: &str) -> Option<&str> {
        let of = |scheme: &str| {
            self.get(&format!("Acquire::{scheme}::Proxy::{host}"))
                .or_else(|| self.get(&format!("Acquire::{scheme}::Proxy")))
        };
        let found = of(scheme).or_else(|| if scheme == "https" { of("http") } else { None });
        found.filter(|proxy| !proxy.eq_ignore_ascii_case("direct"))
    }

    pub fn has_proxy(&self) -> bool {
        let proxy = |name: &&String| {
            name.starts_with("acquire::http::proxy") || name.starts_with("acquire::https::proxy")
        };
        self.values.iter().any(|(name, value)| proxy(&name) && !value.is_empty())
    }
}

/// The `Packages` indexes of all sources for machines of `architecture`.
///
/// # Errors
/// apt has no sources, or an entry is not understood.
pub fn targets(architecture: &str) -> Result<Vec<Target>, AptError> {
    let text = ask("apt-get", &["indextargets", "--no-release-info", "Created-By: Packages"])?;
    let stanzas = deb822::parse(text.as_bytes())
        .map_err(|fault| AptError::Targets { reason: fault.to_string() })?;
    let mut targets = Vec::new();
    for stanza in &stanzas {
        let value = |name| stanza.get(name).map_or("", |field| field.value);
        if value("Architecture") != architecture && !value("Architecture").is_empty() {
            continue;
        }
        let entry = value("Sourcesentry").to_owned();
        targets.push(Target {
            release_uri: value("Base-URI").to_owned(),
            archive_uri: value("Repo-URI").to_owned(),
            path: value("MetaKey").trim_start_matches("./").to_owned(),
            options: options(&entry)?,
            entry,
        });
    }
    if targets.is_empty() {
        return Err(AptError::NoSources { architecture: architecture.to_owned() });
    }
    Ok(targets)
}

/// The options of the entry `file:number`.
fn options(entry: &str) -> Result<SourceOptions, AptError> {
    let place =
        entry.rsplit_once(':').and_then(|(file, number)| Some((file, number.parse().ok()?)));
    let Some((file, number)) = place else {
        return Err(AptError::Targets { reason: format!("{entry:?} names no entry of a file") });
    };
    let text = std::fs::read(file)
        .map_err(|source| AptError::Read { path: PathBuf::from(file), source })?;
    let deb822 = Path::new(file).extension().is_some_and(|extension| extension == "sources");
    SourceOptions::parse(&text, deb822, number)
        .map_err(|source| AptError::Entry { entry: entry.to_owned(), source })
}

fn ask(program: &'static str, arguments: &[&str]) -> Result<String, AptError> {
    let output = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .output()
        .map_err(|source| AptError::Run { program, source })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(AptError::Failed { program, said });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration() -> Configuration {
        Configuration::parse(
            "Dir \"/\";\nDir::Etc \"etc/apt\";\nDir::Etc::trusted \"trusted.gpg\";\nDir::Etc::parts \"/x\";\nAPT::Architecture \"amd64\";\nAcquire::http::Proxy \"http://a:1\";\nAcquire::http::Proxy::quiet.example \"DIRECT\";\nAcquire::Empty \"\";\n",
        )
    }

    #[test]
    fn paths_stand_below_their_parents() {
        let configuration = configuration();
        let path = |name| configuration.path(name);
        assert_eq!(path("Dir::Etc::Trusted"), Some("/etc/apt/trusted.gpg".into()));
        assert_eq!(path("Dir::Etc::Parts"), Some("/x".into()));
        assert_eq!(path("Dir::Etc::Nothing"), None);
    }

    #[test]
    fn proxies_by_host() {
        let configuration = configuration();
        assert!(configuration.has_proxy());
        assert_eq!(configuration.proxy("http", "b.example"), Some("http://a:1"));
        assert_eq!(configuration.proxy("https", "b.example"), Some("http://a:1"));
        assert_eq!(configuration.proxy("http", "quiet.example"), None);
        assert!(!Configuration::default().has_proxy());
    }
}
