//! The desired state: everything that one commit of the GitOps repository says.
//!
//! Reading looks at the repository alone. Whether its layers exist and fit
//! together is for [`crate::check`], which has the repositories as well.

use std::collections::{BTreeMap, BTreeSet};

use crate::configuration::{
    APPLIANCES_FILE, Appliance, Appliances, CONFIGURATION_FILE, Configuration, read_appliances,
};
use crate::data_paths::{self, Declared};
use crate::diagnostic::Diagnostic;
use crate::health_checks::HealthCheck;
use crate::ldf::Ldf;
use crate::limits;
use crate::names::{CompositionName, TEMPLATES_REPOSITORY, VaName};
use crate::source::{SourceContent, SourceFile, SourceTree};
use crate::template_tree::TemplateTree;

/// Where a definition stands, which is also what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DefinitionRole {
    /// `templates/<name>.ldf`
    Template,
    /// `appliances/<name>.ldf`
    Appliance,
}

impl DefinitionRole {
    /// The directory of these definitions in the GitOps repository.
    pub fn directory(self) -> &'static str {
        match self {
            DefinitionRole::Template => "templates",
            DefinitionRole::Appliance => "appliances",
        }
    }
}

/// A composition as it is written in git.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    pub name: CompositionName,
    pub role: DefinitionRole,
    /// Path of the LDF in the GitOps repository.
    pub file: String,
    /// Without the lines that have faults.
    pub ldf: Ldf,
    /// Whether lines are missing from `ldf` because they have faults.
    pub partial: bool,
    /// Its own configuration layer, where it has one.
    pub tree: Option<TemplateTree>,
    /// Data directories that its own `.data` file declares, with their lines.
    pub data: Declared,
    /// How its VAs are asked how they do; its own, without its references'.
    pub health: Vec<HealthCheck>,
}

/// What one commit says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DesiredState {
    pub configuration: Configuration,
    pub definitions: BTreeMap<CompositionName, Definition>,
    /// The declared VAs.
    pub appliances: BTreeMap<VaName, Appliance>,
}

impl DesiredState {
    /// Reads a commit. What could be read is returned along with every fault.
    pub fn read(tree: &SourceTree) -> (Self, Vec<Diagnostic>) {
        let mut diagnostics = Vec::new();
        let configuration = match regular_file(tree, CONFIGURATION_FILE, &mut diagnostics) {
            Some(bytes) => {
                let (configuration, faults) = Configuration::read(bytes);
                diagnostics.extend(faults);
                configuration
            }
            None => {
                if tree.get(CONFIGURATION_FILE).is_none() {
                    diagnostics.push(
                        Diagnostic::error(
                            CONFIGURATION_FILE,
                            0,
                            "no-configuration",
                            "there is no strata.toml: this is no GitOps repository of Strata",
                        )
                        .hint(
                            "declare at least one repository: [[repository]] and name = \"main\"",
                        ),
                    );
                }
                Configuration::default()
            }
        };
        let mut desired = DesiredState { configuration, ..DesiredState::default() };
        for role in [DefinitionRole::Template, DefinitionRole::Appliance] {
            desired.read_definitions(tree, role, &mut diagnostics);
        }
        desired.report_strays(tree, &mut diagnostics);
        desired.check_templates(&mut diagnostics);
        let appliances = match regular_file(tree, APPLIANCES_FILE, &mut diagnostics) {
            None => Appliances::default(),
            Some(bytes) => {
                let (appliances, faults) = read_appliances(bytes, &desired.configuration);
                diagnostics.extend(faults);
                appliances
            }
        };
        desired.check_named(&appliances, &mut diagnostics);
        desired.appliances = appliances.by_name;
        (desired, diagnostics)
    }

    fn read_definitions(
        &mut self,
        tree: &SourceTree,
        role: DefinitionRole,
        diagnostics: &mut Vec<Diagnostic>,
    ) {
        for (path, _) in tree.below(role.directory()) {
            let Some(name) = path.strip_suffix(".ldf").filter(|name| !name.contains('/')) else {
                continue;
            };
            let file = format!("{}/{path}", role.directory());
            let name = match CompositionName::new(name) {
                Ok(name) => name,
                Err(error) => {
                    diagnostics.push(Diagnostic::error(&file, 0, "name", error.to_string()));
                    continue;
                }
            };
            if let Some(first) = self.definitions.get(&name) {
                let message =
                    format!("{} defines {name} already; the two share one name space", first.file);
                diagnostics.push(Diagnostic::error(&file, 0, "duplicate-definition", message));
                continue;
            }
            let (ldf, partial) = match regular_file(tree, &file, diagnostics) {
                None => (Ldf::default(), true),
                Some(bytes) => read_ldf(&file, bytes, diagnostics),
            };
            let directory = format!("{}/{name}", role.directory());
            let (own, faults) = TemplateTree::read(tree, &directory, &name);
            let before = diagnostics.len();
            diagnostics.extend(faults);
            let data = read_data(tree, &format!("{directory}.data"), diagnostics);
            let health = read_health(tree, &format!("{directory}.health"), diagnostics);
            let partial = partial || diagnostics.len() > before;
            let definition = Definition { name, role, file, ldf, partial, tree: own, data, health };
            self.definitions.insert(definition.name.clone(), definition);
        }
    }

