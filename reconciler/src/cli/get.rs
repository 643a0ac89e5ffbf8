//! `strata get`: the things of a store, one kind at a time.

mod kinds;

use clap::{Args, ValueEnum};
use serde::Serialize;
use strata_core::{CompositionName, RingName};

use super::view::{FormatArgs, Table, View, WatchArgs};
use super::{Failure, Outcome, StoreArgs, known};

/// The version of the JSON form.
const VERSION: u32 = 1;

/// List templates, rings, VAs, generations, layers, repositories or pins
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata get templates
  strata get vas --template web-server --output wide
  strata get layers libssl3 --output json | jq -r '.items[].version'
  strata get rings --watch

Everything is read from the store; no daemon is asked. How VAs do and why: strata status.")]
pub struct GetArgs {
    /// What to list.
    #[arg(value_enum)]
    kind: Kind,
    /// Only those with one of these names (of generations and pins: what an id or address begins with).
    names: Vec<String>,
    /// Only of this template (templates, rings, vas, generations, pins).
    #[arg(long, value_name = "NAME")]
    template: Option<CompositionName>,
    /// Only of this ring (rings, vas, pins).
    #[arg(long, value_name = "NAME")]
    ring: Option<RingName>,
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    format: FormatArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    #[value(alias = "template")]
    Templates,
    #[value(alias = "ring")]
    Rings,
    #[value(alias = "va")]
    Vas,
    #[value(alias = "generation")]
    Generations,
    #[value(alias = "layer")]
    Layers,
    #[value(aliases = ["repository", "repos", "repo"])]
    Repositories,
    #[value(alias = "pin")]
    Pins,
}

impl Kind {
    /// Whether it is of a template, and of a ring.
    fn is_of(self) -> (bool, bool) {
        match self {
            Kind::Rings | Kind::Vas | Kind::Pins => (true, true),
            Kind::Templates | Kind::Generations => (true, false),
            Kind::Layers | Kind::Repositories => (false, false),
        }
    }
}

/// What is listed, chosen by names and flags.
struct Wanted<'a> {
    names: &'a [String],
    template: Option<&'a CompositionName>,
    ring: Option<&'a RingName>,
}

impl Wanted<'_> {
    fn name(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|wanted| wanted == name)
    }

    fn prefix(&self, id: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|wanted| id.starts_with(wanted.as_str()))
    }

    fn template(&self, template: &CompositionName) -> bool {
        self.template.is_none_or(|wanted| wanted == template)
    }

    fn ring(&self, ring: Option<&RingName>) -> bool {
        self.ring.is_none_or(|wanted| ring == Some(wanted))
    }
}

/// Specified in `docs/schemas/get-1.json`.
#[derive(Serialize)]
struct Report<I> {
    version: u32,
    kind: &'static str,
    items: Vec<I>,
}

/// Something that is listed.
trait Item: Serialize {
    const KIND: &'static str;
    const NARROW: &'static [&'static str];
    const WIDE: &'static [&'static str];

    /// A cell for each heading, narrow ones first.
    fn cells(&self) -> Vec<String>;
}

impl<I: Item> View for Report<I> {
    fn table(&self) -> Table {
        let mut table = Table::new(I::NARROW, I::WIDE);
        self.items.iter().for_each(|item| table.row(item.cells()));
        table
    }

    fn nothing(&self) -> &'static str {
        "none"
    }
}

/// # Errors
/// The store cannot be read, or knows no such template or ring.
pub fn run(args: &GetArgs) -> Result<Outcome, Failure> {
    match args.kind {
        Kind::Templates => show(args, kinds::templates),
        Kind::Rings => show(args, kinds::rings),
        Kind::Vas => show(args, kinds::vas),
        Kind::Generations => show(args, kinds::generations),
        Kind::Layers => show(args, kinds::layers),
        Kind::Repositories => show(args, kinds::repositories),
        Kind::Pins => show(args, kinds::pins),
    }
}

fn show<I: Item>(
    args: &GetArgs,
    list: impl Fn(&strata_store::Store, &Wanted<'_>) -> Result<Vec<I>, Failure>,
) -> Result<Outcome, Failure> {
    let (of_template, of_ring) = args.kind.is_of();
    for (flag, given, chooses) in [
        ("--template", args.template.is_some(), of_template),
        ("--ring", args.ring.is_some(), of_ring),
    ] {
        if given && !chooses {
            let message = format!("{} belong to no {}", I::KIND, &flag[2..]);
            return Err(
                Failure::new(message).hint(format!("leave {flag} out, or name some of them"))
            );
        }
    }
    let store = args.store.open()?;
    let (template, ring) = (args.template.as_ref(), args.ring.as_ref());
    known::template_if_named(&store, template)?;
    known::ring_if_named(&store, ring)?;
    let wanted = Wanted { names: &args.names, template, ring };
    args.format.show(&args.watch, || {
        let items = list(&store, &wanted)?;
        // A name that was asked for and is not there is no good answer.
        let missing = items.is_empty() && !args.names.is_empty();
        let outcome = if missing { Outcome::Difference } else { Outcome::Done };
        Ok((Report { version: VERSION, kind: I::KIND, items }, outcome))
    })
}
