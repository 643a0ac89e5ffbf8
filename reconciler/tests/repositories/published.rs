//! Where a repository is published: in a directory that is its alone.

use std::fs;

use crate::killed::killed;
use crate::support::{Bench, text};

#[test]
fn nothing_is_published_into_the_store_or_among_files_of_others() {
    let bench = Bench::new();
    bench.layer("main", "app", "1", &[("usr/bin/app", "one")]);
    bench.layer("two", "app", "1", &[("usr/bin/app", "two")]);
    for inside in ["store", "store/repos", "store/repos/main", "store/new/deep"] {
        let said = bench.bad(&["repo", "publish", "main", text(&bench.path(inside))]);
        assert!(said.contains("is in the store itself") && said.contains("\nhint: "), "{said}");
    }
    assert!(!bench.path("store/new").exists());
    assert!(!bench.path("store/repos/database").exists());
    bench.good(&["layer", "list"]);

    let published = bench.path("published");
    let to = text(&published);
    bench.good(&["repo", "publish", "main", to]);
    let before = fs::read(published.join("database")).expect("there");
    let said = bench.bad(&["repo", "publish", "two", to]);
    assert!(said.contains("has the repository \"main\"; nothing was written"), "{said}");
    assert_eq!(fs::read(published.join("database")).expect("there"), before);
    bench.layer("main", "app", "2", &[("usr/bin/app", "newer")]);
    bench.good(&["repo", "publish", "main", to]);

    let web = bench.path("web");
    fs::create_dir(&web).expect("made");
    fs::write(web.join("index.html"), "hello").expect("written");
    let said = bench.bad(&["repo", "publish", "main", text(&web)]);
    assert!(said.contains("is not empty") && said.contains("index.html"), "{said}");
    assert_eq!(fs::read_dir(&web).expect("listed").count(), 1);
    // What a former version published is named once.
    fs::remove_file(published.join("repository")).expect("removed");
    let said = bench.bad(&["repo", "publish", "main", to]);
    assert!(said.contains(&format!("echo main > {to}/repository")), "{said}");
    fs::write(published.join("repository"), "main\n").expect("written");
    bench.good(&["repo", "publish", "main", to]);
}

#[test]
fn what_a_killed_publication_left_is_removed_by_the_next_one() {
    let bench = Bench::new();
    let noise: String =
        (0..400_000).map(|n: u32| n.wrapping_mul(2_654_435_761).to_string()).collect();
    bench.layer("main", "app", "1", &[("usr/bin/app", &noise)]);
    let published = bench.path("published");
    for moment in [5, 10, 20, 40] {
        killed(bench.command(&["repo", "publish", "main", text(&published)]), moment);
    }
    fs::create_dir_all(&published).expect("made");
    fs::write(published.join(".new-dead"), "half").expect("written");
    bench.good(&["repo", "publish", "main", text(&published)]);
    let names = fs::read_dir(&published)
        .expect("listed")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"));
    let mut names: Vec<_> = names.collect();
    names.sort();
    assert_eq!(names, [".lock", "app_1.tar.zst", "database", "repository"]);
}
