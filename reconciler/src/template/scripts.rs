//! The maintainer scripts of a build, as `strata_import::dpkg::plan` orders them.

use std::collections::BTreeMap;
use std::path::Path;

use strata_import::dpkg::{self, Package, Plan, Script, database};
use strata_import::rooted::Rooted;

use super::BuildError;
use super::sandbox::Sandbox;

/// Nothing starts a service in a build: Debian's invoke-rc.d(8) and
/// deb-systemd-invoke(1p) ask this program.
const POLICY: &[u8] = b"#!/bin/sh\nexit 101\n";
const POLICY_PATH: &str = "usr/sbin/policy-rc.d";
const AWK: &str = "usr/bin/awk";

/// How much was run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ran {
    pub scripts: usize,
    pub configured: usize,
    /// What went wrong without ending the build.
    pub warnings: Vec<String>,
}

/// Writes dpkg's database and runs everything.
///
/// # Errors
/// A script fails, or dpkg finds its packages out of order afterwards.
pub fn run(
    sandbox: &Sandbox,
    packages: &BTreeMap<String, Package>,
    observe: &dyn Fn(&str),
) -> Result<Ran, BuildError> {
    let tree = sandbox.tree()?;
    let former = dpkg::read_former(&tree)?;
    let plan = dpkg::plan(packages, &former);
    let mut ran = Ran::default();
    tree.write(Path::new(POLICY_PATH), POLICY, 0o755)?;
    for script in &plan.before {
        ran.scripts += old_script(sandbox, &tree, script, observe)?;
    }
    for script in &plan.upgrade {
        ran.scripts += staged_script(sandbox, &tree, packages, script, observe)?;
    }
    for script in &plan.after {
        ran.scripts += old_script(sandbox, &tree, script, observe)?;
    }
    database::write(&tree, packages, &former)?;
    prepare_awk(&tree, &plan)?;
    for group in &plan.groups {
        for script in &group.install {
            let path = database::info_script(&script.database_name, script.script);
            maintainer_script(sandbox, &path, script, observe)?;
            ran.scripts += 1;
        }
        if !group.configure.is_empty() {
            observe(&format!("configuring {} packages", group.configure.len()));
            let mut words = vec!["dpkg", "--configure"];
            words.extend(group.configure.iter().map(String::as_str));
            sandbox.run("dpkg --configure", &[], &words)?;
            ran.configured += group.configure.len();
        }
    }
    sandbox.run("dpkg --configure --pending", &[], &["dpkg", "--configure", "--pending"])?;
    let audit = sandbox.run("dpkg --audit", &[], &["dpkg", "--audit"])?;
    if !audit.is_empty() {
        return Err(BuildError::Audit(audit));
    }
    Ok(ran)
}

/// A script of the old version, where it has one. Returns how many were run.
fn old_script(
    sandbox: &Sandbox,
    tree: &Rooted,
    script: &Script,
    observe: &dyn Fn(&str),
) -> Result<usize, BuildError> {
    let path = database::info_script(&script.database_name, script.script);
    if !tree.exists(&path)? {
        return Ok(0);
    }
    maintainer_script(sandbox, &path, script, observe)?;
    Ok(1)
}

/// `preinst` of the new version, which is not in the database yet.
fn staged_script(
    sandbox: &Sandbox,
    tree: &Rooted,
    packages: &BTreeMap<String, Package>,
    script: &Script,
    observe: &dyn Fn(&str),
) -> Result<usize, BuildError> {
    let Some(package) = packages.get(&script.package) else { return Ok(0) };
    if package.member(script.script).is_none() {
        return Ok(0);
    }
    database::stage(tree, package)?;
    maintainer_script(sandbox, &database::staged_script(script.script), script, observe)?;
    database::unstage(tree)?;
    Ok(1)
}

/// Runs a script as dpkg does (deb-preinst(5), dpkg(1) "Internal environment").
fn maintainer_script(
    sandbox: &Sandbox,
    path: &Path,
    script: &Script,
    observe: &dyn Fn(&str),
) -> Result<(), BuildError> {
    let what = format!("{} {} of {}", script.script, script.arguments.join(" "), script.package);
    observe(&what);
    let environment = [
        ("DPKG_MAINTSCRIPT_PACKAGE", script.package.as_str()),
        ("DPKG_MAINTSCRIPT_NAME", script.script),
        ("DPKG_MAINTSCRIPT_ARCH", script.architecture.as_str()),
        ("DPKG_MAINTSCRIPT_PACKAGE_REFCOUNT", "1"),
        ("DPKG_RUNNING_VERSION", "1.21"),
        ("DPKG_ADMINDIR", "/var/lib/dpkg"),
        ("DPKG_ROOT", ""),
    ];
    let program = format!("/{}", path.display());
    let mut words = vec![program.as_str()];
    words.extend(script.arguments.iter().map(String::as_str));
    sandbox.run(&what, &environment, &words)?;
    Ok(())
}

/// The scripts of essential packages need an awk before the package that has one is
/// configured; its own `postinst` replaces this link.
fn prepare_awk(tree: &Rooted, plan: &Plan) -> Result<(), BuildError> {
    if let Some(program) = plan.awk
        && !tree.exists(Path::new(AWK))?
    {
        tree.link(Path::new(AWK), Path::new(program))?;
    }
    Ok(())
}