    /// What is said of an LDF that is not there would be ignored in silence.
    fn check_templates(&self, diagnostics: &mut Vec<Diagnostic>) {
        let filtered = self.configuration.templates.iter().map(|known| (&known.name, known.line));
        let scheduled = self.configuration.scheduled.iter().map(|named| (&named.value, named.line));
        for (name, line) in filtered.chain(scheduled) {
            if !self.definitions.contains_key(name) {
                let message = format!("there is no LDF of {name}");
                let fault =
                    Diagnostic::error(CONFIGURATION_FILE, line, "unknown-template", message);
                diagnostics.push(fault.hint(format!("it would be templates/{name}.ldf")));
            }
        }
    }

    /// Files that belong to no definition are never ignored in silence.
    fn report_strays(&self, tree: &SourceTree, diagnostics: &mut Vec<Diagnostic>) {
        let mut last = String::new();
        for role in [DefinitionRole::Template, DefinitionRole::Appliance] {
            for (path, SourceFile { content }) in tree.below(role.directory()) {
                let (owner, below) = match path.split_once('/') {
                    Some((owner, _)) => (owner, true),
                    None => {
                        let beside = path.strip_suffix(".modes").or(path.strip_suffix(".data"));
                        let beside = beside.or(path.strip_suffix(".health"));
                        (beside.unwrap_or(""), false)
                    }
                };
                let file = format!("{}/{}", role.directory(), path.split('/').next().unwrap_or(""));
                if self.is_in_place_of_tree(role, path) {
                    diagnostics.push(no_tree(&file, content));
                    continue;
                }
                let defined = CompositionName::new(owner)
                    .is_ok_and(|name| self.definitions.get(&name).is_some_and(|d| d.role == role));
                if defined || path.ends_with(".ldf") && !below || file == last {
                    continue;
                }
                let diagnostic = if owner.is_empty() {
                    let message = "the file is neither an LDF, a modes, data or health file nor a configuration tree and is not looked at";
                    Diagnostic::error(&file, 0, "stray-file", message).warning()
                } else {
                    let message = format!(
                        "there is no {}/{owner}.ldf that this belongs to",
                        role.directory()
                    );
                    Diagnostic::error(&file, 0, "no-definition", message)
                };
                diagnostics.push(diagnostic);
                last = file;
            }
        }
        for role in [DefinitionRole::Template, DefinitionRole::Appliance] {
            if tree.get(role.directory()).is_some() {
                let message = "this must be a directory";
                diagnostics.push(Diagnostic::error(
                    role.directory(),
                    0,
                    "not-a-directory",
                    message,
                ));
            }
        }
    }

    /// Whether a path below the role's directory is where the configuration tree of a
    /// definition would be: what is there is no directory, and its VAs would lose the tree.
    fn is_in_place_of_tree(&self, role: DefinitionRole, path: &str) -> bool {
        let name = CompositionName::new(path).ok();
        let definition = name.and_then(|name| self.definitions.get(&name));
        definition.is_some_and(|definition| definition.role == role)
    }

    /// The health checks of every composition that has any, those of its references
    /// first.
    pub fn health_checks(&self) -> BTreeMap<CompositionName, Vec<HealthCheck>> {
        let all = self.definitions.keys().map(|name| {
            let (mut seen, mut checks) = (BTreeSet::new(), Vec::new());
            self.collect_checks(name, &mut seen, &mut checks);
            checks.truncate(limits::HEALTH_CHECKS);
            (name.clone(), checks)
        });
        all.filter(|(_, checks)| !checks.is_empty()).collect()
    }

    fn collect_checks(
        &self,
        name: &CompositionName,
        seen: &mut BTreeSet<CompositionName>,
        checks: &mut Vec<HealthCheck>,
    ) {
        let Some(definition) = self.definitions.get(name) else { return };
        if !seen.insert(name.clone()) {
            return;
        }
        for (_, reference) in definition.ldf.references() {
            self.collect_checks(&reference.name, seen, checks);
        }
        checks.extend(definition.health.iter().cloned());
    }

