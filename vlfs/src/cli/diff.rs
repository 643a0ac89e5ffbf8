//! `strata-vlfs diff`: what a private layer holds, against what, printed.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use strata_core::GenerationId;
use strata_store::Store;
use strata_vlfs::diff::{self, Change, Difference, Options, originals::Originals, shown};

use super::mount::Layers;
use super::query::{ask_status, print, print_json};
use super::{DIFFERENT, FAILED, Output, hinted};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata-vlfs diff /mnt
  strata-vlfs diff /srv/strata/machines/web-03/private        # of a VA that is stopped
  strata-vlfs diff --store /srv/strata --content /rescue/private

A added, M modified, a attributes alone, D deleted, R reverted (as the original again but for the
time), O orphaned (a copy whose layer the generation no longer has) [the layer unit].
Alone, a private directory is taken at its word; with --store or layers, at the manifests'.
Exit status: 0 no difference, 1 differences, 2 an error, also where something was not walked: the
rest is listed, and that is named.")]
pub struct Diff {
    /// A mount point, or a private directory alone, another machine's too.
    path: PathBuf,
    /// Compare with the layers of the generation: the mount's, else the one that
    /// the link of the directory's owner names.
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Compare with this generation of the store.
    #[arg(long, value_name = "ID", requires = "store")]
    generation: Option<GenerationId>,
    #[command(flatten)]
    layers: Layers,
    /// Show how texts differ, as unified diffs.
    #[arg(long)]
    content: bool,
    /// List the files of data directories too, as added; those no longer declared as well.
    #[arg(long)]
    data: bool,
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

/// What is looked at.
struct Subject {
    private: PathBuf,
    generation: Option<GenerationId>,
    /// Of a mount, its layers, when they are plain directories.
    directories: Vec<PathBuf>,
    /// Of a VA's mount, the store that it follows.
    store: Option<PathBuf>,
}

impl Diff {
    pub fn run(&self) -> anyhow::Result<u8> {
        let subject = subject(&self.path)?;
        let originals = self.originals(&subject)?;
        let (content, data) = (self.content, self.data);
        let options = Options { originals: originals.as_ref(), content, data };
        let differences = diff::diff(&subject.private, &options)?;
        match self.output {
            Output::Json => print_json(&differences.listed)?,
            Output::Text => {
                print(&differences.listed.iter().map(line).collect::<String>())?;
            }
        }
        if differences.omitted > 0 {
            eprintln!("warning: {} more differences are not listed", differences.omitted);
        }
        for place in &differences.not_walked {
            eprintln!("error: {} was not walked: {}", place.path, place.why);
        }
        let more = differences.not_walked_count - differences.not_walked.len();
        if more > 0 {
            eprintln!("error: so were {more} more places");
        }
        Ok(match (differences.not_walked_count, differences.listed.is_empty()) {
            (0, true) => 0,
            (0, false) => DIFFERENT,
            _ => FAILED,
        })
    }

    fn originals(&self, subject: &Subject) -> anyhow::Result<Option<Originals>> {
        let directories = self.layers.directories()?;
        if !directories.is_empty() {
            return Ok(Some(Originals::of_directories(&directories)?));
        }
        // Contents are those of the layers: a mount says where they are.
        let served = subject.store.as_ref().filter(|_| self.content);
        let Some(store) = self.store.as_ref().or(served) else {
            let plain = self.content && !subject.directories.is_empty();
            return Ok(if plain {
                Some(Originals::of_directories(&subject.directories)?)
            } else {
                None
            });
        };
        let store = Store::open(store)
            .map_err(|error| hinted(error.to_string(), "give --store DIR as this host sees it"))?;
        let id = match self.generation.or(subject.generation) {
            Some(id) => id,
            None => desired(&store, &subject.private)?,
        };
        Ok(Some(Originals::of_generation(&store, &id)?))
    }
}

/// The generation that the link of a private directory's owner names.
fn desired(store: &Store, private: &Path) -> anyhow::Result<GenerationId> {
    let owner = strata_store::read_limited(&private.join("owner"), 256)?;
    let owner = shown(String::from_utf8_lossy(&owner).trim_end());
    let unknown = |what: String| {
        hinted(what, "name the generation: --generation ID; `ls STORE/generations` lists them")
    };
    let mac = owner
        .parse()
        .map_err(|_| unknown(format!("the owner {owner:?} of {} is no VA", private.display())))?;
    store.desired(mac)?.ok_or_else(|| unknown(format!("the store has no link for {mac}")))
}

fn subject(path: &Path) -> anyhow::Result<Subject> {
    if path.join("format").is_file() && path.join("upper").is_dir() {
        return Ok(Subject {
            private: path.to_owned(),
            generation: None,
            directories: vec![],
            store: None,
        });
    }
    let status = ask_status(path).map_err(|error| {
        hinted(
            format!("{}: {}", path.display(), strata_vlfs::daemon::told(&error)),
            "give a mount point or a private directory",
        )
    })?;
    let generation = status.generation.as_deref().map(str::parse).transpose()?;
    let plain = status.layers.iter().filter(|layer| layer.digest.is_none());
    let directories = plain.map(|layer| PathBuf::from(&layer.name)).collect();
    Ok(Subject { private: status.private, generation, directories, store: status.store })
}

fn line(found: &Difference) -> String {
    let sign = match found.change {
        Change::Added => 'A',
        Change::Modified => 'M',
        Change::Attributes => 'a',
        Change::Deleted => 'D',
        Change::Reverted => 'R',
        Change::Orphaned => 'O',
    };
    let mut line = format!("{sign} {}", shown(&found.path));
    if let Some(from) = &found.moved_from {
        let _infallible = write!(line, " (was {})", shown(from));
    }
    if let Some(unit) = &found.obscures {
        let _infallible = write!(line, " (hides that of {})", shown(unit));
    }
    if let Some(unit) = &found.unit {
        let _infallible = write!(line, " [{}]", shown(unit));
    }
    line.push('\n');
    for text in found.content.iter().flat_map(|content| content.split_inclusive('\n')) {
        let (text, end) = match text.strip_suffix('\n') {
            Some(text) => (text, "\n"),
            None => (text, "\n\\ no newline at the end\n"),
        };
        // Tabs are harmless, everything else that a terminal obeys is not.
        let safe: Vec<_> = text.split('\t').map(shown).collect();
        let _infallible = write!(line, "{}{end}", safe.join("\t"));
    }
    line
}
