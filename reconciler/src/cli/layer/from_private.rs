//! `strata layer from-private`.

use std::path::PathBuf;

use strata_core::metadata::{LayerKind, Metadata};
use strata_core::names::{LayerName, RepositoryName};
use strata_core::status::RunState;
use strata_core::version::LayerVersion;
use strata_core::whiteouts::Whiteouts;
use strata_core::{GenerationId, VaName};
use strata_import::selection::{self, Selection};
use strata_import::tree::Selected;
use strata_import::{BuildError, TreeLimits};
use strata_machine::Machines;
use strata_store::{Store, StoreError, refuse_reserved};

use super::import::{Line, Status};
use crate::cli::va::{machine_failure, programs};
use crate::cli::{
    Failure, Outcome, OutputArgs, OutputFormat, StoreArgs, print_json, print_text, quantity,
};
use crate::drift::{DriftError, is_inside};
use crate::private_view::{PrivateView, PrivateViewError};

/// Make a layer of what a VA has changed
///
/// Takes the selected files of the VA's private layer as they are there, whether they
/// were added, changed or only got other attributes, and the directories above them. What
/// the VA removed becomes white-outs: they hide in all layers below. The VA must be
/// suspended or stopped; its private layer is only read, even that of a compromised VA.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  strata-vlfs diff /srv/strata/machines/web-03/private      # what there is\n  strata layer from-private web-03 --select '/etc/**' --repo main \\\n      --name web-tuning --version 1\n\nIn a pattern * and ? stand for anything but /, ** for any directories; a directory that\nmatches brings all that is changed in it. Look before you share: host keys, passwords\nand logs are taken as they are when a pattern matches them."
)]
pub struct FromPrivateArgs {
    /// The VA
    va: VaName,
    /// Which paths to take; may be given again
    #[arg(long, value_name = "GLOB", required = true)]
    select: Vec<Pattern>,
    /// The repository; made where it does not exist
    #[arg(long, value_name = "REPOSITORY")]
    repo: RepositoryName,
    /// The layer's name
    #[arg(long)]
    name: LayerName,
    /// Its version, [epoch:]upstream[-revision]
    #[arg(long)]
    version: LayerVersion,
    /// Software layers never share a path, and hide nothing
    #[arg(long, default_value = "configuration", value_parser = ["software", "configuration"])]
    kind: String,
    /// Leave out what the VA removed
    #[arg(long)]
    no_whiteouts: bool,
    /// One line that says what it is
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Compare with this generation [default: the one that the VA's link names]
    #[arg(long, value_name = "ID")]
    generation: Option<GenerationId>,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// A pattern for absolute paths.
#[derive(Debug, Clone)]
pub struct Pattern(glob::Pattern);

impl std::str::FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim_end_matches('/');
        if !text.starts_with('/') {
            return Err("a pattern is an absolute path, as in /etc/apache2/**".to_owned());
        }
        glob::Pattern::new(text).map(Pattern).map_err(|error| error.to_string())
    }
}

/// Whether a pattern matches the path (relative) or a directory above it.
pub fn matches(patterns: &[Pattern], path: &[u8]) -> bool {
    let text = format!("/{}", String::from_utf8_lossy(path));
    let options = glob::MatchOptions {
        case_sensitive: true,
        require_literal_separator: true,
        require_literal_leading_dot: false,
    };
    let ends = text.match_indices('/').map(|(at, _)| at).skip(1).chain([text.len()]);
    let above: Vec<&str> = ends.map(|end| &text[..end]).collect();
    patterns.iter().any(|pattern| above.iter().any(|text| pattern.0.matches_with(text, options)))
}

