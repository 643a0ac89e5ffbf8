//! Each way to a repository, on a real server.

use std::fs;

use crate::support::{Bench, command, free_port, text};

#[test]
fn from_a_directory() {
    let bench = Bench::new();
    bench.configure(text(&bench.path("published/main")), "");
    let said = bench.sync();
    assert!(said.starts_with("main: 2 units, new, snapshot 1, until 20"), "{said}");
    assert!(!bench.unit("app", "1").exists(), "layers come when they are wanted");
    let said = bench.mirror();
    assert!(said.contains("mirrored main/lib 1:2\n"), "{said}");
    assert!(said.contains("2 layers mirrored"), "{said}");
    bench.assert_mirrored();
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
    let directory = bench.path("nginx");
    fs::create_dir(&directory).expect("made");
    let at = text(&directory);
    // One process, which ends when it is killed.
    let configuration = format!(
        "daemon off; master_process off; user root; worker_processes 1; pid {at}/pid; error_log {at}/error.log;\n\
         events {{}}\n\
         http {{ access_log {at}/access.log; client_body_temp_path {at}/a; proxy_temp_path {at}/b;\n\
         fastcgi_temp_path {at}/c; uwsgi_temp_path {at}/d; scgi_temp_path {at}/e;\n\
         server {{ listen 127.0.0.1:{port}; root {}; auth_basic layers; auth_basic_user_file {}; }} }}\n",
        text(&root),
        text(&users)
    );
    let file = bench.path("nginx.conf");
    fs::write(&file, configuration).expect("written");
    let mut nginx = command("nginx");
    nginx.args(["-c", text(&file), "-p", at, "-e", text(&directory.join("start.log"))]);
    let _nginx = bench.spawn(nginx, port, "apt-get install nginx-light");
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
    let log = fs::read_to_string(directory.join("access.log")).expect("a log");
    assert!(log.contains("GET /main/app_1.tar.zst"), "{log}");
}

#[test]
fn from_an_ftp_server() {
    let bench = Bench::new();
    let port = free_port();
    let root = bench.path("published");
    let empty = bench.path("empty");
    fs::create_dir(&empty).expect("made");
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
    let _vsftpd = bench.spawn(vsftpd, port, "apt-get install vsftpd");
    // It speaks no TLS: that is an error like others.
    bench.configure(&format!("ftps://127.0.0.1:{port}/main"), "");
    let said = bench.refused(&["repo", "mirror", &bench.gitops()]);
    assert!(said.contains("failed main: ftps://") && !said.contains("panicked"), "{said}");
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
