//! A plan for people: as text for a terminal, as markdown for a comment.
//!
//! Names out of layers are anybody's. In text, control characters are written as
//! escapes; in markdown, they stand in code spans that nothing in them can end.

use std::fmt::Write as _;

use indicatif::HumanBytes;
use strata_core::inventory::VaGroup;
use strata_core::preview::{
    ApplianceChange, CheckChange, CompositionPreview, Existence, HealthChange, LayerChange,
    LayerChangeKind, Place, Preview, Role, SettingChange,
};
use strata_core::printable::printable;

use super::Report;
use crate::cli::quantity;
use crate::revision::Revision;

/// Paths, scripts and diagnostics that are named in a list.
const NAMED: usize = 20;
/// Compositions that a comment shows in full.
const SHOWN: usize = 40;
/// Forges take comments of 65,536 characters.
const COMMENT_BYTES: usize = 60_000;
/// By this line a pipeline finds the comment that it made before.
const MARKER: &str = "<!-- strata plan -->";

/// How names of unknown origin are written.
#[derive(Clone, Copy)]
enum Style {
    Text,
    Markdown,
}

impl Style {
    fn name(self, name: &str) -> String {
        let plain = printable(name);
        match self {
            Style::Text => plain.into_owned(),
            Style::Markdown => code_span(&plain),
        }
    }
}

/// A code span: its fence is longer than any run of backticks in it.
fn code_span(text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest + 1);
    let pad = if text.starts_with('`') || text.ends_with('`') { " " } else { "" };
    format!("{fence}{pad}{text}{pad}{fence}")
}

fn symbol(change: LayerChangeKind) -> char {
    match change {
        LayerChangeKind::Added => '+',
        LayerChangeKind::Removed => '-',
        LayerChangeKind::Upgraded => '↑',
        LayerChangeKind::Downgraded => '↓',
        LayerChangeKind::Replaced | LayerChangeKind::Edited => '~',
    }
}

fn layer_line(layer: &LayerChange, style: Style) -> String {
    let (mark, from, to) = (symbol(layer.change), layer.from.as_deref(), layer.to.as_deref());
    match (from, to) {
        (Some(from), Some(to)) => {
            let version = to.rsplit_once(' ').filter(|(name, _)| from.starts_with(name));
            let to = version.map_or(to, |(_, version)| version);
            format!("{mark} {} → {}", style.name(from), style.name(to))
        }
        (from, to) => format!("{mark} {}", style.name(from.or(to).unwrap_or_default())),
    }
}

/// `2 upgraded, 1 added`.
fn layer_counts(layers: &[LayerChange]) -> String {
    let kinds = [
        (LayerChangeKind::Upgraded, "upgraded"),
        (LayerChangeKind::Downgraded, "downgraded"),
        (LayerChangeKind::Added, "added"),
        (LayerChangeKind::Removed, "removed"),
        (LayerChangeKind::Replaced, "replaced"),
        (LayerChangeKind::Edited, "edited"),
    ];
    let count = |kind| layers.iter().filter(|layer| layer.change == kind).count();
    let parts: Vec<_> = kinds
        .iter()
        .filter(|(kind, _)| count(*kind) > 0)
        .map(|(kind, word)| format!("{} {word}", count(*kind)))
        .collect();
    if parts.is_empty() { "no layer".to_owned() } else { parts.join(", ") }
}

fn title(composition: &CompositionPreview) -> String {
    let directory = match composition.role {
        Role::Template => "templates",
        Role::Appliance => "appliances",
    };
    format!("{directory}/{}", composition.composition)
}

/// `412 running, 88 suspended`, as one ring has them.
fn vas(groups: &[VaGroup]) -> String {
    let group = |group: &VaGroup| {
        let state = group.run_state.map_or_else(|| "elsewhere".to_owned(), |s| s.to_string());
        let ring = group.ring.as_ref().map(|ring| format!(" in {ring}")).unwrap_or_default();
        format!("{} {state}{ring}", group.count)
    };
    if groups.is_empty() {
        return "none".to_owned();
    }
    groups.iter().map(group).collect::<Vec<_>>().join(", ")
}

