//! A generation: one composition's layer set, sealed (`docs/formats.md`, "Generation").
//!
//! A generation is complete and immutable: the VA side needs nothing else. Its
//! identity covers the flattened LDF and the digest of every layer, so the same
//! content always has the same id, and a revert gives the former id back.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::data_paths::DataPaths;
use crate::digest::{Digest, DigestError, GenerationId};
use crate::limits;
use crate::metadata::{LayerKind, MetadataError};
use crate::names::{CompositionName, LayerName, NameError, RepositoryName};
use crate::position::Located;
use crate::scripts::policy::ScriptPolicy;
use crate::version::{LayerVersion, VersionError};

/// First line of a generation's `layers` file.
pub const HEADER: &str = "strata-generation 1";
/// Name of the file with the data directories, where there are any.
pub const DATA_FILE: &str = "data";
/// Name of the file with the policy for scripts, where it is not the default one.
pub const SCRIPTS_FILE: &str = "scripts";

/// One layer unit of a layer set.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LayerSetEntry {
    pub kind: LayerKind,
    pub repository: RepositoryName,
    pub layer: LayerName,
    pub version: LayerVersion,
    /// Identity of the unit ([`crate::database::unit_digest`]).
    pub digest: Digest,
}

impl fmt::Display for LayerSetEntry {
    /// `repository/layer version`, as in an LDF.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} {}", self.repository, self.layer, self.version)
    }
}