pub fn run(args: &FromPrivateArgs) -> Result<Outcome, Failure> {
    refuse_reserved(&args.repo)?;
    let kind: LayerKind = args.kind.parse().map_err(Failure::new)?;
    let store = args.store.open()?;
    let scratch = tempfile::tempdir().map_err(|error| {
        Failure::new(format!("a directory for the view: {error}")).hint("set TMPDIR")
    })?;
    let seen = view(&store, &args.va, args.generation, scratch.path())?;
    let chosen = |paths: &[Vec<u8>]| -> Vec<Vec<u8>> {
        paths.iter().filter(|path| matches(&args.select, path)).cloned().collect()
    };
    let (changed, deleted) = (chosen(&seen.changed), chosen(&seen.deleted));
    let with_whiteouts = kind == LayerKind::Configuration && !args.no_whiteouts;
    let hidden = Whiteouts::new(if with_whiteouts { deleted.clone() } else { Vec::new() });
    if changed.is_empty() && hidden.is_empty() {
        return Err(Failure::new(format!("no pattern matches what {} has changed", args.va)).hint(
            format!(
                "see what it has changed: strata-vlfs diff {}",
                private(&store, &args.va)?.display()
            ),
        ));
    }
    let selected: Vec<_> =
        changed.into_iter().map(|path| Selected { path, emptied: false }).collect();
    let description = args.description.clone();
    if description.as_ref().is_some_and(|text| text.chars().any(char::is_control)) {
        return Err(Failure::new("--description must be one line"));
    }
    let metadata =
        Metadata { description, ..Metadata::new(args.name.clone(), args.version.clone(), kind) };
    let selection =
        Selection { root: &seen.root, selected: &selected, hidden: &hidden, records: &[] };
    let limits = TreeLimits::default();
    let published =
        selection::publish(&store, &args.repo, metadata, &selection, limits, &mut |_, _| ());
    drop(seen);
    let (unit, missing) = published.map_err(|error| match error {
        BuildError::Store(StoreError::UnitDiffers { .. }) => {
            Failure::new(error).hint("raise --version; `strata layer list` prints what is there")
        }
        error => Failure::new(error),
    })?;
    if let Some(path) = missing.first() {
        let path = String::from_utf8_lossy(path).into_owned();
        tracing::warn!(%path, count = missing.len(), "paths were listed and are not there");
    }
    let line = Line::of(&args.repo, unit, Status::Built);
    match args.output.output {
        OutputFormat::Json => print_json(&line)?,
        OutputFormat::Text => print_text(&line.to_string())?,
    }
    line.tell_withdrawn();
    if !deleted.is_empty() && !with_whiteouts {
        eprintln!("note: {} not in it", quantity(deleted.len(), "removed path"));
    }
    Ok(Outcome::Done)
}

fn private(store: &Store, va: &VaName) -> Result<PathBuf, Failure> {
    let machines = Machines::open(store).map_err(machine_failure)?;
    let record = machines.record(va).map_err(machine_failure)?;
    if is_inside(&record) {
        return Err(DriftError::Inside(record.name).into());
    }
    Ok(record.private_in(&machines.directory(va)))
}

/// What a VA that does not run has changed against a generation, by default the one that
/// its link names.
///
/// # Errors
/// It runs, has no link, or was never started.
pub fn view(
    store: &Store,
    va: &VaName,
    generation: Option<GenerationId>,
    scratch: &std::path::Path,
) -> Result<PrivateView, Failure> {
    let machines = Machines::open(store).map_err(machine_failure)?;
    let record = machines.record(va).map_err(machine_failure)?;
    if machines.run_state(&record).map_err(machine_failure)? == RunState::Running {
        return Err(Failure::new(format!("{va} is running: its files would change meanwhile"))
            .hint(format!("suspend it first: strata va suspend {va}")));
    }
    let generation = match generation {
        Some(generation) => generation,
        None => store.desired(record.mac)?.ok_or_else(|| {
            Failure::new(format!("{va} has no link in the store"))
                .hint("name the generation: --generation ID")
        })?,
    };
    let vlfs = programs()?.vlfs;
    let private = private(store, va)?;
    PrivateView::open(&vlfs, store.root(), &private, generation, scratch).map_err(|error| {
        let none = matches!(&error, PrivateViewError::Program { what: "diff", .. });
        let failure = Failure::new(&error);
        if none {
            failure.hint("a VA that was never started has no private layer")
        } else {
            failure
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_brings_what_is_below_a_directory_that_it_matches() {
        let matched = |pattern: &str, path: &str| {
            matches(&[pattern.parse().expect("a pattern")], path.as_bytes())
        };
        for (pattern, path, wanted) in [
            ("/etc", "etc/apache2/a", true),
            ("/etc/", "etc", true),
            ("/etc/**", "etc/apache2/a", true),
            ("/etc/*", "etc/apache2/a", true),
            ("/etc/*.conf", "etc/a.conf", true),
            ("/etc/*.conf", "etc/apache2/a.conf", false),
            ("/**/*.conf", "etc/apache2/a.conf", true),
            ("/etc", "etcetera", false),
            ("/var", "etc/var", false),
        ] {
            assert_eq!(matched(pattern, path), wanted, "{pattern} {path}");
        }
        assert!("etc".parse::<Pattern>().is_err());
    }
}