    fn check_named(&self, appliances: &Appliances, diagnostics: &mut Vec<Diagnostic>) {
        for named in &appliances.named {
            if !self.definitions.contains_key(&named.value) {
                let message = format!("there is no LDF {}", named.value);
                let hint =
                    format!("add {TEMPLATES_REPOSITORY}/{}.ldf, or correct the name", named.value);
                let fault = Diagnostic::error(APPLIANCES_FILE, named.line, "unknown-ldf", message);
                diagnostics.push(fault.hint(hint));
            }
        }
    }
}

/// The bytes of a regular file; a link or a submodule in its place is a fault.
fn regular_file<'t>(
    tree: &'t SourceTree,
    path: &str,
    diagnostics: &mut Vec<Diagnostic>,
) -> Option<&'t [u8]> {
    let what = match &tree.get(path)?.content {
        SourceContent::Regular { bytes, .. } => return Some(bytes),
        SourceContent::Symlink { .. } => "a symbolic link, which Strata never follows",
        SourceContent::Submodule => "a submodule, which Strata never fetches",
    };
    let message = format!("the file is {what}; commit a regular file");
    diagnostics.push(Diagnostic::error(path, 0, "not-a-file", message));
    None
}

/// What stands in the place of a configuration tree.
fn no_tree(file: &str, content: &SourceContent) -> Diagnostic {
    let what = match content {
        SourceContent::Regular { .. } => "a file",
        SourceContent::Symlink { .. } => "a symbolic link, which Strata never follows",
        SourceContent::Submodule => "a submodule, which Strata never fetches",
    };
    let message = format!("the configuration tree is {what}; commit a directory");
    Diagnostic::error(file, 0, "not-a-directory", message)
        .hint("or remove it, if the template is to have no configuration of its own")
}

fn read_data(tree: &SourceTree, file: &str, diagnostics: &mut Vec<Diagnostic>) -> Declared {
    let Some(bytes) = regular_file(tree, file, diagnostics) else { return Declared::new() };
    let (declared, faults) = data_paths::parse(bytes);
    diagnostics.extend(faults.iter().map(|fault| Diagnostic::located(file, "data", fault)));
    declared
}

fn read_health(
    tree: &SourceTree,
    file: &str,
    diagnostics: &mut Vec<Diagnostic>,
) -> Vec<HealthCheck> {
    let Some(bytes) = regular_file(tree, file, diagnostics) else { return Vec::new() };
    let (checks, faults) = HealthCheck::read(file, bytes);
    diagnostics.extend(faults);
    checks
}

