//! What a VA says of itself (`docs/formats.md`, "Report"): a claim, never an order.

use serde::{Deserialize, Serialize};

use crate::digest::GenerationId;
use crate::limits;
use crate::names::{CompositionName, MacAddr};
use crate::scripts::outcome::ScriptsReport;

/// The version of a report that says nothing of scripts.
pub const VERSION: u32 = 1;
/// The version of a report that does.
pub const SCRIPTS_VERSION: u32 = 2;

/// What the VA's VLFS does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServingState {
    /// It answers requests from the generation it names.
    Serving,
    /// It was unmounted in good order.
    Stopped,
    /// It could not compose what its link names.
    Failed,
}

/// A VA's report, as the JSON text of `reports/<mac>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    pub version: u32,
    pub mac: MacAddr,
    pub state: ServingState,
    /// The generation whose layers answer requests now.
    pub generation: Option<GenerationId>,
    pub composition: Option<CompositionName>,
    /// Number of layers served.
    pub layers: u32,
    /// The generation that the VA's link named when last read.
    pub desired: Option<GenerationId>,
    /// Why the last composition or swap was refused.
    pub error: Option<String>,
    pub pid: u32,
    pub host: String,
    pub mount_point: String,
    /// Swaps since the mount.
    pub swaps: u64,
    /// Milliseconds since 1970, by the VA's clock.
    pub started_at_ms: u64,
    pub written_at_ms: u64,
    /// The report is written again at least this often, in seconds.
    pub interval_s: u32,
    /// What the VA does about scripts; in version 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scripts: Option<ScriptsReport>,
}

#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("the report has {0} bytes, the limit is {max}", max = limits::REPORT_BYTES)]
    TooLarge(usize),
    #[error("the report is no valid JSON of version {VERSION} or {SCRIPTS_VERSION}: {0}")]
    Syntax(#[from] serde_json::Error),
    #[error("the report is of version {0}, this program reads {VERSION} and {SCRIPTS_VERSION}")]
    Version(u32),
    #[error("the report is of {found}, it stands in the place of {expected}")]
    WrongVa { found: MacAddr, expected: MacAddr },
}

impl Report {
    /// Parses what stands at `reports/<mac>`.
    ///
    /// # Errors
    /// Anything but a report of this version by this VA.
    pub fn parse(text: &[u8], mac: MacAddr) -> Result<Self, ReportError> {
        if text.len() > limits::REPORT_BYTES {
            return Err(ReportError::TooLarge(text.len()));
        }
        let report: Report = serde_json::from_slice(text)?;
        let expected = if report.scripts.is_some() { SCRIPTS_VERSION } else { VERSION };
        if report.version != expected {
            return Err(ReportError::Version(report.version));
        }
        if report.mac != mac {
            return Err(ReportError::WrongVa { found: report.mac, expected: mac });
        }
        Ok(report)
    }

    /// The JSON text, one line.
    pub fn print(&self) -> String {
        let mut text = serde_json::to_string(self).expect("a struct of plain fields serialises");
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str = include_str!("../golden/report");

    fn mac() -> MacAddr {
        "52:54:00:12:34:56".parse().expect("valid")
    }

    #[test]
    fn golden() {
        let report = Report::parse(GOLDEN.as_bytes(), mac()).expect("the golden file");
        assert_eq!(report.print(), GOLDEN);
        assert_eq!(report.state, ServingState::Serving);
    }

    #[test]
    fn golden_with_scripts() {
        const GOLDEN: &str = include_str!("../golden/report-2");
        let report = Report::parse(GOLDEN.as_bytes(), mac()).expect("the golden file");
        assert_eq!(report.print(), GOLDEN);
        let scripts = report.scripts.expect("version 2 has them");
        assert_eq!(
            scripts.failures[0].to_string(),
            "main/mysql-server 5.0.51a-3 post-install: exit status 3: no such user"
        );
        let older = GOLDEN.replacen("\"version\":2", "\"version\":1", 1);
        assert!(matches!(Report::parse(older.as_bytes(), mac()), Err(ReportError::Version(1))));
    }

    #[test]
    fn lies_and_floods_are_refused() {
        let other = "52:54:00:12:34:57".parse().expect("valid");
        let refused = Report::parse(GOLDEN.as_bytes(), other);
        assert!(matches!(refused, Err(ReportError::WrongVa { .. })));
        let refused = Report::parse(&vec![b' '; limits::REPORT_BYTES + 1], mac());
        assert!(matches!(refused, Err(ReportError::TooLarge(_))));
        let newer = GOLDEN.replacen("\"version\":1", "\"version\":2", 1);
        assert!(matches!(Report::parse(newer.as_bytes(), mac()), Err(ReportError::Version(2))));
    }
}
