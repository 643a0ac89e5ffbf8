//! `strata plan`: what a commit would change, before it is merged.

pub(super) mod render;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use git2::Oid;
use serde::Serialize;
use strata_core::Diagnostic;
use strata_core::preview::{Preview, Side, preview};
use strata_core::source::SourceTree;

use super::inventory::ProductionArgs;
use super::{Failure, Outcome, print_json, print_text};
use crate::directory::read_directory;
use crate::production::Production;
use crate::revision::{Revision, RevisionError, WorkRepository};

/// The version of the JSON form.
const VERSION: u32 = 1;

/// Show what a commit would change: layers, files, scripts, and how many VAs
///
/// Compares a base with a head. Nothing is written and no VA is asked.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata plan .                                     what my edits change
  strata plan . --base origin/main --head HEAD      what this branch brings
  strata plan . --base origin/main --head HEAD --inventory inventory.json.zst --output markdown

Without --head, the directory is compared as it stands, committed or not; without
--base, with HEAD, or with the head's first parent. Where the base went on since the head left it,
the commit where they parted is compared. The limits are the base's, or the head's where they are tighter.

Exit status: 0 the head can be taken, 1 it has errors or touches more VAs than strata.toml
allows (with --exit-code: or it changes anything), 2 an error.")]
pub struct PlanArgs {
    /// The git repository with strata.toml at its root.
    #[arg(value_name = "DIR", default_value = ".")]
    directory: PathBuf,
    /// The revision to compare with.
    #[arg(long, value_name = "REV")]
    base: Option<String>,
    /// The revision to look at.
    #[arg(long, value_name = "REV")]
    head: Option<String>,
    #[command(flatten)]
    production: ProductionArgs,
    /// Exit with 1 also when there is any change.
    #[arg(long)]
    exit_code: bool,
    /// How to print.
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    output: PlanFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PlanFormat {
    Text,
    Json,
    /// For a comment on a pull request.
    Markdown,
}

/// Specified in `docs/formats.md`, "Plan".
#[derive(Debug, Serialize)]
pub(super) struct Report {
    version: u32,
    base: Revision,
    head: Revision,
    /// When the inventory was exported; `None` where the store was read.
    inventory_exported_at_ms: Option<u64>,
    #[serde(flatten)]
    preview: Preview,
}

impl Report {
    fn can_be_taken(&self) -> bool {
        self.preview.accepted && self.preview.blast_radius.within_limits
    }
}

/// # Errors
/// A revision, the store or the inventory cannot be read.
pub fn run(args: &PlanArgs) -> Result<Outcome, Failure> {
    let production = args.production.open_required()?;
    let trees = read_trees(args)?;
    let report = compare(trees, &production)?;
    match args.output {
        PlanFormat::Json => print_json(&report)?,
        PlanFormat::Text => print_text(&render::text(&report))?,
        PlanFormat::Markdown => print_text(&render::markdown(&report))?,
    }
    let quiet = !args.exit_code || report.preview.is_empty();
    Ok(if report.can_be_taken() && quiet { Outcome::Done } else { Outcome::Difference })
}

/// Both sides as they were read, with what they are called.
struct Trees {
    base: (Revision, SourceTree),
    head: (Revision, SourceTree),
    /// Files of the directory that cannot be read.
    unreadable: Vec<Diagnostic>,
}

fn read_trees(args: &PlanArgs) -> Result<Trees, Failure> {
    let repository = WorkRepository::open(&args.directory)?;
    let named = |revision: &str, commit: Oid| Revision {
        revision: revision.to_owned(),
        commit: Some(commit.to_string()),
    };
    let nothing =
        || (Revision { revision: "nothing".to_owned(), commit: None }, SourceTree::default());
    let (head, head_commit, unreadable) = match &args.head {
        Some(revision) => {
            let commit = repository.resolve(revision)?;
            ((named(revision, commit), repository.read(commit)?), Some(commit), Vec::new())
        }
        None => {
            let (tree, unreadable) = read_directory(&args.directory)?;
            let revision = "the directory as it stands".to_owned();
            ((Revision { revision, commit: None }, tree), None, unreadable)
        }
    };
    let base = match (&args.base, head_commit) {
        (Some(revision), _) => {
            let commit = repository.resolve(revision)?;
            let head = head_commit.map_or_else(|| repository.resolve("HEAD"), Ok)?;
            let commit = repository.merge_base(commit, head)?;
            (named(revision, commit), repository.read(commit)?)
        }
        (None, Some(head)) => match repository.parent(head)? {
            Some(parent) => (named("the first parent", parent), repository.read(parent)?),
            None => nothing(),
        },
        (None, None) => match repository.resolve("HEAD") {
            Ok(commit) => (named("HEAD", commit), repository.read(commit)?),
            Err(RevisionError::Unknown(_)) => nothing(),
            Err(error) => return Err(error.into()),
        },
    };
    Ok(Trees { base, head, unreadable })
}

fn compare(trees: Trees, production: &Production) -> Result<Report, Failure> {
    let units = production.units();
    let (base, base_universe) = production.check(&trees.base.1, &*units, Vec::new());
    let (head, head_universe) = production.check(&trees.head.1, &*units, trees.unreadable);
    let base = Side { checked: &base, universe: &base_universe };
    let head = Side { checked: &head, universe: &head_universe };
    Ok(Report {
        version: VERSION,
        base: trees.base.0,
        head: trees.head.0,
        inventory_exported_at_ms: production.exported_at_ms(),
        preview: preview(base, head, &*units, &production.va_groups()?),
    })
}

impl From<RevisionError> for Failure {
    fn from(error: RevisionError) -> Self {
        let hint = match &error {
            RevisionError::NoRepository(_) => Some("name the root of the GitOps repository"),
            RevisionError::Unknown(_) => {
                Some("fetch it first (a shallow clone may lack it): git fetch --unshallow origin")
            }
            RevisionError::Committer(_) => {
                Some("git config user.name NAME && git config user.email ADDRESS")
            }
            RevisionError::Bare(_) => Some("name a clone of it that has a work tree"),
            RevisionError::NoCommit(_) => Some("make the first commit with git"),
            RevisionError::Unfinished(_) => Some("finish or abort it: git status"),
            RevisionError::Signing => Some(
                "have the files written only (without --commit, with --no-commit), and commit with git",
            ),
            RevisionError::Git(_) | RevisionError::Read { .. } => None,
        };
        let failure = Failure::new(&error);
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}
