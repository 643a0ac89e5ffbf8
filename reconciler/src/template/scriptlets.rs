//! The scriptlets of a build's RPM packages, as `strata_import::rpm::plan` orders them.
//!
//! Where the layers have rpm itself, its database hears of every package first. As with rpm,
//! a `%pre` or `%pretrans` that fails ends the build; of others that fail a warning is left.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::path::Path;
use std::process::Stdio;

use strata_import::rooted::Rooted;
use strata_import::rpm::package::Package;
use strata_import::rpm::plan::{Former, Plan, Step, plan};
use strata_import::rpm::register;

use super::BuildError;
use super::sandbox::Sandbox;
use super::scripts::Ran;

const RPM: &str = "usr/bin/rpm";
/// Below it nothing of a build is kept.
const SCRATCH: &str = "var/tmp/strata-build";
/// Directories of programs, as rpm's `%_install_script_path` has them, and no service manager
/// (systemctl(1)): enabling a service writes its links.
const ENVIRONMENT: [(&str, &str); 3] =
    [("PATH", "/sbin:/bin:/usr/sbin:/usr/bin"), ("HOME", "/root"), ("SYSTEMD_OFFLINE", "1")];
/// Forgets packages, and nothing else.
const FORGET: [&str; 6] = ["rpm", "-e", "--justdb", "--nodeps", "--noscripts", "--notriggers"];
/// Takes packages for installed whatever it thinks of them: what there is was decided elsewhere.
const TAKE: [&str; 13] = [
    "rpm",
    "-U",
    "--justdb",
    "--nodeps",
    "--noorder",
    "--nosignature",
    "--nodigest",
    "--ignorearch",
    "--ignoreos",
    "--ignoresize",
    "--oldpackage",
    "--replacepkgs",
    "--replacefiles",
];
/// Packages that one call of rpm is given.
const AT_ONCE: usize = 500;

/// Registers the packages and runs everything.
///
/// # Errors
/// A script that must not fail does, or rpm does not take a package.
pub fn run(
    sandbox: &Sandbox,
    packages: &BTreeMap<String, Package>,
    former: &BTreeMap<String, Former>,
    observe: &dyn Fn(&str),
) -> Result<Ran, BuildError> {
    let tree = sandbox.tree()?;
    let plan = plan(packages, former);
    let has_rpm = tree.exists(Path::new(RPM))?;
    let lua = plan.steps.iter().find(|step| step.scriptlet.is_lua());
    if let Some(step) = lua.filter(|_| !has_rpm) {
        return Err(BuildError::Lua { what: step.what, package: step.package.clone() });
    }
    let gone = |package: &String| {
        format!("{package} is replaced or gone, and so is its unit: its scripts could not be run")
    };
    let warnings = plan.unknown.iter().map(gone).collect();
    let mut ran = Ran { warnings, configured: plan.installed.len(), ..Ran::default() };
    if has_rpm {
        register_all(sandbox, &tree, packages, &plan, observe)?;
    }
    for step in &plan.steps {
        ran.scripts += 1;
        match scriptlet(sandbox, &tree, step, observe) {
            Err(BuildError::Failed { what, status, output }) if !step.must_succeed => {
                let output = output.replace('\n', "\n  ");
                ran.warnings.push(format!("{what} failed with {status}, as rpm warns: {output}"));
            }
            other => other?,
        }
    }
    Ok(ran)
}

/// Tells rpm's database which packages there are.
fn register_all(
    sandbox: &Sandbox,
    tree: &Rooted,
    packages: &BTreeMap<String, Package>,
    plan: &Plan,
    observe: &dyn Fn(&str),
) -> Result<(), BuildError> {
    observe(&format!("registering {} packages with rpm", plan.installed.len()));
    for names in plan.erased.chunks(AT_ONCE) {
        let words = FORGET.into_iter().chain(names.iter().map(String::as_str));
        sandbox.run("rpm -e --justdb", &ENVIRONMENT, &words.collect::<Vec<_>>())?;
    }
    for names in plan.installed.chunks(AT_ONCE) {
        let mut files = Vec::new();
        for package in names.iter().filter_map(|name| packages.get(name)) {
            let path = Path::new(SCRATCH).join(format!("{}.rpm", package.name));
            tree.write(&path, &register::package(&package.header), 0o600)?;
            files.push(path);
        }
        let shown: Vec<_> = files.iter().map(|path| format!("/{}", path.display())).collect();
        let words = TAKE.into_iter().chain(shown.iter().map(String::as_str));
        sandbox.run("rpm -U --justdb", &ENVIRONMENT, &words.collect::<Vec<_>>())?;
        for path in &files {
            tree.remove(path)?;
        }
        let words = ["rpm", "-q"].into_iter().chain(names.iter().map(String::as_str));
        sandbox.run("rpm -q", &ENVIRONMENT, &words.collect::<Vec<_>>())?;
    }
    Ok(())
}

/// Runs one scriptlet as rpm does: its text in a file that the interpreter reads.
fn scriptlet(
    sandbox: &Sandbox,
    tree: &Rooted,
    step: &Step,
    observe: &dyn Fn(&str),
) -> Result<(), BuildError> {
    let what = format!("{} of {}", step.what, step.package);
    observe(&what);
    let path = Path::new(SCRATCH).join("scriptlet");
    let place = format!("/{}", path.display());
    let arguments: Vec<String> = step.arguments.iter().map(ToString::to_string).collect();
    let mut words: Vec<String> = step.scriptlet.program.clone();
    if let Some(text) = &step.scriptlet.text {
        if step.scriptlet.is_lua() {
            // On one line with the first, so that errors name the right one.
            let start = format!("local arg = {{'<lua>', {}}}; ", arguments.join(", "));
            tree.write(&path, &[start.as_bytes(), text].concat(), 0o600)?;
            words = vec!["rpm".into(), "--eval".into(), format!("%{{lua:dofile('{place}')}}")];
        } else {
            tree.write(&path, text, 0o700)?;
            words.push(place);
            words.extend(arguments);
        }
    }
    let input = match &step.input {
        Some(input) => fed(input)?,
        None => Stdio::null(),
    };
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let ran = sandbox.run_fed(&what, &ENVIRONMENT, &words, input);
    tree.remove(&path)?;
    ran.map(|_output| ())
}

/// Something to read: a file without a name, as it may be longer than a pipe takes.
fn fed(input: &[u8]) -> Result<Stdio, BuildError> {
    let write = || -> std::io::Result<File> {
        let mut file = tempfile::tempfile()?;
        file.write_all(input)?;
        file.rewind()?;
        Ok(file)
    };
    let at = |source| BuildError::Io { path: std::env::temp_dir(), source };
    write().map(Stdio::from).map_err(at)
}
