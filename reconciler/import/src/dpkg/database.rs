//! dpkg's database in an appliance's tree (`/var/lib/dpkg`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use strata_core::deb822;
use strata_core::version::LayerVersion;

use super::package::Package;
use crate::rooted::{Rooted, RootedError};

/// Bytes of `status`.
const STATUS_BYTES: u64 = 64 << 20;
const ADMIN: &str = "var/lib/dpkg";

#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error(transparent)]
    Rooted(#[from] RootedError),
    #[error("/var/lib/dpkg/status of the former configuration layer: {0}")]
    Status(String),
}

/// A package of a former database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Former {
    pub version: LayerVersion,
    /// As in `libc6:amd64`.
    pub database_name: String,
    /// Whether it has been configured.
    pub installed: bool,
    /// Its stanza in `status`.
    stanza: String,
}

#[cfg(test)]
impl Former {
    pub(super) fn for_tests(name: &str, version: &str) -> Self {
        let version = LayerVersion::new(version).expect("valid");
        let stanza = format!("Package: {name}\nStatus: install ok installed\n");
        Former { version, database_name: name.to_owned(), installed: true, stanza }
    }
}

/// The packages of the database in a tree, by name; none where there is no database.
///
/// # Errors
/// It cannot be read.
pub fn read_former(tree: &Rooted) -> Result<BTreeMap<String, Former>, DatabaseError> {
    let Some(status) = tree.read(&admin("status"), STATUS_BYTES)? else {
        return Ok(BTreeMap::new());
    };
    let fault = |reason: String| DatabaseError::Status(reason);
    let text = String::from_utf8(status).map_err(|error| fault(error.to_string()))?;
    let mut former = BTreeMap::new();
    // Stanza by stanza, as those that stay are kept byte for byte.
    for raw in text.split("\n\n").map(str::trim).filter(|raw| !raw.is_empty()) {
        let stanzas = deb822::parse(raw.as_bytes()).map_err(|error| fault(error.to_string()))?;
        let Some(stanza) = stanzas.first() else { continue };
        let value = |name: &str| stanza.get(name).map_or("", |field| field.value);
        let (name, state) = (value("Package"), value("Status"));
        if !state.ends_with(" installed") && !state.ends_with(" unpacked") {
            continue;
        }
        let version = LayerVersion::new(value("Version"))
            .map_err(|error| fault(format!("the version of {name}: {error}")))?;
        let database_name = match value("Multi-Arch") {
            "same" => format!("{name}:{}", value("Architecture")),
            _ => name.to_owned(),
        };
        let installed = state.ends_with(" installed");
        let stanza = format!("{raw}\n");
        former.insert(name.to_owned(), Former { version, database_name, installed, stanza });
    }
    Ok(former)
}

fn admin(below: impl AsRef<Path>) -> PathBuf {
    Path::new(ADMIN).join(below)
}

/// Where a script of a package that is about to be installed stands for its `preinst`.
pub fn staged_script(script: &str) -> PathBuf {
    admin("tmp.ci").join(script)
}

/// Where a script of a package in the database stands.
pub fn info_script(database_name: &str, script: &str) -> PathBuf {
    admin("info").join(format!("{database_name}.{script}"))
}

/// Puts the control members of a package where dpkg has them while `preinst` runs.
///
/// # Errors
/// They cannot be written.
pub fn stage(tree: &Rooted, package: &Package) -> Result<(), RootedError> {
    for (name, content) in package.members() {
        tree.write(&staged_script(name), content, mode_of(name))?;
    }
    Ok(())
}

/// Removes what [`stage`] wrote.
///
/// # Errors
/// It cannot be removed.
pub fn unstage(tree: &Rooted) -> Result<(), RootedError> {
    for name in tree.list(&admin("tmp.ci"))? {
        tree.remove(&admin("tmp.ci").join(name))?;
    }
    Ok(())
}

fn mode_of(member: &str) -> u32 {
    match member {
        "preinst" | "postinst" | "prerm" | "postrm" | "config" => 0o755,
        _ => 0o644,
    }
}

/// Writes the database: all of `packages` as unpacked, except those that `former` has
/// at the same version, which stay as they are. What `former` has and `packages` has
/// not is forgotten.
///
/// # Errors
/// It cannot be written.
pub fn write(
    tree: &Rooted,
    packages: &BTreeMap<String, Package>,
    former: &BTreeMap<String, Former>,
) -> Result<(), RootedError> {
    for directory in ["info", "updates", "parts", "alternatives", "triggers"] {
        tree.make_directories(&admin(directory))?;
    }
    tree.write(&admin("info/format"), b"1\n", 0o644)?;
    for empty in ["available", "diversions", "statoverride"] {
        if !tree.exists(&admin(empty))? {
            tree.write(&admin(empty), b"", 0o644)?;
        }
    }
    let same = |package: &Package| {
        former.get(&package.name).is_some_and(|former| former.version == package.version)
    };
    for (name, former) in former {
        if packages.get(name).is_none_or(|package| !same(package)) {
            remove_info(tree, &former.database_name)?;
        }
    }
    let mut status = String::new();
    for package in packages.values() {
        let before = former.get(&package.name);
        match before {
            Some(former) if same(package) => status.push_str(&former.stanza),
            _ => {
                let configured = before.filter(|former| former.installed);
                let configured = configured.map(|former| &former.version);
                status.push_str(&package.status("install ok unpacked", configured));
                write_info(tree, package)?;
            }
        }
        status.push('\n');
    }
    tree.write(&admin("status"), status.as_bytes(), 0o644)?;
    write_triggers(tree, packages)
}