/// What is to say of a composition below its title: a heading and its entries.
fn sections(composition: &CompositionPreview, style: Style) -> Vec<(String, Vec<String>)> {
    let name = |text: &str| style.name(text);
    let paths = &composition.paths;
    let mut sections = Vec::new();
    let mut section = |heading: String, entries: Vec<String>| {
        if !entries.is_empty() {
            sections.push((heading, entries));
        }
    };
    let layers = composition.layers.iter().map(|layer| layer_line(layer, style));
    section(format!("layers: {}", layer_counts(&composition.layers)), layers.collect());
    let held = composition.held.iter().map(|held| {
        let place = format!("{}:{}", held.file, held.line);
        format!(
            "= {} ({} is there), {}",
            name(&format!("{} {}", held.layer, held.version)),
            name(&held.newest.to_string()),
            name(&place)
        )
    });
    section("held back".to_owned(), held.collect());
    let appear = paths.appear.iter().map(|file| ('+', file));
    let changed = appear.chain(paths.vanish.iter().map(|file| ('-', file)));
    let files: Vec<_> = changed
        .map(|(mark, file)| format!("{mark} {} ({})", name(&file.path), file.layer))
        .chain(paths.handed_over.iter().map(|handed| {
            format!("⇄ {} from {} to {}", name(&handed.path), handed.from, handed.to)
        }))
        .collect();
    let heading = format!(
        "software files: {} appear, {} vanish, {} change hands, {} modified",
        paths.appear.len(),
        paths.vanish.len(),
        paths.handed_over.len(),
        paths.modified
    );
    if files.is_empty() && paths.modified > 0 {
        section(heading, vec!["no name comes or goes".to_owned()]);
    } else {
        section(heading, files);
    }
    let configuration = paths
        .configuration
        .iter()
        .map(|file| format!("{} {} ({})", file.change, name(&file.path), file.layer));
    section("configuration files".to_owned(), configuration.collect());
    let shadowed = paths.shadowed.iter().map(|path| {
        format!("{} of {} lies under {}", name(&path.path), path.software, path.configuration)
    });
    section("changes that configuration hides".to_owned(), shadowed.collect());
    let scripts = composition
        .scripts
        .iter()
        .map(|run| format!("{} of {}", name(&run.script), name(&run.unit)));
    section("scripts that each VA runs".to_owned(), scripts.collect());
    let data = composition.data.iter().map(|change| {
        let mark = if change.change == Existence::Removed { '-' } else { '+' };
        format!("{mark} {}", name(&change.path.to_string()))
    });
    section("data directories".to_owned(), data.collect());
    let unknown = paths.unknown_units.iter().map(|unit| name(unit));
    section("files not known here, of".to_owned(), unknown.collect());
    sections
}

fn facts(composition: &CompositionPreview) -> String {
    let mut facts = format!(
        "{} come in, {} to mirror",
        HumanBytes(composition.bytes_added),
        HumanBytes(composition.bytes_to_mirror)
    );
    if composition.pinned_vas > 0 {
        let _infallible =
            write!(facts, "; {} pinned and stay", quantity(composition.pinned_vas, "VA"));
    }
    facts
}

fn existence(change: Existence) -> &'static str {
    match change {
        Existence::Added => "new",
        Existence::Changed => "changed",
        Existence::Removed => "removed; its rings and VAs stay as they are",
    }
}

fn appliance(change: &ApplianceChange) -> String {
    match change {
        ApplianceChange::Added { name, mac, composition, ring } => {
            format!("+ {name} ({mac}): {composition} in {ring}")
        }
        ApplianceChange::Removed { name, mac } => format!("- {name} ({mac})"),
        ApplianceChange::Moved { name, from, to } => {
            let labelled = from.labels != to.labels;
            format!("~ {name}: {} → {}", place(from, labelled), place(to, labelled))
        }
    }
}

fn place(place: &Place, labelled: bool) -> String {
    let Place { mac, composition, ring, labels } = place;
    let mut text = format!("{composition} in {ring} ({mac}");
    for (key, value) in labels.iter().filter(|_| labelled) {
        let _infallible = write!(text, ", {key} {value:?}");
    }
    text + ")"
}