/// What one composition is made of: its layers, bottom first: software layers
/// in the order of their names, then configuration layers, later above earlier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    composition: CompositionName,
    layers: Vec<LayerSetEntry>,
    ldf: String,
    data: DataPaths,
    scripts: ScriptPolicy,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GenerationError {
    #[error("the layers file has {0} bytes, the limit is {max}", max = limits::GENERATION_BYTES)]
    TooLarge(usize),
    #[error("the file is not UTF-8")]
    Encoding,
    #[error("the first line must be {HEADER:?}; this file is of another version or none at all")]
    Header,
    #[error("the second line must be `composition <name>`")]
    Composition,
    #[error("write `kind repository layer version digest`")]
    Fields,
    #[error(transparent)]
    Kind(MetadataError),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Version(#[from] VersionError),
    #[error(transparent)]
    Digest(#[from] DigestError),
    #[error("the layer {0} stands twice in the set")]
    Duplicate(LayerName),
    #[error("a software layer stands above a configuration layer")]
    Order,
    #[error("more than {max} layers", max = limits::COMPOSITION_LAYERS)]
    TooMany,
    #[error("the definition holds a NUL byte")]
    Nul,
    #[error("the last line does not end in a newline: the file is cut short")]
    Truncated,
}

/// A layer set may hold a layer of one name once per kind: a template's
/// configuration layer may share its name with a software layer.
fn admit(
    seen: &mut BTreeSet<(LayerKind, LayerName)>,
    configured: &mut bool,
    entry: &LayerSetEntry,
) -> Result<(), GenerationError> {
    if !seen.insert((entry.kind, entry.layer.clone())) {
        return Err(GenerationError::Duplicate(entry.layer.clone()));
    }
    if *configured && entry.kind == LayerKind::Software {
        return Err(GenerationError::Order);
    }
    *configured |= entry.kind == LayerKind::Configuration;
    if seen.len() > limits::COMPOSITION_LAYERS {
        return Err(GenerationError::TooMany);
    }
    Ok(())
}

impl Generation {
    /// Seals a layer set. `ldf` is the flattened definition: no `@` line.
    ///
    /// # Errors
    /// A layer that stands twice, kinds out of order, too many layers.
    pub fn new(
        composition: CompositionName,
        layers: Vec<LayerSetEntry>,
        ldf: String,
    ) -> Result<Self, GenerationError> {
        let (mut seen, mut configured) = (BTreeSet::new(), false);
        for entry in &layers {
            admit(&mut seen, &mut configured, entry)?;
        }
        let (data, scripts) = (DataPaths::default(), ScriptPolicy::default());
        Ok(Generation { composition, layers, ldf, data, scripts })
    }

    /// The same generation with data directories.
    #[must_use]
    pub fn with_data(mut self, data: DataPaths) -> Self {
        self.data = data;
        self
    }

    /// The same generation with another policy for scripts.
    #[must_use]
    pub fn with_scripts(mut self, scripts: ScriptPolicy) -> Self {
        self.scripts = scripts;
        self
    }

    pub fn composition(&self) -> &CompositionName {
        &self.composition
    }

    /// The layer set, bottom first.
    pub fn layers(&self) -> &[LayerSetEntry] {
        &self.layers
    }

    /// The text of `<composition>.ldf`.
    pub fn ldf(&self) -> &str {
        &self.ldf
    }

    /// The data directories of its VAs.
    pub fn data(&self) -> &DataPaths {
        &self.data
    }

    /// How its VAs run scripts.
    pub fn scripts(&self) -> &ScriptPolicy {
        &self.scripts
    }

    /// The files that only some generations have: name and text.
    pub fn further_files(&self) -> Vec<(&'static str, String)> {
        let mut files = Vec::new();
        if !self.data.is_empty() {
            files.push((DATA_FILE, self.data.print()));
        }
        if self.scripts != ScriptPolicy::default() {
            files.push((SCRIPTS_FILE, self.scripts.print()));
        }
        files
    }

    /// blake3 of the `layers` file, a NUL byte and the flattened LDF; then, for each
    /// further file, a NUL byte, its name, a NUL byte and its text.
    pub fn id(&self) -> GenerationId {
        let mut text = self.print_layers();
        text.push('\0');
        text.push_str(&self.ldf);
        for (name, content) in self.further_files() {
            text.push_str(&format!("\0{name}\0{content}"));
        }
        Digest::of(text.as_bytes())
    }

    /// The text of the `layers` file.
    pub fn print_layers(&self) -> String {
        let mut text = format!("{HEADER}\ncomposition {}\n", self.composition);
        for LayerSetEntry { kind, repository, layer, version, digest } in &self.layers {
            text.push_str(&format!("{kind} {repository} {layer} {version} {digest}\n"));
        }
        text
    }

    /// Reads a generation from the two files that every one has.
    ///
    /// # Errors
    /// The first fault of the `layers` file, with line and column. That the
    /// files hash to the expected id is for the caller to compare.
    pub fn parse(layers: &[u8], ldf: &[u8]) -> Result<Self, Located<GenerationError>> {
        let whole = |error| Located::new(1, 1, error);
        if layers.len() > limits::GENERATION_BYTES || ldf.len() > limits::GENERATION_BYTES {
            let length = layers.len().max(ldf.len());
            return Err(whole(GenerationError::TooLarge(length)));
        }
        let text = std::str::from_utf8(layers).map_err(|_| whole(GenerationError::Encoding))?;
        let ldf = std::str::from_utf8(ldf).map_err(|_| whole(GenerationError::Encoding))?;
        if ldf.contains('\0') {
            return Err(whole(GenerationError::Nul));
        }
        let text = text.strip_suffix('\n').ok_or(whole(GenerationError::Truncated))?;
        let mut lines = (1..).zip(text.split('\n'));
        if lines.next().is_none_or(|(_, line)| line != HEADER) {
            return Err(whole(GenerationError::Header));
        }
        let composition = lines
            .next()
            .and_then(|(_, line)| line.strip_prefix("composition "))
            .ok_or(Located::new(2, 1, GenerationError::Composition))?;
        let composition = CompositionName::new(composition)
            .map_err(|error| Located::new(2, "composition ".len() + 1, error.into()))?;
        let (mut seen, mut configured) = (BTreeSet::new(), false);
        let mut entries = Vec::new();
        for (number, line) in lines {
            let here = |error| Located::new(number, 1, error);
            let entry: LayerSetEntry = line.parse().map_err(here)?;
            admit(&mut seen, &mut configured, &entry).map_err(here)?;
            entries.push(entry);
        }
        Ok(Generation {
            composition,
            layers: entries,
            ldf: ldf.to_owned(),
            data: DataPaths::default(),
            scripts: ScriptPolicy::default(),
        })
    }
}

impl FromStr for LayerSetEntry {
    type Err = GenerationError;

    /// A line of a generation's `layers`.
    fn from_str(line: &str) -> Result<Self, GenerationError> {
        let fields: Vec<_> = line.split(' ').collect();
        let [kind, repository, layer, version, digest] = fields.as_slice() else {
            return Err(GenerationError::Fields);
        };
        Ok(LayerSetEntry {
            kind: kind.parse().map_err(GenerationError::Kind)?,
            repository: RepositoryName::new(*repository)?,
            layer: LayerName::new(*layer)?,
            version: LayerVersion::new(*version)?,
            digest: digest.parse()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Generation {
        let entry = |kind, repository: &str, layer: &str, version: &str| LayerSetEntry {
            kind,
            repository: repository.parse().expect("valid"),
            layer: layer.parse().expect("valid"),
            version: version.parse().expect("valid"),
            digest: Digest::of(layer.as_bytes()),
        };
        Generation::new(
            "sql-server".parse().expect("valid"),
            vec![
                entry(LayerKind::Software, "main", "base", "1"),
                entry(LayerKind::Software, "main", "mysql-server", "5.0.51a-3"),
                entry(LayerKind::Configuration, "templates", "sql-server", "0+00a1"),
            ],
            "main/mysql-server 5.0.51a-3\n\nmain/base 1\ntemplates/sql-server 0+00a1\n".to_owned(),
        )
        .expect("a valid set")
    }

    #[test]
    fn golden_and_its_pinned_id() {
        let generation = sample();
        assert_eq!(generation.print_layers(), include_str!("../golden/generation-layers"));
        assert_eq!(generation.id().to_string(), include_str!("../golden/generation-id").trim());
        let parsed =
            Generation::parse(generation.print_layers().as_bytes(), generation.ldf().as_bytes());
        assert_eq!(parsed, Ok(generation));
    }

    #[test]
    fn data_directories_are_part_of_the_identity() {
        let data = DataPaths::parse(include_bytes!("../golden/generation-data")).expect("golden");
        let with = sample().with_data(data);
        assert_ne!(with.id(), sample().id());
        assert_eq!(with.clone().with_data(DataPaths::default()).id(), sample().id());
        // Pinned: the same declaration is the same generation for ever.
        let pinned = include_str!("../golden/generation-data-id").trim();
        assert_eq!(with.id().to_string(), pinned);
    }

    #[test]
    fn the_policy_for_scripts_is_part_of_the_identity() {
        let policy = include_bytes!("../golden/generation-scripts");
        let with = sample().with_scripts(ScriptPolicy::parse(policy).expect("golden"));
        assert_eq!(with.clone().with_scripts(ScriptPolicy::default()).id(), sample().id());
        let pinned = include_str!("../golden/generation-scripts-id").trim();
        assert_eq!(with.id().to_string(), pinned);
    }

    #[test]
    fn software_stands_below_configuration() {
        let mut layers = sample().layers().to_vec();
        layers.reverse();
        let error = Generation::new("a".parse().expect("valid"), layers, String::new());
        assert_eq!(error, Err(GenerationError::Order));
    }

    proptest! {
        #[test]
        fn mutations_never_panic(at in 0..300usize, byte: u8) {
            let mut text = sample().print_layers().into_bytes();
            let at = at % text.len();
            text[at] = byte;
            if let Ok(parsed) = Generation::parse(&text, b"") {
                prop_assert_eq!(parsed.print_layers().into_bytes(), text);
            }
        }
    }
}
