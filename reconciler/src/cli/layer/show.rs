//! `strata layer list` and `strata layer show`.

use std::collections::BTreeMap;

use indicatif::HumanBytes;
use serde::Serialize;
use strata_core::database::Unit;
use strata_core::digest::Digest;
use strata_core::manifest::{Entry, Kind, Manifest};
use strata_core::metadata::{LayerKind, Metadata};
use strata_core::names::{LayerName, RepositoryName};
use strata_core::relation::print_list;
use strata_core::version::LayerVersion;
use strata_store::Store;

use super::LayerReference;
use crate::cli::{
    Failure, Outcome, OutputArgs, OutputFormat, StoreArgs, print_json, print_text, quantity,
};
use crate::repositories::publish::entry;
use crate::repositories::remote::units::is_there;

/// List layer units
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  strata layer list --store /srv/strata\n  strata layer list --repo main openssh-server openssh-client --output json"
)]
pub struct ListArgs {
    /// Only of this repository
    #[arg(long, value_name = "REPOSITORY")]
    repo: Option<RepositoryName>,
    /// Only of these layers
    #[arg(value_name = "LAYER")]
    layers: Vec<LayerName>,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Show what a layer unit says of itself and what it holds
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  strata layer show main/openssh-server\n  strata layer show main/openssh-server 1:9.2p1-2 --files --output json"
)]
pub struct ShowArgs {
    /// The layer, as in main/openssh-server
    #[arg(value_name = "REPOSITORY/LAYER")]
    layer: LayerReference,
    /// Its version; the newest if left out
    version: Option<LayerVersion>,
    /// List its files, too, and what it hides in the layers below it
    #[arg(long)]
    files: bool,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Serialize)]
struct Listed {
    repository: RepositoryName,
    layer: LayerName,
    version: LayerVersion,
    kind: LayerKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    architecture: Option<String>,
    digest: Digest,
    content_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    withdrawn: Option<String>,
}

impl Listed {
    fn of(repository: &RepositoryName, unit: &Unit) -> Self {
        Listed {
            repository: repository.clone(),
            layer: unit.metadata.layer.clone(),
            version: unit.metadata.version.clone(),
            kind: unit.metadata.kind,
            architecture: unit.metadata.architecture.clone(),
            digest: unit.digest,
            content_bytes: unit.content_bytes,
            withdrawn: unit.withdrawn.clone(),
        }
    }
}

pub fn list(args: &ListArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let repositories = match &args.repo {
        Some(repository) => vec![repository.clone()],
        None => store.repositories()?,
    };
    let mut listed = Vec::new();
    for repository in &repositories {
        let database = store.database(repository)?;
        let wanted =
            |unit: &&Unit| args.layers.is_empty() || args.layers.contains(&unit.metadata.layer);
        listed.extend(database.units().filter(wanted).map(|unit| Listed::of(repository, unit)));
    }
    for missing in args.layers.iter().filter(|name| listed.iter().all(|l| l.layer != **name)) {
        let place = match &args.repo {
            Some(repository) => format!("the repository {repository} has no"),
            None => "no repository has a".to_owned(),
        };
        eprintln!("note: {place} layer {missing}");
    }
    if args.output.output == OutputFormat::Json {
        print_json(&listed)?;
        return Ok(Outcome::Done);
    }
    let mut text = String::new();
    for unit in listed {
        let Listed { repository, layer, version, kind, content_bytes, withdrawn, .. } = unit;
        let name = format!("{repository}/{layer}");
        let size = HumanBytes(content_bytes).to_string();
        let withdrawn = withdrawn.map(|reason| format!("  withdrawn: {reason}"));
        let withdrawn = withdrawn.unwrap_or_default();
        text.push_str(&format!("{name:<40} {version:<32} {kind:<13} {size:>10}{withdrawn}\n"));
    }
    print_text(&text)?;
    Ok(Outcome::Done)
}

/// The unit that is meant, from the database of its repository.
pub fn find(
    store: &Store,
    reference: &LayerReference,
    version: Option<&LayerVersion>,
) -> Result<Unit, Failure> {
    let LayerReference { repository, layer } = reference;
    let database = store.database(repository)?;
    let units: Vec<&Unit> = database.units().filter(|unit| unit.metadata.layer == *layer).collect();
    let found = match version {
        Some(version) => units.iter().find(|unit| unit.metadata.version == *version),
        None => units.last(),
    };
    if let Some(unit) = found {
        return Ok((*unit).clone());
    }
    if let Some(version) = version
        && let Some(reason) = store.withdrawn(repository)?.reason(layer, version)
    {
        let unit = format!("{repository}/{layer} {version}");
        let error = format!("{unit} was withdrawn, and garbage collection took it: {reason}");
        return Err(Failure::new(error).hint(format!(
            "imported again, it is withdrawn still, until: strata layer restore {unit}"
        )));
    }
    let versions: Vec<_> = units.iter().map(|unit| unit.metadata.version.to_string()).collect();
    Err(match (version, versions.is_empty()) {
        (Some(version), false) => {
            let error = format!("{repository}/{layer} has no version {version}");
            Failure::new(error).hint(format!("there are {}", versions.join(", ")))
        }
        _ => Failure::new(format!("the repository {repository} has no layer {layer}"))
            .hint(format!("`strata layer list --repo {repository}` prints its layers")),
    })
}

