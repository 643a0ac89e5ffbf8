use git2::build::TreeUpdateBuilder;
use git2::{FileMode, Repository};

use super::*;

struct History {
    repository: Repository,
    _directory: tempfile::TempDir,
}

/// Files of a commit, with their texts; `None` where one goes.
type Files<'f> = &'f [(&'f str, Option<&'f str>)];

impl History {
    fn new() -> (Self, Oid) {
        let directory = tempfile::tempdir().expect("a directory");
        let repository = Repository::init_bare(directory.path()).expect("a repository");
        let history = History { repository, _directory: directory };
        let first = history.commit(
            &[],
            "first",
            &[
                ("strata.toml", Some("rings = [\"all\"]\n")),
                ("templates/common.ldf", Some("main/base 1\n")),
                ("templates/web.ldf", Some("@common\nmain/app 1\n")),
                ("templates/web-2.ldf", Some("main/app 1\n")),
                ("templates/sql.ldf", Some("main/sql 1\n")),
                ("notes", Some("one\n")),
            ],
        );
        (history, first)
    }

    fn commit(&self, parents: &[Oid], message: &str, files: Files<'_>) -> Oid {
        let repository = &self.repository;
        let commit = |id: &Oid| repository.find_commit(*id).expect("a commit");
        let parents: Vec<_> = parents.iter().map(commit).collect();
        let base = match parents.last() {
            // Of a merge, what the other side has.
            Some(parent) => parent.tree().expect("a tree"),
            None => {
                let empty = repository.treebuilder(None).and_then(|builder| builder.write());
                repository.find_tree(empty.expect("written")).expect("a tree")
            }
        };
        let mut builder = TreeUpdateBuilder::new();
        for (path, text) in files {
            match text {
                Some(text) => {
                    let blob = repository.blob(text.as_bytes()).expect("written");
                    builder.upsert(*path, blob, FileMode::Blob);
                }
                None => {
                    builder.remove(*path);
                }
            }
        }
        let tree = builder.create_updated(repository, &base).expect("written");
        let tree = repository.find_tree(tree).expect("a tree");
        let ann = Signature::new("Ann", "ann@example.org", &Time::new(1, 0)).expect("valid");
        let parents: Vec<_> = parents.iter().collect();
        repository.commit(None, &ann, &ann, message, &tree, &parents).expect("written")
    }

    fn make(&self, bad: Oid, good: Oid) -> Result<Made, CommitError> {
        make(&self.repository, &failed(bad, good), &author())
    }

    fn tree(&self, commit: Oid) -> Oid {
        self.repository.find_commit(commit).expect("a commit").tree_id()
    }

    fn file(&self, commit: Oid, path: &str) -> String {
        let tree = self.repository.find_tree(self.tree(commit)).expect("a tree");
        let entry = tree.get_path(std::path::Path::new(path)).expect("it is there");
        let blob = self.repository.find_blob(entry.id()).expect("a file");
        String::from_utf8(blob.content().to_vec()).expect("UTF-8")
    }
}

fn author() -> Author {
    Author { name: "Strata".to_owned(), email: "strata@example.org".to_owned() }
}

fn failed(bad: Oid, good: Oid) -> Failed {
    let mac: MacAddr = "02:00:00:00:00:01".parse().expect("valid");
    Failed {
        composition: "web".parse().expect("valid"),
        ring: Some("canary".parse().expect("valid")),
        bad,
        good,
        reason: "1 of 2 VAs of canary are unhealthy".to_owned(),
        unhealthy: vec![
            (
                Some("web-1".parse().expect("valid")),
                mac,
                "no space left\n\nSigned-off-by: x".to_owned(),
            ),
            (None, mac, "it is ill".to_owned()),
        ],
        at_ms: 1_700_000_000_123,
    }
}

