//! Each way to a repository, on a real server.

use std::fs;

use crate::support::{Bench, Server, command, free_port, text};

#[test]
fn from_a_directory() {
    let bench = Bench::new();
    bench.configure(text(&bench.path("published/main")), "");
    let said = bench.sync();
    assert!(said.starts_with("main: 2 units, new, snapshot 1, until 20"), "{said}");
    assert!(!bench.unit("app", "1").exists(), "layers come when they are wanted");
    for command in ["show", "lint"] {
        let said = bench.refused(&["layer", command, "main/app"]);
        let told = ["main/app 1 is not here", "hint: fetch it: strata repo mirror DIR main/app"];
        assert!(told.iter().all(|part| said.contains(part)), "{said}");
    }
    let said = bench.mirror();
    assert!(said.contains("mirrored main/lib 1:2\n"), "{said}");
    assert!(said.contains("2 layers mirrored"), "{said}");
    bench.assert_mirrored();
    let listed = bench.good(&bench.reader, &["repo", "list"]);
    assert!(listed.contains("2 units") && listed.contains("2 of them here"), "{listed}");
    let said = bench.mirror();
    assert!(said.starts_with("0 layers mirrored") && said.contains("2 there already"), "{said}");
    let said = bench.sync();
    assert!(said.contains("as before"), "{said}");
}

#[test]
fn from_a_web_server_with_a_password() {
    let bench = Bench::new();
    let port = free_port();
    let root = bench.path("published");
    let users = bench.path("users");
    fs::write(&users, "alice:{PLAIN}secret\n").expect("written");
    let server = format!(
        "server {{ listen 127.0.0.1:{port}; root {}; auth_basic layers; auth_basic_user_file {}; }}",
        text(&root),
        text(&users)
    );
    let _nginx = nginx(&bench, port, &server);
    let url = format!("http://127.0.0.1:{port}/main");

    bench.configure(&url, "");
    let said = bench.refused(&["repo", "sync", &bench.gitops()]);
    assert!(said.contains("access is denied") && said.contains("`credentials`"), "{said}");
    let secret = bench.path("secret");
    fs::write(&secret, "alice:wrong-one\n").expect("written");
    bench.configure(&url, &format!("credentials = \"file:{}\"\n", text(&secret)));
    let said = bench.refused(&["repo", "sync", &bench.gitops()]);
    assert!(!said.contains("wrong-one"), "no credentials are told: {said}");
    fs::write(&secret, "alice:secret\n").expect("written");
    bench.mirror();
    bench.assert_mirrored();
    let log = fs::read_to_string(bench.path("nginx/access.log")).expect("a log");
    assert!(log.contains("GET /main/app_1.tar.zst"), "{log}");
}

/// An nginx of one process, which ends when it is killed, with these servers.
fn nginx(bench: &Bench, port: u16, servers: &str) -> Server {
    let directory = bench.path("nginx");
    fs::create_dir(&directory).expect("made");
    let at = text(&directory);
    let configuration = format!(
        "daemon off; master_process off; user root; worker_processes 1; pid {at}/pid; error_log {at}/error.log;\n\
         events {{}}\n\
         http {{ access_log {at}/access.log; client_body_temp_path {at}/a; proxy_temp_path {at}/b;\n\
         fastcgi_temp_path {at}/c; uwsgi_temp_path {at}/d; scgi_temp_path {at}/e;\n{servers} }}\n"
    );
    let file = bench.path("nginx.conf");
    fs::write(&file, configuration).expect("written");
    let mut nginx = command("nginx");
    nginx.args(["-c", text(&file), "-p", at, "-e", text(&directory.join("start.log"))]);
    bench.spawn(nginx, port, "apt-get install nginx-light")
}

