use super::*;
use crate::trust::SignerLists;
use crate::webhook::Forge;

fn parse(text: &str) -> Result<Settings, String> {
    Settings::parse(Path::new("reconciler.toml"), text).map_err(|error| error.to_string())
}

#[test]
fn nothing_is_needed() {
    assert!(parse("").expect("valid").trust.is_none());
}

#[test]
fn signers_in_files_and_in_commits() {
    let files = parse("[trust]\nssh = \"/etc/strata/allowed_signers\"\n").expect("valid");
    let trust = files.trust.expect("set");
    assert!(matches!(trust.lists, SignerLists::Files { ssh: Some(_), openpgp: None, .. }));
    let id = "0123456789012345678901234567890123456789";
    let commit = format!(
        "[trust]\nsigners = \"commit\"\nopenpgp = \"signers/keys.asc\"\nanchor = \"{id}\"\n"
    );
    let trust = parse(&commit).expect("valid").trust.expect("set");
    assert_eq!(trust.anchor.expect("set").to_string(), id);
    assert!(matches!(trust.lists, SignerLists::Commit { openpgp: Some(_), .. }));
}

#[test]
fn mistakes_are_named() {
    for (text, why) in [
        ("[trust]\n", "name a list of signers"),
        ("[trust]\nssh = \"signers\"\n", "trust.ssh: signers is no absolute path"),
        ("[trust]\nssh = \"/x\"\nanchor = \"main\"\n", "no commit id of 40 digits"),
        ("[trust]\nsigners = \"commit\"\nssh = \"signers\"\n", "trust.anchor"),
        ("[trust]\nshh = \"/x\"\n", "unknown field `shh`"),
        ("[trust\n", "line 1"),
    ] {
        let error = parse(text).expect_err(why);
        assert!(error.contains(why) && error.contains("reconciler.toml"), "{error}");
    }
}

#[test]
fn sources() {
    let text = "[source]
range = \"^1.4\"
[[source.remote]]
url = \"ssh://git@git.example.org/fleet.git\"
identity-file = \"/etc/strata/id_ed25519\"
known-hosts-file = \"/etc/strata/known_hosts\"
[[source.remote]]
url = \"https://mirror.example.org/fleet.git\"
token-file = \"/run/credentials/strata/token\"
";
    let source = parse(text).expect("valid").source.expect("set");
    assert_eq!(source.to_string(), "ssh://git@git.example.org/fleet.git#tags ^1.4");
    let token = source.remotes()[1].credentials().token.as_ref().expect("set");
    assert_eq!(token.user, "git");
    let url = "[source]\n[[source.remote]]\nurl = \"https://u:s3cret@host/r\"\n";
    for (text, why) in [
        ("[source]\n".to_owned(), "missing field `remote`"),
        (url.to_owned(), "holds a password or token"),
        (
            url.replace("u:s3cret@", "")
                .replace("[source]", "[source]\ntag = \"a\"\nbranch = \"b\""),
            "give one of",
        ),
        (url.replace("https://u:s3cret@host/r", "ext::sh -c true"), "not allowed"),
        (url.replace("u:s3cret@", "") + "user = \"me\"\n", "goes with a token"),
    ] {
        let error = parse(&text).expect_err(why);
        assert!(error.contains(why) && !error.contains("s3cret"), "{error}");
    }
}

#[test]
fn webhooks() {
    let text = "[webhook]\nlisten = \"127.0.0.1:9100\"\nforge = \"gitlab\"\n";
    let whole = format!("{text}secret-env = \"HOOK\"\n");
    let webhook = parse(&whole).expect("valid").webhook.expect("set");
    assert_eq!((webhook.forge, webhook.listen.port()), (Forge::GitLab, 9100));
    for (text, why) in [
        (text.to_owned(), "without a secret"),
        (whole.replace("gitlab", "sourcehut"), "unknown variant `sourcehut`"),
        (whole.replace("127.0.0.1:9100", "9100"), "invalid socket address"),
        (format!("{whole}secret-file = \"/x\"\n"), "give a file or"),
    ] {
        let error = parse(&text).expect_err(why);
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn a_testing_branch() {
    let text = "[source]\n[source.testing]\nbranch = \"next\"\ndefinitions = [\"templates/web\"]\n\
                [[source.remote]]\nurl = \"https://host/r\"\n";
    let source = parse(text).expect("valid").source.expect("set");
    assert_eq!(source.testing().expect("set").definitions(), ["templates/web"]);
    for (from, to, why) in [
        ("[\"templates/web\"]", "[]", "names no definition"),
        ("templates/web", "strata.toml", "is no definition"),
        ("templates/web", "templates/../web", "is no definition"),
        ("next", "a..b", "no name for a branch"),
    ] {
        let error = parse(&text.replace(from, to)).expect_err(why);
        assert!(error.contains(why) && error.contains("source.testing"), "{error}");
    }
}
