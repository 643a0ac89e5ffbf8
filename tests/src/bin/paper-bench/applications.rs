//! Figure 7: Postmark, a C build and a web server, on the layers of the five appliances
//! (§6.4).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use strata_tests::commands::timed;
use strata_tests::goals::{Goals, Limit, median};
use strata_tests::workloads;

use crate::Arguments;
use crate::appliances::{APPLIANCES, Archive, TOOL};
use crate::document::bars;
use crate::http::{self, Server};
use crate::site::{Site, Template};
use crate::systems::{Kind, Systems, inside};

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Size {
    rounds: usize,
    files: usize,
    transactions: usize,
    whole_project: bool,
    requests: usize,
}

const FULL: Size =
    Size { rounds: 5, files: 20_000, transactions: 200_000, whole_project: true, requests: 5_000 };
const QUICK: Size =
    Size { rounds: 3, files: 2_000, transactions: 20_000, whole_project: false, requests: 1_000 };

/// Where Postmark's files are declared as data.
const QUEUE: &str = "/var/spool/queue";
const COMPILER: [&str; 3] = ["gcc", "libc6-dev", "make"];

/// What a part runs, and what its templates have for it.
struct Part {
    key: &'static str,
    packages: &'static [&'static str],
    data: Option<&'static str>,
    /// Measures all systems in turn.
    measure: fn(&Arguments, Size, &Systems) -> Result<Measured>,
    /// What the median of Strata's ratios to ext4 must be.
    goals: &'static [(Kind, Limit)],
    unit: &'static str,
    told: &'static str,
    /// Where the time goes, told when a goal is missed.
    missed: &'static str,
}

/// Ratios to plain ext4, round by round, and what plain ext4 had.
#[derive(Default)]
struct Measured {
    ratios: BTreeMap<Kind, Vec<f64>>,
    native: Vec<f64>,
}

static PARTS: [Part; 3] = [
    Part {
        key: "postmark",
        packages: &[],
        data: Some(QUEUE),
        measure: postmark,
        goals: &[(Kind::Strata, Limit::AtMost(2.0)), (Kind::Data, Limit::AtMost(1.02))],
        unit: "s",
        told: "Times, as multiples of plain ext4's in the same round. Postmark as in the paper: files of 512 bytes to 10 KB.",
        missed: "Every create, lookup and removal on the union is a request to a daemon in user space: [speed.md](speed.md) has where the \
                 time goes.",
    },
    Part {
        key: "build",
        packages: &COMPILER,
        data: None,
        measure: build,
        goals: &[(Kind::Strata, Limit::AtMost(1.02))],
        unit: "s",
        told: "Times, as multiples of plain ext4's in the same round. `make -j2` of libgit2 and zlib with the compiler of the appliance's \
               own layers, which were added to each, in the appliance's root.",
        missed: "Each file that is opened, of the compiler and each header, is a request to the daemon ([speed.md](speed.md), The C build).",
    },
    Part {
        key: "http",
        packages: &http::PACKAGES,
        data: Some(http::DATA),
        measure: serve,
        goals: &[(Kind::Strata, Limit::AtLeast(0.98))],
        unit: "requests/s",
        told: "Requests a second, as multiples of plain ext4's in the same round. ApacheBench, two at a time, on Apache with PHP and its cache of compiled scripts in the \
               appliance's root, whose layers were added to each: every request makes one of 20 searches in the full-text index of 10,000 rows in MariaDB, \
               whose directory is declared as data (§6.4).",
        missed: "A page is cheap here, about a millisecond for two at a time on ext4, so that a few requests to the daemon for each page show.",
    },
];

/// Measures the parts that are wanted, and writes their sections.
pub fn measure(arguments: &Arguments, work: &Path, goals: &mut Goals) -> Result<()> {
    let size = if arguments.quick { QUICK } else { FULL };
    let parts: Vec<&Part> = PARTS.iter().filter(|part| arguments.wants(part.key)).collect();
    if parts.is_empty() {
        return Ok(());
    }
    goals.progress("packages");
    let archive = Archive::read(&arguments.packages)?;
    let mut templates = Vec::new();
    for part in &parts {
        templates.extend(APPLIANCES.iter().map(|appliance| {
            // Apache's template has Apache already.
            let packages: BTreeSet<_> =
                [TOOL, appliance.package].iter().chain(part.packages).copied().collect();
            Template {
                name: template_name(part, appliance.name),
                packages: packages.into_iter().collect(),
                data: part.data,
            }
        }));
    }
    let goals_of: Vec<_> = templates.iter().map(|template| template.packages.clone()).collect();
    let files = archive.files(&goals_of)?;
    goals.progress(&format!("a store of {} layers", files.len()));
    let work = work.join("applications");
    fs::create_dir(&work)?;
    let mut site = Site::make(&arguments.strata, &work, &files, templates)?;
    for part in parts {
        let from = goals.goals().len();
        let text = measure_part(part, arguments, size, &mut site, &work, goals)
            .with_context(|| part.key)?;
        arguments.write(part.key, &text, &goals.goals()[from..])?;
    }
    Ok(())
}

