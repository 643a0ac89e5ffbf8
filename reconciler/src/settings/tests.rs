use super::*;
use crate::trust::SignerLists;
use crate::webhook;

fn settings(files: &[(&str, &str)]) -> Result<Settings, Vec<String>> {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(directory.path().join("strata.toml.d")).expect("made");
    for (name, text) in files {
        std::fs::write(directory.path().join(name), text).expect("written");
    }
    let read = Settings::read(&directory.path().join("strata.toml"));
    read.map_err(|error| {
        let prefix = format!("{}/", directory.path().display());
        error.faults.iter().map(|fault| fault.to_string().replace(&prefix, "")).collect()
    })
}

const MAIN: &str = r#"
[listen]
metrics = "127.0.0.1:9464"

[[commit-status]]
name = "hub"
forge = "github"
repository = "org/fleet"
token-file = "/etc/strata/token"

[[notify]]
name = "ops"
kind = "webhook"
url = "https://example.org/hook"
"#;

#[test]
fn drop_ins_add_and_change_in_the_order_of_their_names() {
    let read = settings(&[
        ("strata.toml", MAIN),
        ("strata.toml.d/20.toml", "[[notify]]\nname = \"ops\"\nimportance = \"error\"\nquiet = \"2h\"\n"),
        ("strata.toml.d/10.toml", "[[notify]]\nname = \"ops\"\nimportance = \"info\"\n\n[[notify]]\nname = \"chat\"\nkind = \"slack\"\nurl-env = \"HOOK\"\n"),
        ("strata.toml.d/notes.txt", "no configuration"),
        ("strata.toml.d/.hidden.toml", "nor this"),
    ])
    .expect("valid");
    assert_eq!(read.listen, Some("127.0.0.1:9464".parse().expect("valid")));
    assert_eq!(read.commit_status[0].api, "https://api.github.com");
    let names: Vec<_> = read.notify.iter().map(|notify| notify.name.as_str()).collect();
    assert_eq!(names, ["ops", "chat"]);
    assert_eq!(read.notify[0].importance, Importance::Error);
    assert_eq!(read.notify[0].quiet, Duration::from_secs(7200));
    let nothing = settings(&[("strata.toml", "")]).expect("valid");
    assert_eq!(nothing, Settings::default());
}

#[test]
fn all_faults_are_told_with_file_and_line() {
    let faults = settings(&[
        ("strata.toml", "\n\n[listen]\nmetrics = \"nowhere\"\n"),
        ("strata.toml.d/10.toml", "\n[[notify]]\nname = \"ops\"\nkind = \"webhook\"\nurl = \"http://example.org\"\n"),
        ("strata.toml.d/20.toml", "[[notify]]\nname = \"x\"\nsurprise = 1\n"),
        ("strata.toml.d/30.toml", "[[notify]]\nname = \"mail\"\nkind = \"email\"\nserver = \"mx.example.org\"\nencryption = \"none\"\n"),
    ])
    .expect_err("faults");
    assert_eq!(faults.len(), 4, "{faults:#?}");
    assert!(faults[0].starts_with("strata.toml:4: "), "{faults:#?}");
    assert!(faults[1].starts_with("strata.toml.d/20.toml:3: ") && faults[1].contains("surprise"));
    assert!(faults[2].starts_with("strata.toml.d/10.toml:2: ") && faults[2].contains("https://"));
    assert!(faults[3].starts_with("strata.toml.d/30.toml:1: ") && faults[3].contains("this host"));
}

#[test]
fn what_would_leak_or_fail_later_is_refused() {
    let hook = |members: &str| format!("[[notify]]\nname = \"ops\"\n{members}\n");
    for (text, part) in [
        (hook("kind = \"webhook\""), "no url"),
        (hook("kind = \"webhook\"\nurl = \"https://u:p@example.org/\""), "credentials"),
        (hook("kind = \"webhook\"\nurl = \"ftp://example.org/\""), "ftp"),
        (hook("kind = \"slack\"\nurl-file = \"relative\""), "absolute"),
        (hook("kind = \"slack\"\nurl-file = \"/a\"\nurl-env = \"B\""), "both"),
        (hook("kind = \"matrix\"\nhomeserver = \"https://m.org\"\nroom = \"!a:m.org\""), "token-file"),
        (hook("kind = \"email\"\nserver = \"localhost\"\nfrom = \"a\"\nto = [\"b@c.org\"]"), "address"),
        (hook("kind = \"slack\"\nurl-env = \"A\"\ntext = \"{{ open\""), "template"),
        (hook("kind = \"slack\"\nurl-env = \"A\"\nquiet = \"soon\""), "quiet"),
        ("[[notify]]\nname = \"a/b\"\nkind = \"slack\"\nurl-env = \"A\"\n".to_owned(), "letters"),
        ("[[commit-status]]\nname = \"a\"\nforge = \"gitea\"\nrepository = \"o/r\"\ntoken-env = \"A\"\n".to_owned(), "api"),
        ("[[commit-status]]\nname = \"a\"\nforge = \"github\"\nrepository = \"../r\"\ntoken-env = \"A\"\n".to_owned(), "owner/name"),
    ] {
        let faults = settings(&[("strata.toml", &text)]).expect_err(part);
        assert!(faults[0].contains(part), "{part}: {faults:?}");
    }
}

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
        ("[trust\n", "reconciler.toml:1"),
        ("\n\n[trust]\nssh = \"signers\"\n", "reconciler.toml:3: trust.ssh"),
        (
            "\n[trust]\nssh = \"/x\"\n[[source.remote]]\nurl = \"rel\"\n",
            "reconciler.toml:4: source",
        ),
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
fn an_event_that_is_none_is_a_fault() {
    let text = "[[notify]]\nname = \"ops\"\nkind = \"webhook\"\nurl = \"https://host/\"\nevents = [\"rolledback\"]\n";
    let error = parse(text).expect_err("no kind of event");
    assert!(error.contains("there is no event \"rolledback\"; there are"), "{error}");
    assert!(error.contains("rolled-back") && error.contains("reconciler.toml:"), "{error}");
    parse(&text.replace("rolledback", "rolled-back")).expect("a kind of event");
}

