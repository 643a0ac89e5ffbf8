//! `strata layer lint`.

use std::str::FromStr;

use serde::Serialize;
use strata_core::version::LayerVersion;
use strata_import::lint::{self, Code, Finding, Severity, Subject};

use super::LayerReference;
use super::show::{find, manifest};
use crate::cli::{
    Failure, Outcome, OutputArgs, OutputFormat, StoreArgs, print_json, print_text, quantity,
};

/// Look for what is suspicious about a layer
///
/// Errors: files that are never seen (below /run, /proc, /sys, /dev) or lie below /bin, /sbin or
/// /lib, links out of the tree, world-writable paths, programs without an interpreter,
/// dependencies that no repository meets, and paths that other layers have, too. Warnings:
/// files elsewhere outside the hierarchy, links to absolute paths of others, dangling links,
/// setuid and setgid programs, and such with capabilities. Exit status 0: no error; 1: at
/// least one (with --strict, or one warning); 2: it could not be looked at.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  strata layer lint main/nginx\n  strata layer lint main/sudo --strict --allow 'setuid:/usr/bin/sudo*' --allow absolute-link"
)]
pub struct LintArgs {
    /// The layer, as in main/nginx
    #[arg(value_name = "REPOSITORY/LAYER")]
    layer: LayerReference,
    /// Its version [default: the newest]
    version: Option<LayerVersion>,
    /// Accept findings of this kind, or those at paths that a pattern matches; may be given again
    #[arg(long, value_name = "KIND[:GLOB]")]
    allow: Vec<Allowed>,
    /// Let warnings count as errors do
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Findings that are accepted.
#[derive(Debug, Clone)]
struct Allowed {
    code: Code,
    paths: Option<glob::Pattern>,
}

impl FromStr for Allowed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (code, paths) = match text.split_once(':') {
            Some((code, paths)) => (code, Some(paths)),
            None => (text, None),
        };
        let code = code.parse().map_err(|error: lint::CodeError| error.to_string())?;
        let paths = match paths {
            Some(paths) if !paths.starts_with('/') => {
                return Err("a pattern is an absolute path, as in /usr/bin/sudo*".to_owned());
            }
            paths => {
                paths.map(glob::Pattern::new).transpose().map_err(|error| error.to_string())?
            }
        };
        Ok(Allowed { code, paths })
    }
}

impl Allowed {
    fn accepts(&self, finding: &Finding) -> bool {
        self.code == finding.code
            && self.paths.as_ref().is_none_or(|paths| {
                finding.path.as_deref().is_some_and(|path| paths.matches(&absolute(path)))
            })
    }
}

fn absolute(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path))
}

#[derive(Serialize)]
struct Shown {
    repository: String,
    layer: String,
    version: String,
    findings: Vec<ShownFinding>,
    errors: usize,
    warnings: usize,
    allowed: usize,
}

#[derive(Serialize)]
struct ShownFinding {
    severity: &'static str,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    reason: String,
    allowed: bool,
}

pub fn run(args: &LintArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let LayerReference { repository, layer } = &args.layer;
    let unit = find(&store, &args.layer, args.version.as_ref())?;
    let version = &unit.metadata.version;
    let manifest = manifest(&store, repository, &unit)?;
    let subject =
        Subject { store: &store, repository, metadata: &unit.metadata, manifest: &manifest };
    let found = lint::lint(subject).map_err(Failure::new)?;
    let allowed = |finding: &Finding| args.allow.iter().any(|allowed| allowed.accepts(finding));
    let count = |severity| {
        found.iter().filter(|finding| finding.severity == severity && !allowed(finding)).count()
    };
    let shown = Shown {
        repository: repository.to_string(),
        layer: layer.to_string(),
        version: version.to_string(),
        errors: count(Severity::Error),
        warnings: count(Severity::Warning),
        allowed: found.iter().filter(|finding| allowed(finding)).count(),
        findings: found
            .iter()
            .map(|finding| ShownFinding {
                severity: finding.severity.as_str(),
                kind: finding.code.as_str(),
                path: finding.path.as_deref().map(absolute),
                reason: finding.reason.clone(),
                allowed: allowed(finding),
            })
            .collect(),
    };
    match args.output.output {
        OutputFormat::Json => print_json(&shown)?,
        OutputFormat::Text => print_text(&text(&shown))?,
    }
    let bad = shown.errors > 0 || args.strict && shown.warnings > 0;
    Ok(if bad { Outcome::Difference } else { Outcome::Done })
}

fn text(shown: &Shown) -> String {
    let mut text = String::new();
    for finding in shown.findings.iter().filter(|finding| !finding.allowed) {
        let ShownFinding { severity, kind, path, reason, .. } = finding;
        let path = path.as_ref().map(|path| format!("{}: ", path.escape_debug()));
        let path = path.unwrap_or_default();
        text.push_str(&format!("{severity:<7} {kind:<19} {path}{}\n", reason.escape_debug()));
    }
    let counts =
        [(shown.errors, "error"), (shown.warnings, "warning"), (shown.allowed, "allowed finding")];
    let counts: Vec<_> =
        counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| quantity(*n, what)).collect();
    let Shown { repository, layer, version, .. } = shown;
    let counts = if counts.is_empty() { "nothing found".to_owned() } else { counts.join(", ") };
    text.push_str(&format!("{repository}/{layer} {version}: {counts}\n"));
    text
}