fn template_name(part: &Part, appliance: &str) -> String {
    format!("{appliance}-{}", part.key)
}

fn measure_part(
    part: &Part,
    arguments: &Arguments,
    size: Size,
    site: &mut Site,
    work: &Path,
    goals: &mut Goals,
) -> Result<String> {
    let from = goals.goals().len();
    let mut rows = String::new();
    let mut plot = Vec::new();
    for appliance in &APPLIANCES {
        let name = appliance.name;
        goals.progress(&format!("{}: {name}", part.key));
        let systems = Systems::make(site, &template_name(part, name), &work.join("systems"))?;
        let measured = (part.measure)(arguments, size, &systems).with_context(|| name)?;
        let ratio = |kind: Kind| measured.ratios.get(&kind).map(|ratios| median(ratios));
        let shown =
            |kind: Kind| ratio(kind).map_or("–".to_owned(), |ratio| format!("{ratio:.2}"));
        rows.push_str(&format!(
            "| {name} | {} | {:.2} {} | {} | {} | {} |\n",
            systems.layers,
            median(&measured.native),
            part.unit,
            shown(Kind::Overlay),
            shown(Kind::Strata),
            shown(Kind::Data)
        ));
        for kind in [Kind::Overlay, Kind::Strata, Kind::Data] {
            plot.extend(ratio(kind).map(|ratio| (format!("{name} {}", kind.name()), ratio)));
        }
        for (kind, limit) in part.goals {
            if let Some(value) = ratio(*kind) {
                let goal =
                    format!("{}, {name}, {} layers, {}", part.key, systems.layers, kind.name());
                goals.goal(&goal, value, *limit, "× ext4");
            }
        }
        systems.end(site)?;
    }
    let holds = goals.goals()[from..].iter().all(|goal| goal["holds"] == true);
    let missed = match holds {
        true => String::new(),
        false => format!("{}\n", part.missed),
    };
    Ok(format!(
        "{} Medians of {} rounds. More than 500 layers overlayfs does not take.\n\n| | layers | ext4 | overlayfs | Strata | Strata, data directory |\n\
         |---|---|---|---|---|---|\n{rows}\n{}\n{missed}",
        part.told,
        size.rounds,
        bars(&plot, "× ext4")
    ))
}

/// Takes a value of each system in every round. The first has plain ext4's.
fn in_turn(
    rounds: usize,
    places: &[(Kind, PathBuf)],
    mut value: impl FnMut(usize, usize, &Path) -> Result<f64>,
) -> Result<Measured> {
    let mut measured = Measured::default();
    for round in 0..rounds {
        let mut native = f64::NAN;
        for (number, (kind, root)) in places.iter().enumerate() {
            let value = value(round, number, root).with_context(|| kind.name())?;
            if *kind == Kind::Native {
                native = value;
                measured.native.push(value);
            } else {
                measured.ratios.entry(*kind).or_default().push(value / native);
            }
        }
    }
    Ok(measured)
}

fn postmark(_: &Arguments, size: Size, systems: &Systems) -> Result<Measured> {
    let mut places = systems.roots();
    let data = places.iter().find(|(kind, _)| *kind == Kind::Strata);
    let data = data.map(|(_, root)| root.join(QUEUE.trim_start_matches('/')));
    places.extend(data.map(|directory| (Kind::Data, directory)));
    in_turn(size.rounds, &places, |round, _, root| {
        let directory = root.join(format!("postmark-{round}"));
        workloads::postmark(&directory, size.files, size.transactions)
    })
}

fn build(arguments: &Arguments, size: Size, systems: &Systems) -> Result<Measured> {
    let places = systems.roots();
    for (_, root) in &places {
        arguments.sources.project(&root.join("project"))?;
    }
    let target = if size.whole_project { "whole.a" } else { "part.a" };
    let make = |root: &Path, arguments: &[&str]| {
        let program = ["make", "-s", "-j2", "-C", "/project", "CC=gcc"];
        let program: Vec<_> = program.iter().chain(arguments).map(OsStr::new).collect();
        timed(&mut inside(root, &program))
    };
    in_turn(size.rounds, &places, |_, _, root| {
        let seconds = make(root, &[target])?;
        make(root, &["clean"])?;
        Ok(seconds)
    })
}

fn serve(_: &Arguments, size: Size, systems: &Systems) -> Result<Measured> {
    let places = systems.roots();
    let mut servers = Vec::new();
    for (kind, root) in &places {
        let server = Server::start(root).with_context(|| kind.name())?;
        // What is read once is in memory then.
        server.load(size.requests / 4)?;
        servers.push(server);
    }
    in_turn(size.rounds, &places, |_, number, _| servers[number].load(size.requests))
}
