//! `strata.toml` and `appliances.toml` (`docs/formats.md`, "The GitOps repository").
//!
//! Every fault of a file is reported at once with its line; a key that is not
//! known is a fault, so that a misspelt one cannot be ignored in silence.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use crate::diagnostic::Diagnostic;
use crate::filter::Filter;
use crate::limits;
use crate::names::{
    CompositionName, LayerName, MacAddr, NameError, RepositoryName, RingName, TEMPLATES_REPOSITORY,
    VaName,
};
use crate::remote::{Certificates, Credentials, Location, Remote, Scheme};
use crate::rollout::policy::{RolloutPolicy, assign_rings};
use crate::scripts::policy::{LONGEST_TIME_LIMIT_S, OnFailure, ScriptPolicy};
use crate::signed::{PublicKeyText, Role, RoleName};
use crate::stated::{Stated, stated};
pub use crate::toml_reader::Placed;
use crate::toml_reader::{TableReader, TomlFile};

/// Path of the configuration in the GitOps repository.
pub const CONFIGURATION_FILE: &str = "strata.toml";
/// Path of the declared appliances.
pub const APPLIANCES_FILE: &str = "appliances.toml";
/// The priority of a repository that names none.
pub const DEFAULT_PRIORITY: u32 = 500;
/// The ring where none is configured.
pub const DEFAULT_RING: &str = "everyone";

/// A repository that compositions may draw on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryConfiguration {
    pub name: RepositoryName,
    /// Where two repositories have a layer of one name, the higher one is preferred.
    pub priority: u32,
    /// Which of its units may be chosen.
    pub filter: Filter,
    /// Whose signatures its first root must have; where there is none, the repository is
    /// trusted as the files of the store are.
    pub trust: Option<Role>,
    /// Where it is mirrored from; without one it is the store's own.
    pub remote: Option<Remote>,
    pub line: u32,
}

/// What a template, or a VA's own LDF, may draw on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateConfiguration {
    pub name: CompositionName,
    /// Which units may be chosen, of those that the repositories' filters leave.
    pub filter: Filter,
    pub line: u32,
}

/// A layer as `repository/layer`, without a version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LayerPath {
    pub repository: RepositoryName,
    pub layer: LayerName,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayerPathError {
    #[error("write `repository/layer`: there is no / in {0:?}")]
    Slash(String),
    #[error(transparent)]
    Name(#[from] NameError),
}

impl FromStr for LayerPath {
    type Err = LayerPathError;
    fn from_str(text: &str) -> Result<Self, LayerPathError> {
        let (repository, layer) = text
            .split_once('/')
            .ok_or_else(|| LayerPathError::Slash(text.chars().take(64).collect()))?;
        Ok(LayerPath { repository: repository.parse()?, layer: layer.parse()? })
    }
}

impl fmt::Display for LayerPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.repository, self.layer)
    }
}

/// A preference for some units of a layer; it never brings an older version back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    pub layer: LayerName,
    /// Only units of this repository are preferred.
    pub repository: Option<RepositoryName>,
    /// Only units of this version are preferred; a `*` at the end stands for any rest.
    pub version: Option<String>,
    pub line: u32,
}

impl Pin {
    pub fn prefers(&self, repository: &RepositoryName, version: &str) -> bool {
        self.repository.as_ref().is_none_or(|wanted| wanted == repository)
            && self.version.as_deref().is_none_or(|wanted| match wanted.strip_suffix('*') {
                Some(start) => version.starts_with(start),
                None => version == wanted,
            })
    }
}

/// The parsed `strata.toml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    /// In the order of the file.
    pub repositories: Vec<RepositoryConfiguration>,
    /// Layers that are part of every composition (§5).
    pub base: Vec<Placed<LayerPath>>,
    /// In the order in which a rollout reaches them; never empty.
    pub rings: Vec<RingName>,
    /// How a rollout goes from one to the next.
    pub rollout: RolloutPolicy,
    /// Templates that its windows and freezes name.
    pub scheduled: Vec<Placed<CompositionName>>,
    /// Layers that one composition may have.
    pub max_layers: u32,
    /// VAs that one commit may touch before `strata plan` says that it is too many.
    pub most_touched_vas: Option<u32>,
    /// The same as a share of the fleet, in percent.
    pub most_touched_percent: Option<u32>,
    /// How VAs run the scripts of layers.
    pub scripts: ScriptPolicy,
    /// What the fleet's machines are; units for others are left out.
    pub architecture: Option<String>,
    /// In the order of the file.
    pub pins: Vec<Pin>,
    /// In the order of the file; whether there are such LDFs, [`crate::desired`] says.
    pub templates: Vec<TemplateConfiguration>,
    /// All that the file says, to compare it with another.
    pub stated: Stated,
}

