//! Data in four forms: a table, a wide table, JSON and YAML; once or again and again.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::Value;
use strata_core::printable::{printable, printable_lines};
use yaml_rust2::{Yaml, YamlEmitter};

use super::output::print_live;
use super::{Failure, Outcome};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    #[value(alias = "text")]
    Table,
    /// A table with all columns.
    Wide,
    Json,
    Yaml,
}

/// How to print data that has a table.
#[derive(Debug, Args)]
pub struct FormatArgs {
    /// How to print.
    #[arg(long, short, value_enum, default_value = "table", value_name = "FORMAT")]
    output: Format,
}

/// Whether to look again.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// Look again and again until interrupted, and print what is different then.
    #[arg(long, short)]
    watch: bool,
    /// Seconds between two looks.
    #[arg(long, default_value_t = 2, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3_600))]
    interval: u64,
}

/// Rows under headings; the wide columns are shown only where that is asked for.
#[derive(Debug)]
pub struct Table {
    headings: Vec<&'static str>,
    narrow: usize,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(narrow: &[&'static str], wide: &[&'static str]) -> Self {
        let headings = [narrow, wide].concat();
        Table { headings, narrow: narrow.len(), rows: Vec::new() }
    }

    /// Adds a row: a cell for each heading, the wide ones included.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.sparse_row(cells.into_iter().map(|cell| match cell.is_empty() {
            true => "-".into(),
            false => cell,
        }));
    }

    /// As [`Self::row`], with empty cells left empty. A cell never leaves its line.
    pub fn sparse_row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells = cells.into_iter().map(|cell| printable(&cell).into_owned());
        self.rows.push(cells.collect());
    }

    pub fn text(&self, wide: bool) -> String {
        let columns = if wide { self.headings.len() } else { self.narrow };
        let cells = |row: &[String], at: usize| row.get(at).map_or(0, |cell| cell.chars().count());
        let width = |at: usize| {
            let widest = self.rows.iter().map(|row| cells(row, at)).max().unwrap_or(0);
            widest.max(self.headings[at].len())
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        let mut text = String::new();
        let headings: Vec<_> = self.headings.iter().map(|&heading| heading.to_owned()).collect();
        for row in std::iter::once(&headings).chain(&self.rows) {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            let _infallible = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
        }
        text
    }
}

/// Data that has a table, or a page for people, and a versioned JSON form.
pub trait View: Serialize {
    /// What is a row each; nothing of data that is none, and has a page of its own.
    fn table(&self) -> Table {
        Table::new(&[], &[])
    }

    /// What stands below the table.
    fn below(&self) -> String {
        String::new()
    }

    /// What stands in the place of an empty table.
    fn nothing(&self) -> &'static str {
        "nothing"
    }

    /// All of it, for people.
    fn page(&self, wide: bool) -> String {
        let table = self.table();
        let rows = match table.rows.is_empty() {
            true => format!("{}\n", self.nothing()),
            false => table.text(wide),
        };
        format!("{rows}{}", self.below())
    }
}

impl FormatArgs {
    /// Whether programs read it.
    pub fn is_data(&self) -> bool {
        matches!(self.output, Format::Json | Format::Yaml)
    }

    pub fn is_wide(&self) -> bool {
        self.output == Format::Wide
    }

    fn text(&self, view: &impl View) -> Result<String, Failure> {
        let json = |error| Failure::new(format!("write JSON: {error}"));
        match self.output {
            Format::Json => Ok(serde_json::to_string_pretty(view).map_err(json)? + "\n"),
            Format::Yaml => yaml(&serde_json::to_value(view).map_err(json)?),
            Format::Table | Format::Wide => {
                Ok(printable_lines(&view.page(self.is_wide())).into_owned())
            }
        }
    }

    /// # Errors
    /// Stdout cannot be written.
    pub fn print(&self, view: &impl View) -> Result<(), Failure> {
        print_live(self.text(view)?.as_bytes()).map(|_read| ())
    }

    /// Prints what `look` finds, once or as often as it is different. Ends when the
    /// reader has gone away.
    ///
    /// # Errors
    /// What `look` says, or stdout cannot be written.
    pub fn show<V: View>(
        &self,
        watch: &WatchArgs,
        mut look: impl FnMut() -> Result<(V, Outcome), Failure>,
    ) -> Result<Outcome, Failure> {
        let clear = std::io::stdout().is_terminal() && !self.is_data();
        let mut shown = None;
        loop {
            let (view, outcome) = look()?;
            let text = self.text(&view)?;
            if !watch.watch {
                print_live(text.as_bytes())?;
                return Ok(outcome);
            }
            if shown.as_ref() != Some(&text) {
                let whole = match self.output {
                    _ if clear => format!("\x1b[H\x1b[2J{text}"),
                    // One document a line, as programs read a stream.
                    Format::Json => {
                        let json = serde_json::to_string(&view);
                        json.map_err(|error| Failure::new(format!("write JSON: {error}")))? + "\n"
                    }
                    Format::Yaml => text.clone(),
                    Format::Table | Format::Wide if shown.is_some() => format!("\n{text}"),
                    Format::Table | Format::Wide => text.clone(),
                };
                if !print_live(whole.as_bytes())? {
                    return Ok(outcome);
                }
                shown = Some(text);
            }
            std::thread::sleep(Duration::from_secs(watch.interval));
        }
    }
}

/// The same data as YAML: what is in the JSON, its members sorted.
fn yaml(value: &Value) -> Result<String, Failure> {
    let mut text = String::new();
    let mut emitter = YamlEmitter::new(&mut text);
    emitter.dump(&node(value)).map_err(|error| Failure::new(format!("write YAML: {error}")))?;
    text.push('\n');
    Ok(text)
}

fn node(value: &Value) -> Yaml {
    match value {
        Value::Null => Yaml::Null,
        Value::Bool(value) => Yaml::Boolean(*value),
        Value::Number(number) => match number.as_i64() {
            Some(number) => Yaml::Integer(number),
            None => Yaml::Real(number.to_string()),
        },
        Value::String(text) => Yaml::String(text.clone()),
        Value::Array(values) => Yaml::Array(values.iter().map(node).collect()),
        Value::Object(members) => {
            let members = members.iter().map(|(key, v)| (Yaml::String(key.clone()), node(v)));
            Yaml::Hash(members.collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_reads_back_as_the_json() {
        let json = serde_json::json!({
            "version": 1, "yes": "no", "date": "2026-01-01", "colon": "a: b", "none": null,
            "list": [1.5, true, {"deep": ["x\ny", "", "\u{1b}[31m"]}], "empty": [], "number": "007",
        });
        let text = yaml(&json).expect("written");
        let read = yaml_rust2::YamlLoader::load_from_str(&text).expect("YAML");
        assert_eq!(read, [node(&json)], "{text}");
    }

    #[test]
    fn wide_columns_show_when_asked_for() {
        let mut table = Table::new(&["NAME", "STATE"], &["MAC"]);
        table.row(["web-1".to_owned(), String::new(), "02".to_owned()]);
        assert_eq!(table.text(false), "NAME   STATE\nweb-1  -\n");
        assert_eq!(table.text(true), "NAME   STATE  MAC\nweb-1  -      02\n");
    }

    #[test]
    fn no_cell_forges_a_row() {
        let mut table = Table::new(&["NAME", "WHY"], &[]);
        table.sparse_row(["a".to_owned(), "\u{1b}[2Jx\r\nb  in-sync\u{202e}".to_owned()]);
        assert_eq!(table.text(false), "NAME  WHY\na     \\u{1b}[2Jx\\r\\nb  in-sync\\u{202e}\n");
    }
}
