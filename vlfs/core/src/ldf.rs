//! Layer definition files (§5, Figures 2 and 3; `docs/formats.md`, "LDF").
//!
//! Parsing is lossless: printing an unchanged [`Ldf`] gives the bytes back, and
//! an edit rewrites only the lines it must, keeping comments and order.

use std::collections::BTreeMap;
use std::fmt;

use crate::limits;
use crate::names::{CompositionName, LayerName, NameError, RepositoryName, TEMPLATES_REPOSITORY};
use crate::position::Located;
use crate::version::{LayerVersion, VersionError};

/// A line `[=]repository/layer [version]`. Only an explicit line may lack the
/// version, until `strata resolve` has chosen one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerLine {
    /// `=`: the operator holds the layer at this version.
    pub hold: bool,
    pub repository: RepositoryName,
    pub layer: LayerName,
    pub version: Option<LayerVersion>,
}

impl fmt::Display for LayerLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hold = if self.hold { "=" } else { "" };
        write!(f, "{hold}{}/{}", self.repository, self.layer)?;
        match &self.version {
            Some(version) => write!(f, " {version}"),
            None => Ok(()),
        }
    }
}

/// A line `@name` or `@scope/name`: all layers of another LDF. The scope is the
/// word `templates`, or a repository as in the paper's `@main/sql-server`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    pub scope: Option<RepositoryName>,
    pub name: CompositionName,
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.scope {
            Some(scope) => write!(f, "@{scope}/{}", self.name),
            None => write!(f, "@{}", self.name),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LdfError {
    #[error("the file has {0} bytes, the limit is {max}", max = limits::LDF_BYTES)]
    TooLarge(usize),
    #[error("the line is not UTF-8")]
    Encoding,
    #[error("write `repository/layer version`: there is no / in {0:?}")]
    Slash(String),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Version(#[from] VersionError),
    #[error("unexpected text {0:?} after the version")]
    Trailing(String),
    #[error("an implicit layer needs a version; run `strata resolve`")]
    ImplicitWithoutVersion,
    #[error("a held layer needs the version it is held at")]
    HoldWithoutVersion,
    #[error("an @ reference belongs into the explicit part, above the blank line")]
    ImplicitReference,
    #[error("{what} stands on line {first} already")]
    Duplicate { what: String, first: u32 },
    #[error("more than {max} layers", max = limits::COMPOSITION_LAYERS)]
    TooMany,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Item {
    /// A blank line or a comment.
    Silent,
    Reference(Reference),
    Layer(LayerLine),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    /// The line with its end, as it stands in the file.
    raw: String,
    item: Item,
    /// Whether it stands in the implicit part.
    implicit: bool,
}

/// A parsed layer definition file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ldf {
    lines: Vec<Line>,
}

impl Ldf {
    /// Parses the text.
    ///
    /// # Errors
    /// Every fault of the file, with line and column.
    pub fn parse(text: &[u8]) -> Result<Self, Vec<Located<LdfError>>> {
        if text.len() > limits::LDF_BYTES {
            return Err(vec![Located::new(1, 1, LdfError::TooLarge(text.len()))]);
        }
        let mut ldf = Ldf::default();
        let mut faults = Vec::new();
        let mut first_seen = BTreeMap::new();
        let mut implicit = false;
        let mut started = false;
        for (index, bytes) in text.split_inclusive(|b| *b == b'\n').enumerate() {
            let number = index + 1;
            let Ok(raw) = std::str::from_utf8(bytes) else {
                faults.push(Located::new(number, 1, LdfError::Encoding));
                continue;
            };
            if raw.trim().is_empty() {
                implicit |= started;
            }
            let item = match parse_item(raw, implicit) {
                Ok(item) => item,
                Err((column, error)) => {
                    started = true;
                    faults.push(Located::new(number, column, error));
                    continue;
                }
            };
            let what = match &item {
                Item::Silent => None,
                Item::Reference(reference) => Some(format!("@{}", reference.name)),
                // A flattened LDF lists the configuration layers from git, which
                // may have the name of a software layer.
                Item::Layer(line) if line.repository.as_str() == TEMPLATES_REPOSITORY => {
                    Some(format!("the configuration layer {}", line.layer))
                }
                Item::Layer(line) => Some(format!("the layer {}", line.layer)),
            };
            if let Some(what) = what {
                started = true;
                if let Some(first) = first_seen.insert(what.clone(), number) {
                    let first = u32::try_from(first).unwrap_or(u32::MAX);
                    let error = LdfError::Duplicate { what, first };
                    faults.push(Located::new(number, 1, error));
                }
                if first_seen.len() > limits::COMPOSITION_LAYERS {
                    faults.push(Located::new(number, 1, LdfError::TooMany));
                    break;
                }
            }
            ldf.lines.push(Line { raw: raw.to_owned(), item, implicit });
        }
        if faults.is_empty() { Ok(ldf) } else { Err(faults) }
    }

    /// The text, byte for byte as parsed where nothing was changed.
    pub fn print(&self) -> String {
        self.lines.iter().map(|line| line.raw.as_str()).collect()
    }

    /// The `@` references with their line numbers.
    pub fn references(&self) -> impl Iterator<Item = (u32, &Reference)> {
        self.numbered().filter_map(|(number, line)| match &line.item {
            Item::Reference(reference) => Some((number, reference)),
            _ => None,
        })
    }

    /// The explicit layers with their line numbers.
    pub fn explicit(&self) -> impl Iterator<Item = (u32, &LayerLine)> {
        self.layers().filter(|(_, _, implicit)| !implicit).map(|(number, line, _)| (number, line))
    }

    /// The implicit layers with their line numbers.
    pub fn implicit(&self) -> impl Iterator<Item = (u32, &LayerLine)> {
        self.layers().filter(|(_, _, implicit)| *implicit).map(|(number, line, _)| (number, line))
    }

    fn numbered(&self) -> impl Iterator<Item = (u32, &Line)> {
        (1u32..).zip(&self.lines)
    }

    fn layers(&self) -> impl Iterator<Item = (u32, &LayerLine, bool)> {
        self.numbered().filter_map(|(number, line)| match &line.item {
            Item::Layer(layer) => Some((number, layer, line.implicit)),
            _ => None,
        })
    }

    /// Sets the version of the layer `repository/layer`, wherever it stands.
    pub fn set_version(
        &mut self,
        repository: &RepositoryName,
        layer: &LayerName,
        version: &LayerVersion,
    ) {
        for line in &mut self.lines {
            if let Item::Layer(found) = &mut line.item
                && found.layer == *layer
                && found.repository == *repository
                && found.version.as_ref() != Some(version)
            {
                found.version = Some(version.clone());
                line.raw = rewrite(&line.raw, found);
            }
        }
    }

    /// Adds an explicit layer behind the last explicit line; an implicit line of
    /// the layer goes.
    pub fn insert_explicit(&mut self, layer: LayerLine) {
        let same = |line: &Line| matches!(&line.item, Item::Layer(l) if l.layer == layer.layer);
        self.lines.retain(|line| !(line.implicit && same(line)));
        let named = |line: &Line| !line.implicit && !matches!(line.item, Item::Silent);
        let first_implicit = self.lines.iter().position(|line| line.implicit);
        let at = match self.lines.iter().rposition(named) {
            Some(last) => last + 1,
            None => first_implicit.unwrap_or(self.lines.len()),
        };
        if let Some(before) = at.checked_sub(1).and_then(|before| self.lines.get_mut(before))
            && !before.raw.ends_with('\n')
        {
            before.raw.push('\n');
        }
        let raw = format!("{layer}\n");
        self.lines.insert(at, Line { raw, item: Item::Layer(layer), implicit: false });
    }

    /// Removes the explicit line of a layer.
    pub fn remove_explicit(&mut self, layer: &LayerName) {
        self.lines.retain(
            |line| !matches!(&line.item, Item::Layer(l) if !line.implicit && l.layer == *layer),
        );
    }

    /// Makes `wanted` the line of its layer, where that stands explicitly, or adds it as
    /// the last explicit one.
    pub fn put_explicit(&mut self, wanted: LayerLine) {
        for line in self.lines.iter_mut().filter(|line| !line.implicit) {
            if let Item::Layer(found) = &mut line.item
                && found.layer == wanted.layer
            {
                if *found != wanted {
                    line.raw = rewrite(&line.raw, &wanted);
                    *found = wanted;
                }
                return;
            }
        }
        self.insert_explicit(wanted);
    }

    /// Makes the implicit part hold exactly these layers. Lines that stay keep
    /// their place and their comment; new ones are appended in the given order.
    pub fn set_implicit(&mut self, wanted: &[LayerLine]) {
        let mut missing: BTreeMap<_, _> = wanted.iter().map(|line| (&line.layer, line)).collect();
        self.lines.retain_mut(|line| {
            let Item::Layer(found) = &mut line.item else { return true };
            if !line.implicit {
                return true;
            }
            let Some(wanted) = missing.remove(&found.layer) else { return false };
            if *found != *wanted {
                *found = wanted.clone();
                line.raw = rewrite(&line.raw, found);
            }
            true
        });
        let new: Vec<_> =
            wanted.iter().filter(|line| missing.contains_key(&line.layer)).cloned().collect();
        if new.is_empty() {
            self.drop_trailing_separator();
            return;
        }
        if let Some(last) = self.lines.last_mut()
            && !last.raw.ends_with('\n')
        {
            last.raw.push('\n');
        }
        if !self.lines.iter().any(|line| line.implicit) {
            self.push("\n".to_owned(), Item::Silent);
        }
        for line in new {
            self.push(format!("{line}\n"), Item::Layer(line));
        }
    }

    fn push(&mut self, raw: String, item: Item) {
        self.lines.push(Line { raw, item, implicit: true });
    }

    /// A blank line with nothing behind it separates nothing.
    fn drop_trailing_separator(&mut self) {
        let blank = |line: &Line| line.implicit && line.raw.trim().is_empty();
        while self.lines.last().is_some_and(blank) {
            self.lines.pop();
        }
    }
}

/// The line with its item printed anew; indentation, comment and end stay.
fn rewrite(raw: &str, line: &LayerLine) -> String {
    let indentation = &raw[..raw.len() - raw.trim_start().len()];
    let (content, _) = split_comment(raw);
    let tail = &raw[content.trim_end().len()..];
    format!("{indentation}{line}{tail}")
}

/// Splits off a comment: `#` at the start of a line or after white space.
fn split_comment(raw: &str) -> (&str, &str) {
    let mut previous = ' ';
    for (at, c) in raw.char_indices() {
        if c == '#' && previous.is_whitespace() {
            return raw.split_at(at);
        }
        previous = c;
    }
    (raw, "")
}

fn parse_item(raw: &str, implicit: bool) -> Result<Item, (usize, LdfError)> {
    let (content, _) = split_comment(raw);
    let column = content.len() - content.trim_start().len() + 1;
    let content = content.trim();
    if content.is_empty() {
        return Ok(Item::Silent);
    }
    let fault = |error: LdfError| (column, error);
    if let Some(reference) = content.strip_prefix('@') {
        if implicit {
            return Err(fault(LdfError::ImplicitReference));
        }
        let (scope, name) = match reference.split_once('/') {
            Some((scope, name)) => {
                let scope = RepositoryName::new(scope).map_err(|e| (column + 1, e.into()))?;
                (Some(scope), name)
            }
            None => (None, reference),
        };
        let name = CompositionName::new(name).map_err(|error| (column + 1, error.into()))?;
        return Ok(Item::Reference(Reference { scope, name }));
    }
    let (hold, unit) = match content.strip_prefix('=') {
        Some(unit) => (true, unit),
        None => (false, content),
    };
    let mut words = unit.split_whitespace();
    let path = words.next().unwrap_or("");
    let (repository, layer) = path
        .split_once('/')
        .ok_or_else(|| fault(LdfError::Slash(path.chars().take(64).collect())))?;
    let at = |part: &str| column + (part.as_ptr() as usize - content.as_ptr() as usize);
    let repository =
        RepositoryName::new(repository).map_err(|error| (at(repository), error.into()))?;
    let layer = LayerName::new(layer).map_err(|error| (at(layer), error.into()))?;
    let version = match words.next() {
        Some(text) => Some(LayerVersion::new(text).map_err(|error| (at(text), error.into()))?),
        None if implicit => return Err(fault(LdfError::ImplicitWithoutVersion)),
        None if hold => return Err(fault(LdfError::HoldWithoutVersion)),
        None => None,
    };
    match words.next() {
        Some(more) => Err((at(more), LdfError::Trailing(more.chars().take(64).collect()))),
        None => Ok(Item::Layer(LayerLine { hold, repository, layer, version })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_explicit_line_is_changed_in_place_or_added_last() {
        let line = |version: &str| LayerLine {
            hold: true,
            repository: "main".parse().expect("valid"),
            layer: "web-configuration".parse().expect("valid"),
            version: Some(version.parse().expect("valid")),
        };
        let text = "# a web server\n@base\nmain/apache2 1 # kept\n\nmain/libc6 2\n";
        let mut ldf = Ldf::parse(text.as_bytes()).expect("valid");
        ldf.put_explicit(line("1"));
        let added = "# a web server\n@base\nmain/apache2 1 # kept\n=main/web-configuration 1\n\nmain/libc6 2\n";
        assert_eq!(ldf.print(), added);
        ldf.put_explicit(line("2"));
        assert_eq!(ldf.print(), added.replace("configuration 1", "configuration 2"));
        assert_eq!(Ldf::parse(ldf.print().as_bytes()), Ok(ldf));

        let mut unended = Ldf::parse(b"main/apache2 1").expect("valid");
        unended.put_explicit(line("1"));
        assert_eq!(unended.print(), "main/apache2 1\n=main/web-configuration 1\n");
        let mut empty = Ldf::parse(b"").expect("valid");
        empty.put_explicit(line("1"));
        assert_eq!(empty.print(), "=main/web-configuration 1\n");
    }
    use proptest::prelude::*;

    const FIGURE_2: &str = include_str!("../golden/figure-2.ldf");
    const FIGURE_3: &str = "@main/sql-server\n";

    fn line(text: &str) -> LayerLine {
        match parse_item(text, false) {
            Ok(Item::Layer(line)) => line,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn figure_2_the_mysql_template() {
        let ldf = Ldf::parse(FIGURE_2.as_bytes()).expect("Figure 2");
        assert_eq!(ldf.print(), FIGURE_2);
        let explicit: Vec<_> = ldf.explicit().map(|(_, line)| line.to_string()).collect();
        assert_eq!(explicit, ["main/mysql-server 5.0.51a-3"]);
        assert_eq!(ldf.implicit().count(), 21);
        let held: Vec<_> = ldf.implicit().filter(|(_, line)| line.hold).collect();
        assert_eq!(held, [(23, &line("=main/mailx 3a8.1.2-0.20040524cvs-4"))]);
    }

    #[test]
    fn figure_3_a_provisioned_va() {
        let ldf = Ldf::parse(FIGURE_3.as_bytes()).expect("Figure 3");
        let references: Vec<_> = ldf.references().collect();
        assert_eq!(references.len(), 1);
        assert_eq!(references[0].1.to_string(), "@main/sql-server");
        assert_eq!(ldf.print(), FIGURE_3);
    }

    #[test]
    fn every_fault_at_once() {
        let text =
            b"@a\nnoslash 1\nmain/x\nmain/y 1 2\nmain/\xff 1\n=main/z\n\nmain/w\n@b\nmain/x 1\n";
        let faults = Ldf::parse(text).expect_err("faults");
        let places: Vec<_> = faults.iter().map(|f| (f.line, f.column)).collect();
        assert_eq!(places, [(2, 1), (4, 10), (5, 1), (6, 1), (8, 1), (9, 1), (10, 1)]);
    }

    #[test]
    fn an_edit_keeps_comments_and_order() {
        let text = "# web\nmain/apache2 1 # pinned by ops\n\nmain/b 1\n  main/a 1   # why\n# tail";
        let mut ldf = Ldf::parse(text.as_bytes()).expect("valid");
        ldf.set_version(
            &line("main/apache2").repository,
            &line("main/apache2").layer,
            &"2".parse().expect("valid"),
        );
        ldf.set_implicit(&[line("main/a 2"), line("main/c 1")]);
        assert_eq!(
            ldf.print(),
            "# web\nmain/apache2 2 # pinned by ops\n\n  main/a 2   # why\n# tail\nmain/c 1\n"
        );
        let again = Ldf::parse(ldf.print().as_bytes()).expect("valid");
        assert_eq!(again, ldf);
    }

    #[test]
    fn the_first_implicit_layer_brings_its_separator_and_the_last_takes_it() {
        let mut ldf = Ldf::parse(b"main/a 1").expect("valid");
        ldf.set_implicit(&[line("main/b 1")]);
        assert_eq!(ldf.print(), "main/a 1\n\nmain/b 1\n");
        ldf.set_implicit(&[]);
        assert_eq!(ldf.print(), "main/a 1\n");
    }

    proptest! {
        #[test]
        fn printing_gives_the_bytes_back(text in "[ab@=#/. 1\r\n\t-]{0,80}") {
            if let Ok(ldf) = Ldf::parse(text.as_bytes()) {
                prop_assert_eq!(ldf.print(), text);
            }
        }

        #[test]
        fn an_edited_file_reads_back_the_same(text in "(main/[a-e] 1( #x)?\n|\n|#c\n){0,8}", wanted in proptest::collection::btree_set("[a-h]", 0..6)) {
            if let Ok(mut ldf) = Ldf::parse(text.as_bytes()) {
                let explicit: Vec<_> = ldf.explicit().map(|(_, l)| l.layer.to_string()).collect();
                let wanted: Vec<_> = wanted.iter().filter(|n| !explicit.contains(n)).map(|n| line(&format!("main/{n} 2"))).collect();
                prop_assume!(ldf.explicit().count() > 0);
                ldf.set_implicit(&wanted);
                let again = Ldf::parse(ldf.print().as_bytes()).expect("still valid");
                prop_assert_eq!(again.print(), ldf.print());
                prop_assert_eq!(again.implicit().count(), wanted.len());
                prop_assert_eq!(again.explicit().count(), explicit.len());
            }
        }

        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _checked = Ldf::parse(&bytes);
        }
    }
}