impl Default for Configuration {
    fn default() -> Self {
        Configuration {
            repositories: Vec::new(),
            base: Vec::new(),
            rings: vec![RingName::new(DEFAULT_RING).expect("a constant that is a name")],
            rollout: RolloutPolicy::default(),
            scheduled: Vec::new(),
            max_layers: limits::COMPOSITION_LAYERS as u32,
            most_touched_vas: None,
            most_touched_percent: None,
            scripts: ScriptPolicy::default(),
            architecture: None,
            pins: Vec::new(),
            templates: Vec::new(),
            stated: Stated::new(),
        }
    }
}

impl Configuration {
    /// Reads `strata.toml`. What could be read is returned along with every fault.
    pub fn read(text: &[u8]) -> (Self, Vec<Diagnostic>) {
        let (mut file, table) = TomlFile::parse(CONFIGURATION_FILE, text);
        let mut configuration = Configuration::default();
        let Some(table) = table else { return (configuration, file.diagnostics) };
        configuration.stated = stated(&table);
        let mut reader = TableReader::new(&table, 0, CONFIGURATION_FILE);
        for (repository, at) in reader.tables(&mut file, "repository") {
            configuration.read_repository(&mut file, repository, at);
        }
        configuration.base = reader.parsed_list(&mut file, "base").unwrap_or_default();
        configuration.scheduled = configuration.rollout.read(&mut file, &mut reader);
        let rings = configuration.rollout.rings.iter();
        configuration.rings = rings.map(|ring| ring.name.clone()).collect();
        // An architecture is a word of Debian's, which a name can hold.
        let architecture = reader.parsed::<LayerName>(&mut file, "architecture");
        configuration.architecture = architecture.map(|name| name.value.to_string());
        for (pin, at) in reader.tables(&mut file, "pin") {
            configuration.read_pin(&mut file, pin, at);
        }
        for (template, at) in reader.tables(&mut file, "template") {
            configuration.read_template(&mut file, template, at);
        }
        if let Some((limits_table, at)) = reader.table(&mut file, "limits") {
            let mut reader = TableReader::new(limits_table, at, "[limits]");
            let most = configuration.max_layers;
            if let Some(number) = reader.number(&mut file, "layers", most) {
                configuration.max_layers = number;
            }
            configuration.most_touched_vas = reader.number(&mut file, "touched-vas", u32::MAX);
            configuration.most_touched_percent = reader.number(&mut file, "touched-percent", 100);
            reader.finish(&mut file);
        }
        if let Some((table, at)) = reader.table(&mut file, "scripts") {
            configuration.read_scripts(&mut file, table, at);
        }
        reader.finish(&mut file);
        configuration.check_base(&mut file);
        (configuration, file.diagnostics)
    }

    fn read_repository(
        &mut self,
        file: &mut TomlFile<'_>,
        table: &toml::de::DeTable<'_>,
        at: usize,
    ) {
        let mut reader = TableReader::new(table, at, "a [[repository]]");
        let name = reader.required::<RepositoryName>(file, "name");
        let priority = reader.number(file, "priority", 100_000).unwrap_or(DEFAULT_PRIORITY);
        let filter = Filter::read(file, &mut reader);
        let faults = file.diagnostics.len();
        let trust = read_trust(file, &mut reader, at);
        let mut remote = read_remote(file, &mut reader, at);
        let is_unsigned = reader.flag(file, "unsigned").unwrap_or(false);
        if is_unsigned && trust.is_some() {
            let message = "it has `keys`, and `unsigned = true` says that nobody signs it";
            file.report(at, "unsigned", message.to_owned(), None);
        } else if remote.is_some() && trust.is_none() && !is_unsigned {
            let message = "a repository with a `url` needs the `keys` that sign it";
            let hint = "`strata repo key list` prints them where it is signed; `unsigned = true` takes whatever the network brings";
            file.report(at, "unsigned", message.to_owned(), Some(hint.to_owned()));
        }
        if file.diagnostics.len() > faults {
            // Nothing is fetched on the word of a configuration that is at fault.
            remote = None;
        }
        reader.finish(file);
        let Some(Placed { value: name, line }) = name else { return };
        let refuse =
            |message: String| Diagnostic::error(CONFIGURATION_FILE, line, "repository", message);
        if name.as_str() == TEMPLATES_REPOSITORY {
            let message = format!(
                "the repository name {name} is reserved for configuration layers that come from git"
            );
            file.diagnostics.push(refuse(message));
        } else if let Some(first) = self.repository(&name) {
            let message = format!("the repository {name} stands on line {} already", first.line);
            file.diagnostics.push(refuse(message));
        } else {
            self.repositories.push(RepositoryConfiguration {
                name,
                priority,
                filter,
                trust,
                remote,
                line,
            });
        }
    }