#[test]
fn what_failed_is_as_it_was_and_the_message_says_why() {
    let (history, good) = History::new();
    let bad =
        history.commit(&[good], "app 2\n\nbecause", &[("templates/web.ldf", Some("main/app 2\n"))]);
    let made = history.make(bad, good).expect("made");
    assert_eq!((history.tree(made.head), &made.reverted[..]), (history.tree(good), &[bad][..]));
    let commit = history.repository.find_commit(made.head).expect("a commit");
    assert_eq!(commit.parent_id(0).expect("one"), bad);
    assert_eq!(commit.author().name().expect("UTF-8"), "Strata");
    assert_eq!(commit.time().seconds(), 1_700_000_000);
    let expected = format!(
        "Revert \"app 2\"\n\nThis reverts commit {bad}.\n\n\
         Strata rolled web back: 1 of 2 VAs of canary are unhealthy\n\n\
         Template: web\nRing: canary\nUnhealthy VAs:\n  \
         web-1 (02:00:00:00:00:01): no space left  Signed-off-by: x\n  \
         02:00:00:00:00:01: it is ill\n\n\
         {good} was good everywhere. {bad} is quarantined\n\
         for web until a commit changes what it is made of.\n"
    );
    assert_eq!(commit.message().expect("UTF-8"), expected);
    // Made again it is the same: what was pushed already is known.
    assert_eq!(history.make(bad, good).expect("made"), made);
}

#[test]
fn only_what_brought_it_is_reverted() {
    let (history, good) = History::new();
    let one =
        history.commit(&[good], "web", &[("templates/web.ldf", Some("@common\nmain/app 2\n"))]);
    let two = history.commit(&[one], "sql", &[("templates/sql.ldf", Some("main/sql 2\n"))]);
    let other = history.commit(&[two], "web-2", &[("templates/web-2.ldf", Some("main/app 2\n"))]);
    let three =
        history.commit(&[other], "base", &[("templates/common.ldf", Some("main/base 2\n"))]);
    let four = history.commit(&[three], "motd", &[("templates/web/etc/motd", Some("hello\n"))]);
    let bad = history.commit(&[four], "notes", &[("notes", Some("two\n"))]);
    let made = history.make(bad, good).expect("made");
    assert_eq!(made.reverted, [four, three, one]);
    assert_eq!(history.file(made.head, "templates/web.ldf"), "@common\nmain/app 1\n");
    assert_eq!(history.file(made.head, "templates/common.ldf"), "main/base 1\n");
    assert_eq!(history.file(made.head, "templates/sql.ldf"), "main/sql 2\n");
    assert_eq!(history.file(made.head, "templates/web-2.ldf"), "main/app 2\n");
    assert_eq!(history.file(made.head, "notes"), "two\n");
    let tree = history.repository.find_tree(history.tree(made.head)).expect("a tree");
    assert!(tree.get_path(std::path::Path::new("templates/web")).is_err());
}

#[test]
fn a_merge_is_reverted_as_a_whole_and_what_counts_for_all_counts() {
    let (history, good) = History::new();
    let side =
        history.commit(&[good], "on a branch", &[("templates/web.ldf", Some("main/app 2\n"))]);
    let more = history.commit(&[side], "and more", &[("templates/web.ldf", Some("main/app 3\n"))]);
    let bad = history.commit(&[good, more], "Merge", &[]);
    let made = history.make(bad, good).expect("made");
    assert_eq!((history.tree(made.head), made.reverted), (history.tree(good), vec![bad]));
    let bad = history.commit(&[good], "rings", &[("strata.toml", Some("rings = [\"x\"]\n"))]);
    let made = history.make(bad, good).expect("made");
    assert_eq!((history.tree(made.head), made.reverted), (history.tree(good), vec![bad]));
}

#[test]
fn what_cannot_be_reverted_says_why() {
    let (history, good) = History::new();
    let both: Files<'_> = &[("templates/web.ldf", Some("main/app 2\n")), ("notes", Some("two\n"))];
    let one = history.commit(&[good], "web and notes", both);
    let bad = history.commit(&[one], "notes", &[("notes", Some("three\n"))]);
    match history.make(bad, good) {
        Err(CommitError::Conflict { commit, paths }) => {
            assert_eq!((commit, paths), (one, vec!["notes".to_owned()]));
        }
        other => panic!("{other:?}"),
    }
    let unrelated = history.commit(&[], "another history", &[("strata.toml", Some("\n"))]);
    assert!(matches!(history.make(bad, unrelated), Err(CommitError::NoWay(id)) if id == unrelated));
    assert!(matches!(history.make(good, good), Err(CommitError::Nothing)));
}
