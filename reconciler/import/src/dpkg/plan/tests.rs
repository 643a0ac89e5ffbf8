use super::*;
use crate::dpkg::package::tests::package;

fn set(packages: &[Package]) -> BTreeMap<String, Package> {
    packages.iter().map(|package| (package.name.clone(), package.clone())).collect()
}

fn before(name: &str, version: &str) -> (String, Former) {
    (name.to_owned(), Former::for_tests(name, version))
}

fn words(scripts: &[Script]) -> Vec<String> {
    let shown = |script: &Script| {
        format!("{} {} {}", script.package, script.script, script.arguments.join(" "))
    };
    scripts.iter().map(shown).collect()
}

#[test]
fn a_first_build_makes_accounts_then_an_awk_then_what_is_essential() {
    let packages = set(&[
        package("libc6", "1", "", &[]),
        package("base-passwd", "1", "Depends: libc6\nEssential: yes\n", &["preinst", "postinst"]),
        package("mawk", "1", "Pre-Depends: libc6\nProvides: awk\n", &["postinst"]),
        package("bash", "1", "Essential: yes\nPre-Depends: libtinfo6 | libtinfo5\n", &["preinst"]),
        package("libtinfo6", "1", "Depends: libc6\n", &[]),
        package("adduser", "1", "Depends: passwd\n", &[]),
        package("passwd", "1", "", &["preinst"]),
        package("apache2", "1", "Depends: perl:any (>= 5), awk\n", &["preinst", "postinst"]),
    ]);
    let plan = plan(&packages, &BTreeMap::new());
    assert_eq!(plan.awk, Some("mawk"));
    let configured: Vec<_> = plan.groups.iter().map(|group| group.configure.join(" ")).collect();
    let wanted = ["", "libc6 mawk", "base-passwd bash libtinfo6", "adduser passwd", "apache2"];
    assert_eq!(configured, wanted);
    let scripts: Vec<_> =
        plan.groups.iter().map(|group| words(&group.install).join("; ")).collect();
    let wanted = [
        "base-passwd preinst install",
        "",
        "bash preinst install",
        "passwd preinst install",
        "apache2 preinst install",
    ];
    assert_eq!(scripts, wanted);
    assert!(plan.before.is_empty() && plan.upgrade.is_empty() && plan.after.is_empty());
}

#[test]
fn an_upgrade_runs_the_scripts_that_dpkg_runs() {
    let packages = set(&[
        package("apache2", "2", "", &["preinst", "postinst"]),
        package("same", "1", "", &["preinst"]),
    ]);
    let former = [before("apache2", "1"), before("same", "1"), before("gone", "1")].into();
    let plan = plan(&packages, &former);
    assert_eq!(words(&plan.before), ["apache2 prerm upgrade 2", "gone prerm remove"]);
    assert_eq!(words(&plan.upgrade), ["apache2 preinst upgrade 1 2"]);
    let after = ["apache2 postrm upgrade 2", "gone postrm remove", "gone postrm purge"];
    assert_eq!(words(&plan.after), after);
    let groups: Vec<_> = plan.groups.iter().flat_map(|group| &group.configure).collect();
    assert_eq!(groups, ["apache2"]);
    assert!(plan.groups.iter().all(|group| group.install.is_empty()));
}

#[test]
fn nothing_changed_is_nothing_to_do() {
    let packages = set(&[package("same", "1", "", &["preinst"])]);
    assert!(plan(&packages, &[before("same", "1")].into()).is_empty());
}