    fn read_template(&mut self, file: &mut TomlFile<'_>, table: &toml::de::DeTable<'_>, at: usize) {
        let mut reader = TableReader::new(table, at, "a [[template]]");
        let name = reader.required::<CompositionName>(file, "name");
        let faults = file.diagnostics.len();
        let filter = Filter::read(file, &mut reader);
        reader.finish(file);
        let Some(Placed { value: name, line }) = name else { return };
        let refuse =
            |message: String| Diagnostic::error(CONFIGURATION_FILE, line, "template", message);
        if let Some(first) = self.templates.iter().find(|template| template.name == name) {
            let message = format!("{name} stands on line {} already", first.line);
            file.diagnostics.push(refuse(message));
        } else if filter.is_empty() && file.diagnostics.len() == faults {
            let message = format!("nothing is said of {name}");
            let hint = "say what it may draw on: [[template.allow]] or [[template.deny]]";
            file.diagnostics.push(refuse(message).hint(hint));
        } else {
            self.templates.push(TemplateConfiguration { name, filter, line });
        }
    }

    fn read_scripts(&mut self, file: &mut TomlFile<'_>, table: &toml::de::DeTable<'_>, at: usize) {
        let mut reader = TableReader::new(table, at, "[scripts]");
        let on_failure = reader.parsed::<OnFailure>(file, "on-failure");
        let time_limit_s = reader.number(file, "time-limit-s", LONGEST_TIME_LIMIT_S);
        reader.finish(file);
        let on_failure = on_failure.map_or(self.scripts.on_failure, |placed| placed.value);
        let time_limit_s = time_limit_s.unwrap_or(self.scripts.time_limit_s);
        match ScriptPolicy::new(on_failure, time_limit_s) {
            Ok(policy) => self.scripts = policy,
            Err(error) => file.report(at, "value", error.to_string(), None),
        }
    }

    fn read_pin(&mut self, file: &mut TomlFile<'_>, table: &toml::de::DeTable<'_>, at: usize) {
        let mut reader = TableReader::new(table, at, "a [[pin]]");
        let layer = reader.required::<LayerName>(file, "layer");
        let repository = reader.parsed::<RepositoryName>(file, "repository");
        let version = reader.parsed::<String>(file, "version");
        reader.finish(file);
        let Some(Placed { value: layer, line }) = layer else { return };
        let refuse = |message: String| Diagnostic::error(CONFIGURATION_FILE, line, "pin", message);
        if repository.is_none() && version.is_none() {
            let message = format!("the pin of {layer} names neither a repository nor a version");
            file.diagnostics.push(refuse(message));
        } else if let Some(first) = self.pins.iter().find(|pin| pin.layer == layer) {
            let message = format!("{layer} is pinned on line {} already", first.line);
            file.diagnostics.push(refuse(message));
        } else {
            if let Some(Placed { value, line }) = &repository
                && self.repository(value).is_none()
            {
                let message = format!("the pin of {layer} is of an unknown repository");
                let fault =
                    Diagnostic::error(CONFIGURATION_FILE, *line, "unknown-repository", message);
                file.diagnostics.push(fault.hint(self.repositories_hint()));
            }
            let repository = repository.map(|placed| placed.value);
            let version = version.map(|placed| placed.value);
            self.pins.push(Pin { layer, repository, version, line });
        }
    }

    fn check_base(&self, file: &mut TomlFile<'_>) {
        for Placed { value, line } in &self.base {
            if self.repository(&value.repository).is_none() {
                let message = format!("{value} is of an unknown repository");
                file.diagnostics.push(
                    Diagnostic::error(CONFIGURATION_FILE, *line, "unknown-repository", message)
                        .hint(self.repositories_hint()),
                );
            }
        }
    }

