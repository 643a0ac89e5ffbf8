//! `strata store stats` and `strata store dedup`.

use indicatif::HumanBytes;
use serde::Serialize;
use strata_core::RepositoryName;

use crate::cli::progress::with_bytes;
use crate::cli::{
    Failure, Outcome, OutputArgs, OutputFormat, StoreArgs, print_bytes, print_json, print_text,
    quantity,
};
use crate::repositories::sharing::{Progress, Stats, share_all, stats};

/// Show how much of the store is shared
///
/// Of each template, what its layers have, and how much of that other templates have as
/// well; of all layers, how much of their files is stored once.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  strata store stats --store /srv/strata")]
pub struct StatsArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Store identical files of layers once
///
/// New layers share as they are published; this is for those that were there before. A file
/// is shared when content, owner, mode, time and attributes are the same: by reflink
/// where the disk can, else as one more name of one file.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  strata store dedup --store /srv/strata")]
pub struct DedupArgs {
    /// Only of this repository
    #[arg(long, value_name = "REPOSITORY")]
    repo: Option<RepositoryName>,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
struct Deduplicated<'a> {
    files: u64,
    bytes: u64,
    unreadable: &'a [String],
}

pub fn run_stats(args: &StatsArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let progress = Progress::default();
    let stats =
        with_bytes(&progress.total_bytes, &progress.done_bytes, || stats(&store, &progress))?;
    match args.output.output {
        OutputFormat::Json => print_json(&stats)?,
        OutputFormat::Text => print_text(&text(&stats))?,
    }
    Ok(if stats.unreadable.is_empty() { Outcome::Done } else { Outcome::Difference })
}

fn text(stats: &Stats) -> String {
    let size = |bytes: u64| HumanBytes(bytes).to_string();
    let mut text = String::new();
    for repository in &stats.repositories {
        let (name, units) = (&repository.repository, quantity(repository.units, "unit"));
        text.push_str(&format!("{name:<24} {units:>12} {:>12}\n", size(repository.bytes)));
    }
    if !stats.templates.is_empty() {
        text.push_str(&format!(
            "\n{:<24} {:>12} {:>12} {:>12} {:>12}\n",
            "TEMPLATE", "LAYERS", "SIZE", "SHARED", "UNIQUE"
        ));
    }
    for template in &stats.templates {
        text.push_str(&format!(
            "{:<24} {:>12} {:>12} {:>12} {:>12}\n",
            template.template,
            template.layers,
            size(template.bytes),
            size(template.shared_bytes),
            size(template.unique_bytes)
        ));
    }
    let files = &stats.files;
    text.push_str(&format!(
        "\n{} of {}; {} in contents that differ; {} on the disk, {} stored with another unit's\n",
        quantity(files.files, "file"),
        size(files.bytes),
        size(files.distinct_bytes),
        size(files.disk_bytes),
        quantity(files.linked_files, "file"),
    ));
    for error in &stats.unreadable {
        text.push_str(&format!("unreadable: {error}\n"));
    }
    text
}

pub fn run_dedup(args: &DedupArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    if let Some(repository) = &args.repo {
        store.database(repository)?;
    }
    let progress = Progress::default();
    let (shared, unreadable) = with_bytes(&progress.total_bytes, &progress.done_bytes, || {
        share_all(&store, args.repo.as_ref(), &progress)
    })?;
    let (files, bytes) = (shared.files, shared.bytes);
    if args.output.output == OutputFormat::Json {
        print_json(&Deduplicated { files, bytes, unreadable: &unreadable })?;
    } else {
        let mut text = format!(
            "{} ({}) shared with other layers\n",
            quantity(files, "file"),
            HumanBytes(bytes)
        );
        text.extend(unreadable.iter().map(|error| format!("unreadable: {error}\n")));
        print_bytes(text.as_bytes())?;
    }
    Ok(if unreadable.is_empty() { Outcome::Done } else { Outcome::Difference })
}
