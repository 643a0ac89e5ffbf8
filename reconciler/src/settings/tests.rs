use super::*;

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