    pub fn repository(&self, name: &RepositoryName) -> Option<&RepositoryConfiguration> {
        self.repositories.iter().find(|repository| repository.name == *name)
    }

    /// What to do about an unknown repository.
    pub(crate) fn repositories_hint(&self) -> String {
        let names: Vec<_> = self.repositories.iter().map(|r| r.name.as_str()).collect();
        match names.as_slice() {
            [] => format!("declare it in {CONFIGURATION_FILE} with [[repository]] and a name"),
            _ => format!("{CONFIGURATION_FILE} declares {}", names.join(", ")),
        }
    }

    /// The ring of an appliance that names none: the last one a rollout reaches.
    pub fn default_ring(&self) -> &RingName {
        self.rings.last().expect("the constructor leaves at least one ring")
    }
}

/// The keys that a repository's first root must be signed by.
fn read_trust(
    file: &mut TomlFile<'_>,
    reader: &mut TableReader<'_, '_>,
    at: usize,
) -> Option<Role> {
    let keys = reader.parsed_list::<PublicKeyText>(file, "keys");
    let threshold = reader.number(file, "threshold", limits::ROLE_KEYS as u32);
    let Some(keys) = keys else {
        if threshold.is_some() {
            let message = "`threshold` says how many of `keys` must sign, and there are none";
            file.report(at, "keys", message.to_owned(), None);
        }
        return None;
    };
    let keys = keys.into_iter().map(|placed| placed.value).collect();
    let role = Role { threshold: threshold.unwrap_or(1), keys };
    if let Err(error) = role.check(RoleName::Root) {
        file.report(at, "keys", format!("the repository's keys: {error}"), None);
    }
    Some(role)
}

/// Where a repository comes from.
fn read_remote(
    file: &mut TomlFile<'_>,
    reader: &mut TableReader<'_, '_>,
    at: usize,
) -> Option<Remote> {
    let location = reader.parsed::<Location>(file, "url");
    let credentials = reader.parsed::<Credentials>(file, "credentials");
    let endpoint = reader.parsed::<Location>(file, "endpoint");
    let region = reader.parsed::<String>(file, "region");
    let certificates = reader.parsed::<Certificates>(file, "ca-file");
    let Some(Placed { value: location, .. }) = location else {
        let more = credentials.is_some() || certificates.is_some();
        if more || endpoint.is_some() || region.is_some() {
            let message = "`credentials`, `ca-file`, `endpoint` and `region` belong to a `url`";
            file.report(at, "remote", message.to_owned(), None);
        }
        return None;
    };
    let endpoint_scheme = endpoint.as_ref().map(|endpoint| endpoint.value.scheme());
    let is_https = match location.scheme() {
        Scheme::S3 => endpoint_scheme.is_none_or(|scheme| scheme == Scheme::Https),
        scheme => scheme == Scheme::Https,
    };
    if certificates.is_some() && !is_https {
        let message = "`ca-file` is for servers that are reached by https://";
        file.report(at, "remote", message.to_owned(), Some("leave it out".to_owned()));
    }
    if location.scheme() != Scheme::S3 && (endpoint.is_some() || region.is_some()) {
        let message = "`endpoint` and `region` belong to a `url` that begins with s3://";
        file.report(at, "remote", message.to_owned(), None);
    }
    let is_http = |endpoint: &Placed<Location>| {
        matches!(endpoint.value.scheme(), Scheme::Http | Scheme::Https)
    };
    if endpoint.as_ref().is_some_and(|endpoint| !is_http(endpoint)) {
        let message = "`endpoint` must begin with https:// or http://";
        file.report(at, "remote", message.to_owned(), None);
    }
    Some(Remote {
        location,
        credentials: credentials.map(|placed| placed.value),
        certificates: certificates.map(|placed| placed.value),
        endpoint: endpoint.map(|placed| placed.value),
        region: region.map(|placed| placed.value),
    })
}

/// A declared VA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appliance {
    pub name: VaName,
    pub mac: MacAddr,
    /// The composition it runs.
    pub composition: CompositionName,
    pub ring: RingName,
    pub labels: BTreeMap<String, String>,
    /// Where it stands in `appliances.toml`.
    pub line: u32,
}

/// What `appliances.toml` declares.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Appliances {
    pub by_name: BTreeMap<VaName, Appliance>,
    /// Every composition that is named, by a faulty appliance too.
    pub named: Vec<Placed<CompositionName>>,
}