#[test]
fn webhooks() {
    let text = "[webhook]\nlisten = \"127.0.0.1:9100\"\nforge = \"gitlab\"\n";
    let whole = format!("{text}secret-env = \"HOOK\"\n");
    let webhook = parse(&whole).expect("valid").webhook.expect("set");
    assert_eq!((webhook.forge, webhook.listen.port()), (webhook::Forge::GitLab, 9100));
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

#[test]
fn reverts_are_off_until_they_are_asked_for() {
    let revert = |text: &str| settings(&[("strata.toml", text)]).map(|settings| settings.revert);
    assert_eq!(revert(""), Ok(None));
    let plain = revert("[revert]\n").expect("valid").expect("on");
    assert_eq!(plain.branch_prefix, "strata/revert-");
    assert_eq!((plain.author, plain.remote), (None, None));
    let text = "[revert]\nauthor = \"Fleet <fleet@example.org>\"\nbranch-prefix = \"undo/\"\n\
                [revert.remote]\nurl = \"https://git.example.org/fleet.git\"\ntoken-file = \"/t\"\n";
    let whole = revert(text).expect("valid").expect("on");
    assert_eq!(whole.author.expect("one").email, "fleet@example.org");
    assert_eq!(whole.remote.expect("one").to_string(), "https://git.example.org/fleet.git");
    for (text, fault) in [
        ("[revert]\nauthor = \"Fleet\"\n", "revert.author"),
        ("[revert]\nauthor = \"Fleet <a\\nb>\"\n", "revert.author"),
        ("[revert]\nbranch-prefix = \"a..b\"\n", "revert.branch-prefix"),
        ("[revert.remote]\nurl = \"https://t0ken@git.example.org/r\"\n", "revert.remote.url"),
        ("[revert]\nforce = true\n", "force"),
    ] {
        let faults = revert(text).expect_err("refused");
        assert!(faults[0].contains(fault) && !faults[0].contains("t0ken"), "{faults:?}");
    }
}

#[test]
fn traces() {
    let text = "[traces]\nendpoint = \"https://collector.example.org:4318/\"\nsample = 0.25\n\
                [traces.attributes]\n\"deployment.environment.name\" = \"production\"\n\
                [[traces.header]]\nname = \"Authorization\"\nvalue-env = \"OTLP\"\n";
    let traces = parse(text).expect("valid").traces.expect("set");
    assert_eq!(traces.endpoint, "https://collector.example.org:4318/v1/traces");
    assert_eq!((traces.sample, traces.service_name.as_str()), (0.25, "strata"));
    assert_eq!(traces.headers[0].0, "authorization");
    let whole = text.replace("4318/", "4318/otlp/v1/traces");
    let traces = parse(&whole).expect("valid").traces.expect("set");
    assert_eq!(traces.endpoint, "https://collector.example.org:4318/otlp/v1/traces");
    for (from, to, why) in [
        ("https://", "http://", "use https://"),
        ("https://", "https://u:s3cret@", "with credentials"),
        ("4318/", "4318/?key=s3cret", "a query"),
        ("0.25", "1.5", "from 0.0 to 1.0"),
        ("0.25", "nan", "from 0.0 to 1.0"),
        ("\"production\"", "\"\"", "no line"),
        ("deployment.environment.name", "service.name", "is given by"),
        ("Authorization", "Content-Length", "not for the settings"),
        ("Authorization", "two words", "no name of a header"),
        ("value-env = \"OTLP\"", "", "where is the value"),
        ("value-env", "value", "unknown field"),
        ("[traces]", "[traces]\nsurprise = 1", "surprise"),
    ] {
        let error = parse(&text.replacen(from, to, 1)).expect_err(why);
        assert!(error.contains(why), "{from} → {to}: {error}");
    }
}