/// `~ rollout.ring[canary].soak: "1h" → "1m"`
fn setting(change: &SettingChange) -> String {
    let SettingChange { key, from, to } = change;
    match (from, to) {
        (Some(from), Some(to)) => format!("~ {key}: {from} → {to}"),
        (Some(from), None) => format!("- {key}: {from}"),
        (None, to) => format!("+ {key}: {}", to.as_deref().unwrap_or_default()),
    }
}

/// `+ web: command ["test", "-e", "/run/ready"] (10 s, 3 retries), in 5 VAs`
fn health(change: &HealthChange) -> String {
    let HealthChange { composition, command, http, tcp, deadline_ms, retries, vas, .. } = change;
    let mark = if change.change == CheckChange::Added { '+' } else { '-' };
    let probe = match (command, http, tcp) {
        (Some(words), ..) => format!("command {words:?}"),
        (None, Some(url), _) => format!("http {url}"),
        (None, None, address) => format!("tcp {}", address.as_deref().unwrap_or_default()),
    };
    let place = if command.is_some() { "run in" } else { "asked of" };
    let (seconds, vas) = (deadline_ms / 1000, quantity(*vas, "VA"));
    format!("{mark} {composition}: {probe} ({seconds} s, {retries} retries), {place} {vas}")
}

/// What changes besides compositions: a heading and its entries, of which none may be
/// taken for markup.
fn besides(preview: &Preview) -> Vec<(&'static str, Vec<String>)> {
    let sections = [
        ("declared VAs", preview.appliances.iter().map(appliance).collect::<Vec<_>>()),
        ("settings in strata.toml", preview.settings.iter().map(setting).collect()),
        ("health checks", preview.health.iter().map(health).collect()),
    ];
    sections.into_iter().filter(|(_, entries)| !entries.is_empty()).collect()
}

fn revision(revision: &Revision) -> String {
    match &revision.commit {
        Some(commit) => format!("{} ({})", revision.revision, &commit[..commit.len().min(12)]),
        None => revision.revision.clone(),
    }
}

pub(in crate::cli) fn blast_radius(preview: &Preview) -> String {
    let radius = &preview.blast_radius;
    let mut text = format!(
        "{} of {} ({} %)",
        radius.touched_vas,
        quantity(radius.fleet_vas, "VA"),
        radius.percent()
    );
    if radius.moved_vas > 0 {
        let _infallible = write!(text, ", {} by a move", radius.moved_vas);
    }
    let limits: Vec<_> = [
        radius.most_vas.map(|most| quantity(most, "VA")),
        radius.most_percent.map(|most| format!("{most} %")),
    ]
    .into_iter()
    .flatten()
    .collect();
    if !limits.is_empty() {
        let verdict = if radius.within_limits { "within" } else { "OVER" };
        let _infallible = write!(text, ", {verdict} the limit of {}", limits.join(" and "));
    }
    text
}

fn verdict(preview: &Preview) -> String {
    if !preview.accepted {
        let errors = preview
            .diagnostics
            .iter()
            .filter(|found| found.severity == strata_core::Severity::Error)
            .count();
        return format!("refused: {}", quantity(errors, "error"));
    }
    if !preview.blast_radius.within_limits {
        return "touches more VAs than strata.toml allows".to_owned();
    }
    if preview.is_empty() { "changes nothing".to_owned() } else { "can be taken".to_owned() }
}

/// Writes at most [`NAMED`] entries, each behind `lead`.
fn list(text: &mut String, lead: &str, entries: &[String]) {
    for entry in entries.iter().take(NAMED) {
        let _infallible = writeln!(text, "{lead}{entry}");
    }
    if entries.len() > NAMED {
        let _infallible = writeln!(text, "{lead}… and {} more", entries.len() - NAMED);
    }
}

/// For a terminal.
pub(super) fn text(report: &Report) -> String {
    let (base, head) = (revision(&report.base), revision(&report.head));
    let body = body(&report.preview);
    let (blast_radius, verdict) = (blast_radius(&report.preview), verdict(&report.preview));
    format!(
        "base  {base}\nhead  {head}\n{body}\nblast radius: {blast_radius}\nverdict: {verdict}\n"
    )
}