/// Reads `appliances.toml`: declared VAs by name, along with every fault.
/// Whether the compositions exist is for [`crate::desired::DesiredState`].
pub fn read_appliances(
    text: &[u8],
    configuration: &Configuration,
) -> (Appliances, Vec<Diagnostic>) {
    let (mut file, table) = TomlFile::parse(APPLIANCES_FILE, text);
    let mut appliances = Appliances::default();
    let Some(table) = table else { return (appliances, file.diagnostics) };
    let mut macs: BTreeMap<MacAddr, u32> = BTreeMap::new();
    let mut in_named_ring: BTreeSet<VaName> = BTreeSet::new();
    let mut reader = TableReader::new(&table, 0, APPLIANCES_FILE);
    for (table, at) in reader.tables(&mut file, "appliance") {
        let named = &mut appliances.named;
        let Some((appliance, mac_line, ring_named)) =
            read_appliance(&mut file, table, at, configuration, named)
        else {
            continue;
        };
        let mut refuse = |line, code, message| {
            file.diagnostics.push(Diagnostic::error(APPLIANCES_FILE, line, code, message));
        };
        if let Some(first) = macs.insert(appliance.mac, mac_line) {
            let message =
                format!("the MAC address {} stands on line {first} already", appliance.mac);
            refuse(mac_line, "duplicate-mac", message);
        }
        if let Some(first) = appliances.by_name.get(&appliance.name) {
            let message =
                format!("the appliance {} stands on line {} already", appliance.name, first.line);
            refuse(appliance.line, "duplicate-appliance", message);
            continue;
        }
        if ring_named {
            in_named_ring.insert(appliance.name.clone());
        }
        appliances.by_name.insert(appliance.name.clone(), appliance);
    }
    reader.finish(&mut file);
    let by_name = appliances.by_name.values_mut();
    let mut all: Vec<_> =
        by_name.map(|a| (in_named_ring.contains(&a.name), a)).map(|(n, a)| (a, n)).collect();
    assign_rings(&configuration.rollout, &mut all);
    (appliances, file.diagnostics)
}

fn read_appliance(
    file: &mut TomlFile<'_>,
    table: &toml::de::DeTable<'_>,
    at: usize,
    configuration: &Configuration,
    named: &mut Vec<Placed<CompositionName>>,
) -> Option<(Appliance, u32, bool)> {
    let mut reader = TableReader::new(table, at, "an [[appliance]]");
    let name = reader.required::<VaName>(file, "name");
    let mac = reader.required::<MacAddr>(file, "mac");
    let ldf = reader.required::<LdfReference>(file, "ldf");
    let ring = reader.parsed::<RingName>(file, "ring");
    let labels = reader.table(file, "labels").map(|(table, at)| {
        TableReader::new(table, at, "labels").all_strings(file).into_iter().collect()
    });
    reader.finish(file);
    if let Some(Placed { value, line }) = &ldf {
        named.push(Placed { value: value.0.clone(), line: *line });
    }
    if let Some(Placed { value, line }) = &ring
        && !configuration.rings.contains(value)
    {
        let names: Vec<_> = configuration.rings.iter().map(RingName::as_str).collect();
        file.diagnostics.push(
            Diagnostic::error(
                APPLIANCES_FILE,
                *line,
                "unknown-ring",
                format!("there is no ring {value}"),
            )
            .hint(format!("{CONFIGURATION_FILE} has the rings {}", names.join(", "))),
        );
    }
    let (name, mac, ldf) = (name?, mac?, ldf?);
    let ring_named = ring.is_some();
    let appliance = Appliance {
        name: name.value,
        mac: mac.value,
        composition: ldf.value.0,
        ring: ring.map_or_else(|| configuration.default_ring().clone(), |ring| ring.value),
        labels: labels.unwrap_or_default(),
        line: name.line,
    };
    Some((appliance, mac.line, ring_named))
}

/// `name`, `templates/name` or `appliances/name`, with or without `.ldf`.
struct LdfReference(CompositionName);

impl FromStr for LdfReference {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let name = text.strip_prefix("templates/").or(text.strip_prefix("appliances/"));
        let name = name.unwrap_or(text);
        CompositionName::new(name.strip_suffix(".ldf").unwrap_or(name)).map(LdfReference)
    }
}

#[cfg(test)]
mod tests;
