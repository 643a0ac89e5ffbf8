use super::*;

const GOOD: &str = "base = [\"main/base\"]\nrings = [\"canary\", \"everyone\"]\n\n[[repository]]\nname = \"main\"\npriority = 900\n\n[[repository]]\nname = \"local\"\n\n[limits]\nlayers = 300\n\n[scripts]\non-failure = \"swap-back\"\ntime-limit-s = 60\n";

#[test]
fn a_whole_configuration() {
    let (configuration, faults) = Configuration::read(GOOD.as_bytes());
    assert_eq!(faults, []);
    let priorities: Vec<_> = configuration.repositories.iter().map(|r| r.priority).collect();
    assert_eq!(priorities, [900, DEFAULT_PRIORITY]);
    assert_eq!(configuration.base[0].value.to_string(), "main/base");
    assert_eq!(configuration.default_ring().as_str(), "everyone");
    assert_eq!(configuration.max_layers, 300);
    let scripts = ScriptPolicy { on_failure: OnFailure::SwapBack, time_limit_s: 60 };
    assert_eq!(configuration.scripts, scripts);
}

#[test]
fn every_fault_has_its_line() {
    let text = "base = [\"nobody/base\", \"x\"]\nrings = [\"a\", \"a\"]\ncolour = 1\n[[repository]]\nname = \"templates\"\n[[repository]]\nprioritaet = 1\n[limits]\nlayers = -1\n[scripts]\non-failure = \"maybe\"\ntime-limit-s = 0\nretries = 1\n";
    let (_, faults) = Configuration::read(text.as_bytes());
    let mut lines: Vec<_> = faults.iter().map(|f| (f.line, f.code)).collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            (1, "unknown-repository"),
            (1, "value"),
            (2, "ring"),
            (3, "unknown-key"),
            (5, "repository"),
            (6, "missing-key"),
            (7, "unknown-key"),
            (9, "value"),
            (10, "value"),
            (11, "value"),
            (13, "unknown-key"),
        ]
    );
}

#[test]
fn appliances() {
    let (configuration, _) = Configuration::read(GOOD.as_bytes());
    let text = "[[appliance]]\nname = \"web-01\"\nmac = \"52:54:00:00:00:01\"\nldf = \"templates/web\"\nring = \"canary\"\nlabels = { site = \"vienna\" }\n\n[[appliance]]\nname = \"web-02\"\nmac = \"52:54:00:00:00:01\"\nldf = \"web\"\nring = \"nobody\"\n\n[[appliance]]\nname = \"web-01\"\nmac = \"x\"\nldf = \"web\"\n";
    let (appliances, faults) = read_appliances(text.as_bytes(), &configuration);
    assert_eq!((appliances.by_name.len(), appliances.named.len()), (2, 3));
    let first = appliances.by_name.values().next().expect("one");
    assert_eq!(first.labels["site"], "vienna");
    assert_eq!(first.ring.as_str(), "canary");
    let lines: Vec<_> = faults.iter().map(|f| (f.line, f.code)).collect();
    assert_eq!(lines, [(12, "unknown-ring"), (10, "duplicate-mac"), (16, "value")]);
}

proptest::proptest! {
    #[test]
    fn never_panics(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200), at in 0..GOOD.len(), byte: u8) {
        let _checked = Configuration::read(&bytes);
        let mut text = GOOD.as_bytes().to_vec();
        text[at] = byte;
        let (configuration, _) = Configuration::read(&text);
        let _checked = read_appliances(&text, &configuration);
    }
}

#[test]
fn where_repositories_come_from() {
    let read = |more: &str| {
        let text = format!("[[repository]]\nname = \"main\"\n{more}");
        let (configuration, faults) = Configuration::read(text.as_bytes());
        (configuration.repositories[0].clone(), faults)
    };
    let url = "url = \"https://host/main\"\n";
    let keys = "keys = [\"ssh-ed25519 AAAA alice\"]\n";
    for good in [keys.to_owned(), format!("{url}{keys}"), format!("{url}unsigned = true\n")] {
        let (repository, faults) = read(&good);
        assert!(faults.is_empty(), "{good}: {faults:?}");
        assert_eq!(repository.remote.is_some(), good.contains("url"));
    }
    let (repository, _) = read(&format!("{url}{keys}credentials = \"env:LAYERS\"\n"));
    let credentials = repository.remote.and_then(|remote| remote.credentials);
    assert_eq!(credentials, Some(Credentials::Environment("LAYERS".to_owned())));
    let (repository, faults) = read(&format!("{url}{keys}ca-file = \"/etc/ca.pem\"\n"));
    assert!(repository.remote.is_some_and(|remote| remote.certificates.is_some()), "{faults:?}");
    let ca = "ca-file = \"/etc/ca.pem\"\n";
    for (bad, code) in [
        (format!("{url}{keys}ca-file = \"ca.pem\"\n"), "value"),
        (format!("url = \"http://host/\"\n{keys}{ca}"), "remote"),
        (format!("url = \"ftps://host/\"\n{keys}"), "value"),
        (format!("url = \"s3://bucket\"\nendpoint = \"http://host\"\n{keys}{ca}"), "remote"),
        (ca.to_owned(), "remote"),
        (url.to_owned(), "unsigned"),
        (format!("{url}{keys}unsigned = true\n"), "unsigned"),
        (format!("{url}{keys}threshold = 0\n"), "keys"),
        (format!("{url}{keys}threshold = 2\n"), "keys"),
        (format!("{url}keys = []\n"), "keys"),
        ("threshold = 1\n".to_owned(), "keys"),
        ("region = \"x\"\n".to_owned(), "remote"),
        (format!("{url}{keys}endpoint = \"https://host\"\n"), "remote"),
        (format!("{url}{keys}credentials = \"secret\"\n"), "value"),
        (format!("url = \"https://a:b@host/\"\n{keys}"), "value"),
        (format!("{url}unsigned = 1\n"), "type"),
    ] {
        let (repository, faults) = read(&bad);
        assert!(faults.iter().any(|fault| fault.code == code), "{bad}: {faults:?}");
        assert_eq!(repository.remote, None, "{bad}: nothing is fetched");
    }
}