/// What changes, without a verdict.
pub(in crate::cli) fn body(preview: &Preview) -> String {
    let mut text = String::new();
    for composition in &preview.compositions {
        let _infallible = writeln!(
            text,
            "\n{}: {}\n  VAs: {}\n  {}",
            title(composition),
            existence(composition.change),
            vas(&composition.vas),
            facts(composition)
        );
        for (heading, entries) in sections(composition, Style::Text) {
            let _infallible = writeln!(text, "  {heading}");
            list(&mut text, "    ", &entries);
        }
    }
    for (heading, entries) in besides(preview) {
        let _infallible = writeln!(text, "\n{heading}");
        let entries: Vec<_> = entries.iter().map(|entry| Style::Text.name(entry)).collect();
        list(&mut text, "  ", &entries);
    }
    if !preview.diagnostics.is_empty() {
        text.push('\n');
    }
    for diagnostic in &preview.diagnostics {
        for line in diagnostic.to_string().lines() {
            let _infallible = writeln!(text, "{}", Style::Text.name(line));
        }
    }
    text
}

/// For a comment on a pull request.
pub(super) fn markdown(report: &Report) -> String {
    let preview = &report.preview;
    let mut text = format!(
        "{MARKER}\n### Strata plan: {}\n\n{} → {}\n\n**Blast radius:** {}\n",
        verdict(preview),
        code_span(&revision(&report.base)),
        code_span(&revision(&report.head)),
        blast_radius(preview)
    );
    if !preview.compositions.is_empty() {
        text.push_str("\n| composition | layers | VAs |\n|---|---|---|\n");
        for composition in preview.compositions.iter().take(SHOWN) {
            let _infallible = writeln!(
                text,
                "| `{}` {} | {} | {} |",
                title(composition),
                existence(composition.change),
                layer_counts(&composition.layers),
                vas(&composition.vas)
            );
        }
        if preview.compositions.len() > SHOWN {
            let more = preview.compositions.len() - SHOWN;
            let _infallible = writeln!(text, "\n… and {more} more compositions");
        }
    }
    let errors: Vec<_> = preview
        .diagnostics
        .iter()
        .map(|found| Style::Markdown.name(&found.to_string().replace('\n', " ")))
        .collect();
    if !errors.is_empty() {
        text.push_str("\n**Diagnostics**\n\n");
        list(&mut text, "- ", &errors);
    }
    // Before the long part, so that none of it is cut off.
    for (heading, entries) in besides(preview) {
        let _infallible = writeln!(text, "\n**{heading}**\n");
        let entries: Vec<_> = entries.iter().map(|entry| Style::Markdown.name(entry)).collect();
        list(&mut text, "- ", &entries);
    }
    for composition in preview.compositions.iter().take(SHOWN) {
        let _infallible = writeln!(
            text,
            "\n<details><summary>{}</summary>\n\n{}\n",
            title(composition),
            facts(composition)
        );
        for (heading, entries) in sections(composition, Style::Markdown) {
            let _infallible = writeln!(text, "**{heading}**\n");
            list(&mut text, "- ", &entries);
            text.push('\n');
        }
        text.push_str("</details>\n");
        if text.len() > COMMENT_BYTES {
            break;
        }
    }
    shorten(text)
}

/// Cuts a comment to what a forge takes, at the end of a line.
fn shorten(mut text: String) -> String {
    if text.len() <= COMMENT_BYTES {
        return text;
    }
    let mut end = COMMENT_BYTES;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let end = text[..end].rfind('\n').unwrap_or(end);
    text.truncate(end);
    let open = text.matches("<details>").count() > text.matches("</details>").count();
    text.push_str(if open { "\n\n</details>\n" } else { "\n" });
    text.push_str("\n_Cut short; `strata plan --output json` has all of it._\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_ends_a_code_span() {
        for hostile in ["a`b", "``", "` <img>", "</code>|@all", ""] {
            let span = code_span(hostile);
            let fence: String = span.chars().take_while(|c| *c == '`').collect();
            assert!(span.ends_with(&fence) && !hostile.contains(&fence), "{span}");
        }
        assert_eq!(Style::Text.name("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\n");
    }

    #[test]
    fn a_comment_is_cut_with_a_word() {
        let long = format!("<details>\n{}", "x é\n".repeat(COMMENT_BYTES));
        let cut = shorten(long);
        assert!(cut.len() < 65_000 && cut.ends_with("has all of it._\n"));
        assert_eq!(cut.matches("<details>").count(), cut.matches("</details>").count());
    }
}
