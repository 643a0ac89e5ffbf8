//! `docs/evaluation.md`: a section a part, each replaced when its part is measured. So a
//! part that was measured earlier stays, with the day and the machine it was measured on.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;
use strata_tests::commands::output;
use strata_tests::goals::machine;

/// Key and title of each section, in their order.
pub const SECTIONS: [(&str, &str); 6] = [
    ("provisioning", "Provisioning (§6.1, Table 1)"),
    ("update", "Update (§6.2, Table 2)"),
    ("storage", "Storage (§6.3, Figure 6 and Table 3)"),
    ("postmark", "Postmark (§6.4, Figure 7)"),
    ("build", "A C build (§6.4, Figure 7)"),
    ("http", "HTTP (§6.4, Figure 7)"),
];

const HEAD: &str = "# The paper's evaluation, run again

Written by `ci/bench paper` from what it measured; a run with `--only` replaces the sections that it measured. What is
compared was measured in one run on one ext4: in Figure 7 and Table 1 in turn, round by round; in Table 2 Strata's VAs first, the plain ones
after them. The appliances are the paper's five, from the distribution's packages without what they only recommend.
";

const WIDTH: f64 = 50.0;
const HOLDS: &str = "| holds |";
const MISSED: &str = "| **missed** |";

/// A section's text: what was measured, the goals, and on what.
pub fn section(text: &str, goals: &[Value], quick: bool) -> Result<String> {
    let mut section =
        format!("{}\n\n| goal | value | limit | |\n|---|---|---|---|\n", text.trim_end());
    for goal in goals {
        let number = |key: &str| goal[key].as_f64().unwrap_or(f64::NAN);
        let holds = goal["holds"] == true;
        let sign = if holds == (number("value") <= number("limit")) { "≤" } else { "≥" };
        section.push_str(&format!(
            "| {} | {} {} | {sign} {} {} {}\n",
            goal["goal"].as_str().unwrap_or_default(),
            number("value"),
            goal["unit"].as_str().unwrap_or_default(),
            number("limit"),
            goal["unit"].as_str().unwrap_or_default(),
            if holds { HOLDS } else { MISSED }
        ));
    }
    let day =
        String::from_utf8(output(std::process::Command::new("date").args(["-u", "+%-d %B %Y"]))?)?;
    let commit = strata_tests::git::git(
        Path::new(env!("CARGO_MANIFEST_DIR")),
        &["rev-parse", "--short", "HEAD"],
    );
    let quick = if quick { ", `--quick`" } else { "" };
    section.push_str(&format!("\n{}, commit {commit}, {}{quick}.\n", day.trim(), machine()));
    Ok(section)
}

/// Puts a section into the document, and writes it.
pub fn write(path: &Path, measured: &str, section: &str) -> Result<()> {
    let former = fs::read_to_string(path).unwrap_or_default();
    let mut sections = String::new();
    for (key, title) in SECTIONS {
        let (begin, end) = (format!("<!-- {key} -->\n"), format!("<!-- end of {key} -->\n"));
        let kept = former.split_once(&begin).and_then(|(_, rest)| rest.split_once(&end));
        let kept = kept.map_or("Not measured yet.\n", |(text, _)| text);
        let text = if key == measured { section } else { kept };
        sections.push_str(&format!("\n## {title}\n\n{begin}{text}{end}"));
    }
    let goals =
        |mark: &str| sections.lines().filter(|line| line.ends_with(mark)).collect::<Vec<_>>();
    let (held, missed) = (goals(HOLDS), goals(MISSED));
    let mut text = format!("{HEAD}\nOf {} goals, {} hold", held.len() + missed.len(), held.len());
    if missed.is_empty() {
        text.push_str(".\n");
    } else {
        text.push_str(&format!(
            "; missed:\n\n| goal | value | limit | |\n|---|---|---|---|\n{}\n",
            missed.join("\n")
        ));
    }
    fs::write(path, text + &sections).with_context(|| path.display().to_string())
}

/// A plot of bars, the longest as wide as it can be.
pub fn bars(rows: &[(String, f64)], unit: &str) -> String {
    let most = rows.iter().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
    let name_width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let mut text = "```\n".to_owned();
    for (name, value) in rows {
        let bar = "█".repeat((value / most * WIDTH).round() as usize);
        let digits = if most < 10.0 { 2 } else { 0 };
        text.push_str(&format!("{name:<name_width$}  {bar} {value:.digits$} {unit}\n"));
    }
    text + "```\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_part_that_is_measured_alone_leaves_the_others() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("evaluation.md");
        let goal = |name: &str, value: f64, holds: bool| json!({ "goal": name, "value": value, "limit": 1.0, "unit": "×", "holds": holds });
        let of = |text: &str, goals: &[Value]| section(text, goals, true).expect("a section");
        let first = of("Copies.", &[goal("a", 2.0, false), goal("b", 0.5, true)]);
        write(&path, "provisioning", &first).expect("writes");
        let second = of("Requests.", &[goal("c", 1.5, true)]);
        write(&path, "http", &second).expect("writes");
        let text = fs::read_to_string(&path).expect("reads");
        assert!(text.contains("Copies.") && text.contains("Requests."), "{text}");
        assert!(text.contains("Of 3 goals, 2 hold; missed:"), "{text}");
        assert!(text.contains("| a | 2 × | ≤ 1 × | **missed** |"), "{text}");
        assert!(text.contains("| c | 1.5 × | ≥ 1 × | holds |"), "{text}");
        assert_eq!(text.matches("Not measured yet.").count(), 4, "{text}");
    }

    #[test]
    fn bars_are_in_proportion() {
        let plot = bars(&[("a".to_owned(), 20.0), ("bb".to_owned(), 10.0)], "MiB");
        let lengths: Vec<_> = plot.lines().map(|line| line.matches('█').count()).collect();
        assert_eq!(lengths, [0, 50, 25, 0]);
    }
}