/// Parses an LDF. Where lines have faults, the others are still returned, at
/// their places, so that their own faults can be found in the same pass.
fn read_ldf(file: &str, bytes: &[u8], diagnostics: &mut Vec<Diagnostic>) -> (Ldf, bool) {
    let faults = match Ldf::parse(bytes) {
        Ok(ldf) => return (ldf, false),
        Err(faults) => faults,
    };
    diagnostics.extend(faults.iter().map(|fault| Diagnostic::located(file, "ldf", fault)));
    let faulty: BTreeSet<u32> = faults.iter().map(|fault| fault.line).collect();
    let mut rest = Vec::with_capacity(bytes.len());
    for (number, line) in (1u32..).zip(bytes.split_inclusive(|b| *b == b'\n')) {
        if faulty.contains(&number) {
            rest.extend_from_slice(b"#\n");
        } else {
            rest.extend_from_slice(line);
        }
    }
    (Ldf::parse(&rest).unwrap_or_default(), true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostic::Severity;

    fn tree(files: &[(&str, &str)]) -> SourceTree {
        let mut tree = SourceTree::default();
        for (path, text) in files {
            let content = SourceContent::Regular { bytes: (*text).into(), executable: false };
            tree.insert(path.as_bytes(), content).expect("a path");
        }
        tree
    }

    #[test]
    fn a_whole_repository() {
        let (desired, faults) = DesiredState::read(&tree(&[
            ("README.md", "people's"),
            ("strata.toml", "[[repository]]\nname = \"main\"\n"),
            ("templates/web.ldf", "main/apache2 1\n"),
            ("templates/web/etc/motd", "hello\n"),
            ("templates/web.health", "[[check]]\ntcp = \"{name}:80\"\n"),
            ("appliances/web-03.ldf", "@web\n"),
            (
                "appliances.toml",
                "[[appliance]]\nname = \"w\"\nmac = \"52:54:00:00:00:01\"\nldf = \"web-03\"\n",
            ),
        ]));
        assert_eq!(faults, []);
        assert_eq!(desired.definitions.len(), 2);
        let web = desired.definitions.values().next().expect("web");
        assert!(web.tree.is_some() && web.role == DefinitionRole::Template);
        assert_eq!(desired.appliances.len(), 1);
        let checks = desired.health_checks();
        assert_eq!(checks.len(), 2, "those of references count: {checks:?}");
    }

    #[test]
    fn an_empty_source_is_refused() {
        let (_, faults) = DesiredState::read(&SourceTree::default());
        assert_eq!(faults[0].code, "no-configuration");
    }

    #[test]
    fn a_window_for_nobody_is_a_fault() {
        let configuration = "[[repository]]\nname = \"main\"\n[[rollout.freeze]]\nfrom = \"2026-12-01 00:00\"\nto = \"2026-12-02 00:00\"\nzone = \"UTC\"\ntemplates = [\"web\", \"wbe\"]\n";
        let (_, faults) = DesiredState::read(&tree(&[
            ("strata.toml", configuration),
            ("templates/web.ldf", "main/apache2 1\n"),
        ]));
        let faults: Vec<_> = faults.iter().map(|f| (f.line, f.code, f.message.as_str())).collect();
        assert_eq!(faults, [(7, "unknown-template", "there is no LDF of wbe")]);
    }

    /// Else its configuration would be taken from all VAs without a word.
    #[test]
    fn what_stands_in_the_place_of_a_configuration_tree_is_a_fault() {
        let regular = SourceContent::Regular { bytes: Vec::new(), executable: false };
        for (content, what) in [
            (regular, "a file"),
            (SourceContent::Symlink { target: b"../conf".to_vec() }, "a symbolic link"),
            (SourceContent::Submodule, "a submodule"),
        ] {
            let mut files = tree(&[
                ("strata.toml", "[[repository]]\nname = \"main\"\n"),
                ("templates/web.ldf", "main/apache2 1\n"),
                ("conf/etc/motd", "hello\n"),
            ]);
            files.insert(b"templates/web", content).expect("a path");
            let (_, faults) = DesiredState::read(&files);
            let [fault] = faults.as_slice() else { panic!("{faults:?}") };
            assert_eq!((fault.file.as_str(), fault.severity), ("templates/web", Severity::Error));
            assert!(fault.message.contains(what), "{fault}");
        }
    }

    #[test]
    fn every_fault_at_once() {
        let mut files = tree(&[
            ("strata.toml", "[[repository]]\nname = \"main\"\n"),
            ("templates/web.ldf", "main/apache2 1\nnonsense\nmain/x 1\n"),
            ("templates/web.data", "# queue\n/var/spool\nvar/lib\n"),
            ("templates/gone.data", "/x\n"),
            ("templates/.hidden.ldf", ""),
            ("templates/lost/etc/motd", ""),
            ("templates/notes.txt", ""),
            ("appliances/web.ldf", "main/apache2 1\n"),
            ("appliances.toml", "[[appliance]]\nname = \"w\"\nmac = \"x\"\nldf = \"nobody\"\n"),
        ]);
        let link = SourceContent::Symlink { target: b"/etc/passwd".to_vec() };
        files.insert(b"templates/link.ldf", link).expect("a path");
        let (desired, mut faults) = DesiredState::read(&files);
        faults.sort();
        let found: Vec<_> = faults.iter().map(|f| (f.file.as_str(), f.line, f.code)).collect();
        assert_eq!(
            found,
            [
                ("appliances.toml", 3, "value"),
                ("appliances.toml", 4, "unknown-ldf"),
                ("appliances/web.ldf", 0, "duplicate-definition"),
                ("templates/.hidden.ldf", 0, "name"),
                ("templates/gone.data", 0, "no-definition"),
                ("templates/link.ldf", 0, "not-a-file"),
                ("templates/lost", 0, "no-definition"),
                ("templates/notes.txt", 0, "stray-file"),
                ("templates/web.data", 3, "data"),
                ("templates/web.ldf", 2, "ldf"),
            ]
        );
        let web = &desired.definitions.values().find(|d| d.name.as_str() == "web").expect("web");
        assert!(web.partial);
        let lines: Vec<_> = web.ldf.explicit().map(|(line, _)| line).collect();
        assert_eq!(lines, [1, 3], "the other lines keep their places");
    }
}