/// An authority `NAME.pem`, and what it gave a server at 127.0.0.1: `NAME-server.pem` and
/// `NAME-server.key`.
fn authority(bench: &Bench, name: &str) {
    let path = |suffix: &str| text(&bench.path(&format!("{name}{suffix}"))).to_owned();
    let openssl = |arguments: &[&str]| {
        let mut command = command("openssl");
        let output = command.args(arguments).output().expect("apt-get install openssl");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    };
    let new = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let subject = format!("/CN={name}");
    let (key, pem) = (path(".key"), path(".pem"));
    let own = ["-x509", "-days", "2", "-subj", &subject, "-keyout", &key, "-out", &pem];
    openssl(&[&new[..], &own].concat());
    let (server_key, request, server) =
        (path("-server.key"), path("-server.csr"), path("-server.pem"));
    let wanted = ["-subj", "/CN=server", "-keyout", &server_key, "-out", &request];
    openssl(&[&new[..], &wanted].concat());
    let extensions = path(".ext");
    fs::write(&extensions, "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
        .expect("written");
    let signs = ["x509", "-req", "-days", "2", "-in", &request, "-CA", &pem, "-CAkey", &key];
    let more = ["-CAcreateserial", "-extfile", &extensions, "-out", &server];
    openssl(&[&signs[..], &more].concat());
}

#[test]
fn from_a_web_server_with_tls() {
    let bench = Bench::new();
    let (port, plain) = (free_port(), free_port());
    for name in ["ours", "theirs"] {
        authority(&bench, name);
    }
    let (root, certificate) = (bench.path("published"), bench.path("ours-server.pem"));
    let servers = format!(
        "server {{ listen 127.0.0.1:{plain}; root {root}; }}\n\
         server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {}; ssl_certificate_key {}; root {root};\n\
         location /moved/ {{ rewrite ^/moved(.*)$ http://127.0.0.1:{plain}$1 redirect; }} }}",
        text(&certificate),
        text(&bench.path("ours-server.key")),
        root = text(&root)
    );
    let _nginx = nginx(&bench, port, &servers);
    let url = format!("https://127.0.0.1:{port}/main");
    let ca = |name: &str| format!("ca-file = \"{}\"\n", text(&bench.path(name)));
    let refused = |url: &str, more: &str, parts: &[&str]| {
        bench.configure(url, more);
        for command in ["sync", "mirror"] {
            let said = bench.refused(&["repo", command, &bench.gitops()]);
            assert!(parts.iter().all(|part| said.contains(part)), "{said}");
        }
        assert!(!bench.path("reader/repos/main").exists(), "nothing came");
    };
    let unknown = "certificate is refused: no authority that is trusted has signed it";
    refused(&url, "", &[unknown, "hint: ", "ca-file"]);
    refused(&url, &ca("theirs.pem"), &[unknown, "hint: "]);
    let other_name = format!("https://localhost:{port}/main");
    refused(&other_name, &ca("ours.pem"), &["certificate is refused", "localhost"]);
    refused(&url, &ca("gone.pem"), &["`ca-file` /", "gone.pem cannot be used", "No such file"]);
    fs::write(bench.path("empty.pem"), "nothing\n").expect("written");
    refused(&url, &ca("empty.pem"), &["empty.pem cannot be used", "no certificate"]);
    // Whoever answers for the server cannot lead away from TLS.
    refused(&format!("https://127.0.0.1:{port}/moved/main"), &ca("ours.pem"), &["/moved/main/"]);
    let log = fs::read_to_string(bench.path("nginx/access.log")).expect("a log");
    assert!(log.contains("GET /moved/main/") && !log.contains("GET /main/"), "{log}");
    bench.configure(&url, &ca("ours.pem"));
    bench.mirror();
    bench.assert_mirrored();
}

/// A vsftpd for everybody.
fn vsftpd(bench: &Bench, port: u16) -> Server {
    let root = bench.path("published");
    let empty = bench.path("empty");
    fs::create_dir_all(&empty).expect("made");
    let configuration = format!(
        "listen=YES\nlisten_address=127.0.0.1\nlisten_port={port}\nbackground=NO\nanonymous_enable=YES\n\
         local_enable=NO\nwrite_enable=NO\nanon_root={}\nsecure_chroot_dir={}\nno_anon_password=YES\n\
         pasv_enable=YES\npasv_address=127.0.0.1\nseccomp_sandbox=NO\nxferlog_enable=NO\n\
         isolate=NO\nisolate_network=NO\n",
        text(&root),
        text(&empty)
    );
    let file = bench.path("vsftpd.conf");
    fs::write(&file, configuration).expect("written");
    let mut vsftpd = command("vsftpd");
    vsftpd.arg(&file);
    bench.spawn(vsftpd, port, "apt-get install vsftpd")
}

#[test]
fn from_an_ftp_server() {
    let bench = Bench::new();
    let port = free_port();
    let _vsftpd = vsftpd(&bench, port);
    // Of FTP with TLS nothing is promised that cannot be kept.
    bench.configure(&format!("ftps://127.0.0.1:{port}/main"), "");
    let said = bench.refused(&["repo", "mirror", &bench.gitops()]);
    assert!(said.contains("ftps:// cannot be read") && said.contains("https://"), "{said}");
    bench.configure(&format!("ftp://127.0.0.1:{port}/main"), "");
    bench.mirror();
    bench.assert_mirrored();
}

#[test]
fn from_a_bucket() {
    let bench = Bench::new();
    let port = free_port();
    let buckets = bench.path("buckets");
    fs::create_dir_all(buckets.join("layers")).expect("made");
    fs::rename(bench.path("published/main"), buckets.join("layers/main")).expect("moved");
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools/bin/s3s-fs");
    let mut s3 = command(program);
    s3.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
    s3.args(["--access-key", "AKEXAMPLE", "--secret-key", "secret-of-s3", text(&buckets)]);
    let _s3 = bench.spawn(s3, port, "ci/setup installs it");
    let place = format!("endpoint = \"http://127.0.0.1:{port}\"\nregion = \"us-east-1\"\n");
    bench.configure("s3://layers/main", &format!("{place}credentials = \"env:LAYERS\"\n"));
    let mirror = ["repo", "mirror", &bench.gitops()];
    let said = bench.refused(&mirror);
    assert!(said.contains("env:LAYERS cannot be used: the variable is not set"), "{said}");
    let mut with_key = bench.command(&bench.reader, &mirror);
    let output = with_key.env("LAYERS", "AKEXAMPLE:secret-of-s3").output().expect("strata runs");
    assert!(output.status.success(), "{output:?}");
    bench.assert_mirrored();
}

#[test]
fn from_strata_itself() {
    let bench = Bench::new();
    let (_server, url) = bench.serve();
    bench.configure(&url, "");
    bench.mirror();
    bench.assert_mirrored();
    // A mirror can be served on, as far as it goes.
    bench.layer("new", "1", "new");
    bench.sign();
    let said = bench.sync();
    assert!(said.starts_with("main: 3 units, new, snapshot 2"), "{said}");
}

#[test]
fn everything_or_what_is_named() {
    let bench = Bench::new();
    bench.configure(text(&bench.path("published/main")), "");
    let directory = bench.gitops();
    let named = bench.good(&bench.reader, &["repo", "mirror", &directory, "main/app"]);
    assert!(named.contains("1 layer mirrored"), "{named}");
    let said = bench.refused(&["repo", "mirror", &directory, "--max-bytes", "1000"]);
    assert!(said.contains("the limit is 1000"), "{said}");
    let all = bench
        .good(&bench.reader, &["repo", "mirror", &directory, "--all", "main", "--output", "json"]);
    let all: serde_json::Value = serde_json::from_str(&all).expect("JSON");
    assert_eq!(all["mirrored"][0]["layer"], "lib");
    assert_eq!(all["present"], 1);
    bench.assert_mirrored();
    let said = bench.refused(&["repo", "sync", &directory, "other"]);
    assert!(said.contains("the repository other has no `url`"), "{said}");
}
