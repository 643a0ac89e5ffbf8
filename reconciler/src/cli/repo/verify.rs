//! `strata repo verify`.

use std::hash::{BuildHasher as _, Hasher as _};
use std::num::NonZeroUsize;
use std::str::FromStr;

use indicatif::HumanBytes;
use strata_core::names::RepositoryName;

use crate::cli::progress::with_bytes;
use crate::cli::{
    Failure, Outcome, OutputArgs, OutputFormat, StoreArgs, print_json, print_text, quantity,
};
use crate::repositories::verify::{Options, Outcome as Verified, Progress, Sample, verify};

/// Check every bit of a repository against its digests
///
/// The database, each unit's metadata, manifest and scripts, and type, mode, owner,
/// size, time, target, device, attributes and content of every file. Nothing is
/// written.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  strata repo verify main\n  strata repo verify main --sample 5% --seed 7\n  strata repo verify main --sample 100 --output json\n\nExit status: 0 no difference, 1 differences, 2 an error."
)]
pub struct VerifyArgs {
    /// The repository
    #[arg(value_name = "REPOSITORY")]
    repository: RepositoryName,
    /// Check some units only: a share such as `5%`, or a number of units
    #[arg(long, value_name = "SHARE|COUNT")]
    sample: Option<SampleArgument>,
    /// Picks the same sample again [default: another one each time]
    #[arg(long, requires = "sample")]
    seed: Option<u64>,
    /// Units that are read at once [default: one a processor]
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Clone, Copy)]
struct SampleArgument(Sample);

impl FromStr for SampleArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || "write a share such as 5% or a number of units such as 100".to_owned();
        let Some(share) = text.strip_suffix('%') else {
            return text
                .parse()
                .map(|count| SampleArgument(Sample::Count(count)))
                .map_err(|_| error());
        };
        let percent: f64 = share.parse().map_err(|_| error())?;
        match percent > 0.0 && percent <= 100.0 {
            true => Ok(SampleArgument(Sample::Percent(percent))),
            false => Err("a share is above 0 % and at most 100 %".to_owned()),
        }
    }
}

pub fn run(args: &VerifyArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let options = Options {
        sample: args.sample.map_or(Sample::All, |sample| sample.0),
        seed: args.seed.unwrap_or_else(any_seed),
        threads: args.jobs.unwrap_or(threads).get(),
    };
    let progress = Progress::default();
    let verified = with_bytes(&progress.total_bytes, &progress.done_bytes, || {
        verify(&store, &args.repository, &options, &progress)
    })?;
    match args.output.output {
        OutputFormat::Json => print_json(&verified)?,
        OutputFormat::Text => print_text(&text(&verified))?,
    }
    Ok(if verified.differences.is_empty() { Outcome::Done } else { Outcome::Difference })
}

fn any_seed() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}

fn text(verified: &Verified) -> String {
    let mut text = String::new();
    for difference in &verified.differences {
        let path = difference.path.as_ref().map(|path| format!(": /{path}")).unwrap_or_default();
        for fault in &difference.faults {
            text.push_str(&format!("{}{path}: {fault}\n", difference.unit));
        }
    }
    if verified.omitted > 0 {
        text.push_str(&format!("and {}\n", quantity(verified.omitted, "more difference")));
    }
    let checked = match verified.seed {
        Some(seed) => format!(
            "{} of {} (seed {seed})",
            verified.checked_units,
            quantity(verified.units, "unit")
        ),
        None => quantity(verified.units, "unit"),
    };
    let found = match verified.differences.len() + verified.omitted {
        0 => "no difference".to_owned(),
        count => quantity(count, "difference"),
    };
    let size = HumanBytes(verified.checked_bytes);
    let paths = quantity(verified.checked_paths, "path");
    text + &format!("{}: {checked}, {paths}, {size}: {found}\n", verified.repository)
}