/// What a unit that its database lists holds.
pub fn manifest(
    store: &Store,
    repository: &RepositoryName,
    unit: &Unit,
) -> Result<Manifest, Failure> {
    let Metadata { layer, version, .. } = &unit.metadata;
    if store.is_mirror(repository)? && !is_there(store, repository, unit) {
        let error = format!("{repository}/{layer} {version} is not here: nothing has wanted it");
        let hint = format!("fetch it: strata repo mirror DIR {repository}/{layer}");
        return Err(Failure::new(error).hint(hint));
    }
    store.manifest(repository, layer, version).map_err(|error| {
        Failure::from(error).hint(format!("`strata repo index {repository}` finds what is there"))
    })
}

#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    unit: Listed,
    entries: usize,
    essential: bool,
    pre_depends: String,
    depends: String,
    conflicts: String,
    breaks: String,
    replaces: String,
    provides: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    section: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<Vec<File>>,
    /// What it hides in the layers below it; with the files.
    #[serde(skip_serializing_if = "Option::is_none")]
    hidden: Option<Vec<String>>,
}

/// One path, for programs; what is not UTF-8 in it is replaced (the manifest
/// has the bytes).
#[derive(Debug, Serialize)]
struct File {
    path: String,
    kind: &'static str,
    mode: String,
    uid: u32,
    gid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<Digest>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    xattrs: BTreeMap<String, usize>,
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl File {
    fn of(entry: &Entry) -> Self {
        let mut file = File {
            path: format!("/{}", lossy(&entry.path)),
            kind: "",
            mode: format!("{:04o}", entry.mode),
            uid: entry.uid,
            gid: entry.gid,
            size: None,
            target: None,
            device: None,
            digest: None,
            xattrs: entry.xattrs.iter().map(|(k, v)| (lossy(k), v.len())).collect(),
        };
        let device = |major, minor| Some(format!("{major}:{minor}"));
        file.kind = match &entry.kind {
            Kind::Directory => "directory",
            Kind::Regular { size, digest } => {
                (file.size, file.digest) = (Some(*size), Some(*digest));
                "file"
            }
            Kind::Symlink { target } => {
                file.target = Some(lossy(target));
                "symlink"
            }
            Kind::HardLink { target } => {
                file.target = Some(format!("/{}", lossy(target)));
                "hardlink"
            }
            Kind::CharacterDevice { major, minor } => {
                file.device = device(major, minor);
                "character-device"
            }
            Kind::BlockDevice { major, minor } => {
                file.device = device(major, minor);
                "block-device"
            }
            Kind::Fifo => "fifo",
            Kind::Socket => "socket",
        };
        file
    }

    /// A line as `ls -l` has it.
    fn line(&self) -> String {
        let letter = match self.kind {
            "directory" => 'd',
            "symlink" => 'l',
            "character-device" => 'c',
            "block-device" => 'b',
            "fifo" => 'p',
            "socket" => 's',
            "hardlink" => 'h',
            _ => '-',
        };
        let size = self.size.map(|size| size.to_string());
        let size = size.or_else(|| self.device.clone()).unwrap_or_default();
        let owner = format!("{}:{}", self.uid, self.gid);
        let arrow = match (&self.target, self.kind) {
            (Some(target), "hardlink") => format!(" = {}", target.escape_debug()),
            (Some(target), _) => format!(" -> {}", target.escape_debug()),
            (None, _) => String::new(),
        };
        let xattrs: String = self.xattrs.keys().map(|key| format!(" [{key}]")).collect();
        let path = self.path.escape_debug();
        format!("{letter} {} {owner:<9} {size:>10} {path}{arrow}{xattrs}\n", self.mode)
    }
}

pub fn show(args: &ShowArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let unit = find(&store, &args.layer, args.version.as_ref())?;
    let repository = &args.layer.repository;
    let manifest = manifest(&store, repository, &unit)?;
    let whiteouts = store.whiteouts(&entry(repository, &unit))?;
    let hidden: Vec<_> = whiteouts.iter().map(|path| format!("/{}", lossy(path))).collect();
    if args.output.output == OutputFormat::Json {
        let mut shown = shown(repository, &unit, &manifest, args.files);
        shown.hidden = args.files.then_some(hidden);
        print_json(&shown)?;
        return Ok(Outcome::Done);
    }
    let mut text = unit.metadata.print();
    let size = HumanBytes(unit.content_bytes);
    text.push_str(&format!("Repository: {repository}\n"));
    text.push_str(&format!("Layer-Digest: {}\n", unit.digest));
    text.push_str(&format!("Content: {} entries, {size}\n", manifest.entries().len()));
    if !hidden.is_empty() {
        text.push_str(&format!("Hides: {}\n", quantity(hidden.len(), "path")));
    }
    if let Some(reason) = &unit.withdrawn {
        text.push_str(&format!("Withdrawn: {reason}\n"));
    }
    if args.files {
        text.push('\n');
        text.extend(manifest.entries().iter().map(|entry| File::of(entry).line()));
        text.extend(hidden.iter().map(|path| format!("hides {}\n", path.escape_debug())));
    }
    print_text(&text)?;
    Ok(Outcome::Done)
}

fn shown(repository: &RepositoryName, unit: &Unit, manifest: &Manifest, files: bool) -> Shown {
    let metadata = &unit.metadata;
    Shown {
        unit: Listed::of(repository, unit),
        entries: manifest.entries().len(),
        essential: metadata.essential,
        pre_depends: print_list(&metadata.pre_depends),
        depends: print_list(&metadata.depends),
        conflicts: print_list(&metadata.conflicts),
        breaks: print_list(&metadata.breaks),
        replaces: print_list(&metadata.replaces),
        provides: print_list(&metadata.provides),
        section: metadata.section.clone(),
        description: metadata.description.clone(),
        files: files.then(|| manifest.entries().iter().map(File::of).collect()),
        hidden: None,
    }
}
