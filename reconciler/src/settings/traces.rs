//! The table `[traces]` (`docs/observability.md`).

use std::collections::BTreeMap;
use std::path::PathBuf;

use reqwest::header::HeaderName;
use serde::Deserialize;

use super::merge::checked_url;
use super::source::secret;
use crate::secret::SecretReference;

/// What the path of an OTLP/HTTP receiver of traces ends with.
const PATH: &str = "/v1/traces";
/// Headers, and attributes, that may be given.
const ENTRIES: usize = 32;
/// Bytes of a name or a value of an attribute.
const TEXT_BYTES: usize = 1_024;

/// Where traces go, and what is said of who made them.
#[derive(Debug, Clone, PartialEq)]
pub struct TracesSettings {
    /// The whole address.
    pub endpoint: String,
    /// The part of all passes that is traced, from 0 to 1.
    pub sample: f64,
    pub service_name: String,
    /// `service.instance.id`; of this host and store where it is not given.
    pub instance: Option<String>,
    /// Further attributes of the resource.
    pub attributes: BTreeMap<String, String>,
    /// Headers of each request; their values are secrets.
    pub headers: Vec<(HeaderName, SecretReference)>,
}

// `sample` is a number.
impl Eq for TracesSettings {}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TracesTable {
    endpoint: String,
    sample: Option<f64>,
    service_name: Option<String>,
    instance: Option<String>,
    #[serde(default)]
    attributes: BTreeMap<String, String>,
    #[serde(default)]
    header: Vec<HeaderTable>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct HeaderTable {
    name: String,
    value_file: Option<PathBuf>,
    value_env: Option<String>,
}

impl TracesTable {
    /// # Errors
    /// What is wrong with it.
    pub fn check(self) -> Result<TracesSettings, String> {
        let TracesTable { endpoint, sample, service_name, instance, attributes, header } = self;
        let mut endpoint =
            checked_url(&endpoint).map_err(|error| format!("traces.endpoint: {error}"))?;
        if endpoint.contains(['?', '#']) {
            // It may be a secret.
            return Err("traces.endpoint: a query or a fragment; keys belong into a header".into());
        }
        if !endpoint.ends_with(PATH) {
            endpoint.push_str(PATH);
        }
        let sample = sample.unwrap_or(1.0);
        if !(0.0..=1.0).contains(&sample) {
            return Err(format!("traces.sample: {sample} is no number from 0.0 to 1.0"));
        }
        if attributes.len() > ENTRIES || header.len() > ENTRIES {
            return Err(format!("traces: at most {ENTRIES} attributes and {ENTRIES} headers"));
        }
        let named = [("traces.service-name", &service_name), ("traces.instance", &instance)];
        for (key, text) in named.into_iter().filter_map(|(key, text)| Some((key, text.as_ref()?))) {
            checked_text(key, text)?;
        }
        for (name, value) in &attributes {
            checked_text("traces.attributes", name)?;
            checked_text(&format!("traces.attributes.{name}"), value)?;
            if name.starts_with("service.") {
                return Err(format!(
                    "traces.attributes: {name} is given by service-name, instance and the version"
                ));
            }
        }
        Ok(TracesSettings {
            endpoint,
            sample,
            service_name: service_name.unwrap_or_else(|| "strata".to_owned()),
            instance,
            attributes,
            headers: header.into_iter().map(HeaderTable::check).collect::<Result<_, _>>()?,
        })
    }
}

impl HeaderTable {
    fn check(self) -> Result<(HeaderName, SecretReference), String> {
        let HeaderTable { name, value_file, value_env } = self;
        let checked = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| format!("traces.header.name: {name:?} is no name of a header"))?;
        if matches!(checked.as_str(), "host" | "content-length" | "content-type" | "connection") {
            return Err(format!("traces.header.name: {checked} is not for the settings to say"));
        }
        let value = secret("traces.header.value", value_file, value_env)?;
        let value = value.ok_or_else(|| {
            format!("traces.header.value-file: where is the value of {checked}? Or value-env")
        })?;
        Ok((checked, value))
    }
}

fn checked_text(key: &str, text: &str) -> Result<(), String> {
    match text.is_empty() || text.len() > TEXT_BYTES || text.chars().any(char::is_control) {
        true => Err(format!("{key}: {text:?} is no line of 1 to {TEXT_BYTES} bytes")),
        false => Ok(()),
    }
}
