//! `strata layer infer`, and what `strata layer build --infer-depends` shares with it.

use std::path::PathBuf;

use serde::Serialize;
use strata_core::names::{LayerName, RepositoryName, TEMPLATES_REPOSITORY};
use strata_core::relation::{Dependency, print_list};
use strata_core::version::LayerVersion;
use strata_import::infer::providers::Providers;
use strata_import::infer::{self, Findings, Inferred, Reason, Subject};
use strata_import::{TreeLimits, tree};
use strata_store::Store;

use super::LayerReference;
use super::show::{find, manifest};
use crate::cli::{
    Failure, Outcome, OutputArgs, OutputFormat, StoreArgs, print_json, print_text, quantity,
};

/// Find out what a layer depends on from its files
///
/// Looks at the libraries that its programs need, at the versions of the symbols that they
/// use, and at the interpreters of its scripts, and says which layers of the store have them,
/// by the rules of dpkg-shlibdeps. `strata layer build --infer-depends` writes the same into
/// the layer. Exit status 1 where something that is needed is nowhere.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  strata layer infer main/nginx\n  strata layer infer --root /tmp/nginx --output json"
)]
pub struct InferArgs {
    /// A layer of the store, as in main/nginx
    #[arg(value_name = "REPOSITORY/LAYER", required_unless_present = "root")]
    layer: Option<LayerReference>,
    /// Its version [default: the newest]
    version: Option<LayerVersion>,
    /// Look at a directory that is to become a layer instead
    #[arg(long, value_name = "DIR", conflicts_with = "layer")]
    root: Option<PathBuf>,
    #[command(flatten)]
    from: FromArgs,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Where layers are looked for that others need.
#[derive(Debug, clap::Args)]
pub struct FromArgs {
    /// Look for what is needed in this repository; may be given again, first wins [default: all of the store]
    #[arg(long = "infer-from", value_name = "REPOSITORY")]
    pub repositories: Vec<RepositoryName>,
}

impl FromArgs {
    /// The repositories to look in, `own` first.
    pub fn repositories(
        &self,
        store: &Store,
        own: Option<&RepositoryName>,
    ) -> Result<Vec<RepositoryName>, Failure> {
        if !self.repositories.is_empty() {
            return Ok(self.repositories.clone());
        }
        let mut repositories = store.repositories()?;
        repositories.retain(|repository| repository.as_str() != TEMPLATES_REPOSITORY);
        repositories.sort_by_key(|repository| Some(repository) != own);
        Ok(repositories)
    }
}

/// What a layer in the making or in the store depends on.
pub fn findings(
    store: &Store,
    from: &FromArgs,
    own: Option<(&RepositoryName, &LayerName)>,
    files: &std::path::Path,
    manifest: &strata_core::manifest::Manifest,
) -> Result<Findings, Failure> {
    let repositories = from.repositories(store, own.map(|(repository, _)| repository))?;
    let providers = Providers::load(store, &repositories, own.map(|(_, layer)| layer))?;
    infer::infer(Subject { files, manifest, own }, &providers).map_err(Failure::new)
}

pub fn run(args: &InferArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let findings = match (&args.layer, &args.root) {
        (Some(reference), _) => {
            let unit = find(&store, reference, args.version.as_ref())?;
            let LayerReference { repository, layer } = reference;
            let version = &unit.metadata.version;
            let manifest = manifest(&store, repository, &unit)?;
            let files = store.unit_path(repository, layer, version).join("filesystem");
            findings(&store, &args.from, Some((repository, layer)), &files, &manifest)?
        }
        (None, Some(root)) => {
            let manifest = tree::scan(root, TreeLimits::default()).map_err(|error| {
                Failure::new(format!("{}: {error}", root.display()))
                    .hint("name a directory that is there with --root")
            })?;
            findings(&store, &args.from, None, root, &manifest)?
        }
        (None, None) => return Err(Failure::new("neither a layer nor --root was given")),
    };
    match args.output.output {
        OutputFormat::Json => print_json(&Shown::of(&findings))?,
        OutputFormat::Text => print_text(&text(&findings))?,
    }
    Ok(if findings.missing.is_empty() { Outcome::Done } else { Outcome::Difference })
}

#[derive(Serialize)]
struct Shown {
    /// As metadata has it.
    depends: String,
    dependencies: Vec<ShownDependency>,
    missing: Vec<ShownReason>,
    unreadable: Vec<Unreadable>,
}

#[derive(Serialize)]
struct ShownDependency {
    dependency: String,
    #[serde(flatten)]
    reason: ShownReason,
}

#[derive(Serialize)]
struct ShownReason {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    library: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    symbol: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interpreter: Option<String>,
}

#[derive(Serialize)]
struct Unreadable {
    path: String,
    error: String,
}

impl ShownReason {
    fn of(reason: &Reason) -> Self {
        let path = reason.path.clone();
        match reason.need.clone() {
            infer::Need::Library { soname, symbol } => {
                ShownReason { path, library: Some(soname), symbol, interpreter: None }
            }
            infer::Need::Interpreter { path: interpreter } => {
                let interpreter = Some(interpreter);
                ShownReason { path, library: None, symbol: None, interpreter }
            }
        }
    }
}

impl Shown {
    fn of(findings: &Findings) -> Self {
        let shown = |inferred: &Inferred| ShownDependency {
            dependency: inferred.dependency.to_string(),
            reason: ShownReason::of(&inferred.reason),
        };
        let unreadable = findings.unreadable.iter();
        Shown {
            depends: print_list(&dependencies(findings)),
            dependencies: findings.dependencies.iter().map(shown).collect(),
            missing: findings.missing.iter().map(ShownReason::of).collect(),
            unreadable: unreadable
                .map(|(path, error)| Unreadable { path: path.clone(), error: error.to_string() })
                .collect(),
        }
    }
}

fn dependencies(findings: &Findings) -> Vec<Dependency> {
    findings.dependencies.iter().map(|inferred| inferred.dependency.clone()).collect()
}

/// What was found, as people read it.
fn text(findings: &Findings) -> String {
    let mut text = format!("Depends: {}\n", print_list(&dependencies(findings)));
    let wide = |inferred: &Inferred| inferred.dependency.to_string().len();
    let width = findings.dependencies.iter().map(wide).max().unwrap_or(0);
    for Inferred { dependency, reason } in &findings.dependencies {
        let dependency = dependency.to_string();
        text.push_str(&format!("  {dependency:<width$}  {} {}\n", reason.path, reason.need));
    }
    for Reason { path, need } in &findings.missing {
        text.push_str(&format!("missing: {path} {need}, which no layer here has\n"));
    }
    for (path, error) in &findings.unreadable {
        text.push_str(&format!("not looked at: {path}: {error}\n"));
    }
    text
}

/// Adds to `depends` what was found, or refuses with what is missing. `ignored` names
/// libraries and interpreters that may be missing.
pub fn add(
    depends: &mut Vec<Dependency>,
    findings: &Findings,
    ignored: &[String],
) -> Result<(), Failure> {
    for (path, error) in &findings.unreadable {
        tracing::warn!(%path, %error, "a program is not looked at for what it needs");
    }
    let name = |need: &infer::Need| match need {
        infer::Need::Library { soname, .. } => soname.clone(),
        infer::Need::Interpreter { path } => path.clone(),
    };
    let missing: Vec<_> =
        findings.missing.iter().filter(|reason| !ignored.contains(&name(&reason.need))).collect();
    if let Some(first) = missing.first() {
        let more = match missing.len() - 1 {
            0 => String::new(),
            more => format!(" (and {} like it)", quantity(more, "need")),
        };
        let message = format!("{} {}, which no layer here has{more}", first.path, first.need);
        return Err(Failure::new(message).hint(format!(
            "import the layer that has it; or allow it: --ignore-missing {}",
            name(&first.need)
        )));
    }
    infer::add_to(depends, &findings.dependencies);
    Ok(())
}