fn write_info(tree: &Rooted, package: &Package) -> Result<(), RootedError> {
    let name = package.database_name();
    tree.write(&info_script(&name, "list"), &package.list(), 0o644)?;
    for (member, content) in package.members() {
        tree.write(&info_script(&name, member), content, mode_of(member))?;
    }
    Ok(())
}

fn remove_info(tree: &Rooted, database_name: &str) -> Result<(), RootedError> {
    let prefix = format!("{database_name}.");
    for name in tree.list(&admin("info"))? {
        let own = name.to_str().and_then(|name| name.strip_prefix(&prefix));
        // `a.b.list` is of a package `a.b`, not of `a`.
        if own.is_some_and(|member| !member.contains('.')) {
            tree.remove(&admin("info").join(&name))?;
        }
    }
    Ok(())
}

/// Who is interested in which trigger: dpkg notes that when it unpacks.
fn write_triggers(tree: &Rooted, packages: &BTreeMap<String, Package>) -> Result<(), RootedError> {
    let mut files = String::new();
    let mut named: BTreeMap<String, String> = BTreeMap::new();
    for package in packages.values() {
        let text = String::from_utf8_lossy(package.member("triggers").unwrap_or_default());
        for line in text.lines() {
            let Some((trigger, awaited)) = interest(line) else { continue };
            let suffix = if awaited { "" } else { "/noawait" };
            let who = format!("{}{suffix}\n", package.database_name());
            if trigger.starts_with('/') {
                files.push_str(&format!("{trigger} {who}"));
            } else {
                named.entry(trigger.to_owned()).or_default().push_str(&who);
            }
        }
    }
    for name in tree.list(&admin("triggers"))? {
        if name != "Lock" && name != "Unincorp" {
            tree.remove(&admin("triggers").join(name))?;
        }
    }
    tree.write(&admin("triggers/File"), files.as_bytes(), 0o644)?;
    if !tree.exists(&admin("triggers/Unincorp"))? {
        tree.write(&admin("triggers/Unincorp"), b"", 0o644)?;
    }
    for (name, who) in named {
        // No trigger's name may lead elsewhere.
        if !name.contains('/') && !name.starts_with('.') {
            tree.write(&admin("triggers").join(name), who.as_bytes(), 0o644)?;
        }
    }
    Ok(())
}

/// The trigger that a line of `triggers` is interested in, and whether it is awaited.
fn interest(line: &str) -> Option<(&str, bool)> {
    let line = line.split('#').next().unwrap_or_default();
    let mut words = line.split_whitespace();
    let awaited = match words.next()? {
        "interest" | "interest-await" => true,
        "interest-noawait" => false,
        _ => return None,
    };
    Some((words.next()?, awaited))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dpkg::package::tests::package;

    #[test]
    fn what_was_written_is_read_and_gone_packages_are_forgotten() {
        let directory = tempfile::tempdir().expect("a directory");
        let tree = Rooted::open(directory.path()).expect("opened");
        let set = |packages: Vec<Package>| -> BTreeMap<String, Package> {
            packages.into_iter().map(|package| (package.name.clone(), package)).collect()
        };
        let first = set(vec![
            package("libc6", "1", "Multi-Arch: same\n", &["postinst"]),
            package("libc6.dev", "1", "", &["prerm"]),
        ]);
        write(&tree, &first, &BTreeMap::new()).expect("written");
        let info = |name: &str| directory.path().join("var/lib/dpkg/info").join(name);
        assert!(info("libc6:amd64.postinst").exists() && info("libc6.dev.prerm").exists());
        let former = read_former(&tree).expect("read");
        assert_eq!(former["libc6"].database_name, "libc6:amd64");
        assert!(!former["libc6"].installed);
        write(&tree, &set(vec![package("libc6.dev", "2", "", &[])]), &former).expect("written");
        assert!(!info("libc6:amd64.postinst").exists() && !info("libc6.dev.prerm").exists());
        assert!(info("libc6.dev.list").exists());
        let former = read_former(&tree).expect("read");
        assert_eq!(former.keys().collect::<Vec<_>>(), ["libc6.dev"]);
    }

    #[test]
    fn triggers_are_noted_for_those_who_are_interested() {
        assert_eq!(
            interest("interest-noawait /usr/share/man # x"),
            Some(("/usr/share/man", false))
        );
        assert_eq!(interest("interest ldconfig"), Some(("ldconfig", true)));
        assert_eq!(interest("activate-noawait ldconfig"), None);
        assert_eq!(interest("# comment"), None);
        assert_eq!(interest("interest"), None);
    }
}
