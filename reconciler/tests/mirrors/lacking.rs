//! `strata repo mirror` of what the source does not have: a place without a network must not
//! be believed complete.

use std::fs;

use strata_store::Store;

use crate::support::{Bench, text};

#[test]
fn what_is_not_there_is_a_failure() {
    let bench = Bench::new();
    bench.configure(text(&bench.path("published/main")), "");
    let mirror = |more: &[&str]| {
        let output =
            bench.strata(&bench.reader, &[&["repo", "mirror", &bench.gitops()], more].concat());
        assert_eq!(output.status.code(), Some(1), "{more:?}: {output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let said = mirror(&["main/zz", "main/app"]);
    assert!(said.contains("mirrored main/app 1\n"), "{said}");
    assert!(said.contains("failed main/zz: the repository has no such layer\n"), "{said}");
    assert!(said.contains(" 1 failed\n"), "{said}");
    for (ldf, told) in [
        (
            "main/lib 7\n",
            "failed main/lib 7: an LDF names it, and the repository does not have it\n  hint: it has 1:2\n",
        ),
        ("main/zz 1\n", "failed main/zz 1: an LDF names it"),
        ("main/lib\n", "failed main/lib: templates/web.ldf:1 names no version\n"),
        ("main/lib 1:2 x\n", "templates/web.ldf:1"),
    ] {
        fs::write(bench.path("gitops/templates/web.ldf"), ldf).expect("written");
        let said = mirror(&[]);
        assert!(said.contains(told), "{ldf}: {said}");
    }
    bench.good(&bench.owner, &["layer", "withdraw", "main/app", "1", "--reason", "CVE"]);
    bench.publish();
    let said = mirror(&["main/app"]);
    assert!(said.contains("failed main/app: all its versions are withdrawn\n"), "{said}");
    fs::write(bench.path("gitops/templates/web.ldf"), "main/lib 1:2\n").expect("written");
    bench.mirror();
}

/// An owner who takes a unit as it was changed (`strata repo index --accept`) gives the readers
/// who have no such layer yet what the database says, and the others no second unit of one name.
#[test]
fn a_unit_that_its_owner_changed_is_published_anew_and_refused_where_it_is() {
    let bench = Bench::new();
    bench.configure(text(&bench.path("published/main")), "");
    let (directory, metadata) =
        (bench.gitops(), bench.path("owner/repos/main/app_1").join("metadata"));
    let other = Store::init(&bench.path("other")).expect("a store");
    bench.good(&bench.reader, &["repo", "mirror", &directory]);
    let changed = fs::read_to_string(&metadata).expect("there") + "Description: another\n";
    fs::remove_file(&metadata).expect("removed");
    fs::write(&metadata, changed).expect("written");
    bench.good(&bench.owner, &["repo", "index", "main", "--accept", "app 1"]);
    bench.publish();
    let said = bench.good(&other, &["repo", "mirror", &directory]);
    assert!(said.contains("mirrored main/app 1\n"), "{said}");
    let said = bench.refused(&["repo", "sync", &directory]);
    assert!(said.contains("app 1 is another unit than the one that is here"), "{said}");
    assert!(said.contains("  hint: ") && said.contains("strata layer users main/app 1"), "{said}");
    // Once it is gone, the other one comes.
    fs::remove_dir_all(bench.path("reader/repos/main/app_1")).expect("removed");
    bench.good(&bench.reader, &["repo", "mirror", &directory]);
    bench.good(&bench.reader, &["repo", "verify", "main"]);
}
