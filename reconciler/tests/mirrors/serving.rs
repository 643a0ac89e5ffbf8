//! `strata repo serve`, asked as web clients ask.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use crate::support::{Bench, request};

fn get(url: &str, path: &str, headers: &str) -> (String, Vec<u8>) {
    request(url, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n"))
}

fn header<'a>(head: &'a str, name: &str) -> &'a str {
    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.find(|(found, _)| *found == name).map_or("", |(_, value)| value)
}

#[test]
fn whole_files_ranges_and_entity_tags() {
    let bench = Bench::new();
    let (_server, url) = bench.serve();
    let expected = fs::read(bench.path("owner/repos/main/snapshot.toml")).expect("a snapshot");
    let (head, content) = get(&url, "/main/snapshot.toml", "");
    assert!(head.starts_with("http/1.1 200 "), "{head}");
    assert!(content == expected && header(&head, "cache-control") == "no-cache", "{head}");
    let tag = header(&head, "etag").to_owned();

    let (head, content) = get(&url, "/main/snapshot.toml", &format!("If-None-Match: {tag}\r\n"));
    assert!(head.starts_with("http/1.1 304 ") && content.is_empty(), "{head}");
    bench.sign();
    let (head, _) = get(&url, "/main/snapshot.toml", &format!("If-None-Match: {tag}\r\n"));
    assert!(head.starts_with("http/1.1 200 "), "another content has another tag: {head}");

    let (head, whole) = get(&url, "/main/app_1.tar.zst", "");
    assert!(header(&head, "cache-control").contains("immutable"), "{head}");
    let tag = header(&head, "etag").to_owned();
    let (head, part) = get(&url, "/main/app_1.tar.zst", "Range: bytes=5-9\r\n");
    assert!(head.starts_with("http/1.1 206 "), "{head}");
    assert_eq!(header(&head, "content-range"), format!("bytes 5-9/{}", whole.len()));
    assert_eq!(part, whole[5..10]);
    let resume = format!("Range: bytes=10-\r\nIf-Range: {tag}\r\n");
    assert_eq!(get(&url, "/main/app_1.tar.zst", &resume).1, whole[10..]);
    let stale = "Range: bytes=10-\r\nIf-Range: \"other\"\r\n";
    let (head, content) = get(&url, "/main/app_1.tar.zst", stale);
    assert!(head.starts_with("http/1.1 200 ") && content == whole, "{head}");
    let beyond = format!("Range: bytes={}-\r\n", whole.len());
    let (head, _) = get(&url, "/main/app_1.tar.zst", &beyond);
    assert!(head.starts_with("http/1.1 416 "), "{head}");
    assert_eq!(header(&head, "content-range"), format!("bytes */{}", whole.len()));
    let head = "HEAD /main/app_1.tar.zst HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let (head, content) = request(&url, head);
    assert_eq!(header(&head, "content-length"), whole.len().to_string());
    assert!(content.is_empty());
    // The cache can be emptied at any time.
    fs::remove_dir_all(bench.path("cache")).expect("removed");
    fs::create_dir(bench.path("cache")).expect("made");
    assert_eq!(get(&url, "/main/app_1.tar.zst", "").1, whole);
}

#[test]
fn nothing_else_is_sent() {
    let bench = Bench::new();
    let (_server, url) = bench.serve();
    for path in [
        "/",
        "/main",
        "/main/",
        "/main/../../format",
        "/main/..%2f..%2fformat",
        "/main/%2e%2e/%2e%2e/format",
        "/main//etc/passwd",
        "/main/app_1/manifest",
        "/main/app_1",
        "/main/app_2.tar.zst",
        "/main/.lock",
        "/main/root-01.toml",
        "/main/root-2.toml",
        "/main/database-0",
        "/templates/database",
        "/other/database",
        "/main/database%00",
        "/main/.pending-snapshot.toml",
    ] {
        let (head, content) = get(&url, path, "");
        assert!(head.starts_with("http/1.1 404 ") && content.is_empty(), "{path}: {head}");
    }
    let post =
        "POST /main/database HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    let (head, _) = request(&url, post);
    assert!(head.starts_with("http/1.1 405 ") && header(&head, "allow") == "get, head", "{head}");
}

#[test]
fn who_sends_headers_without_end_is_hung_up_on() {
    let bench = Bench::new();
    let (_server, url) = bench.serve();
    let address = url.strip_prefix("http://").and_then(|rest| rest.split('/').next());
    let mut stream = TcpStream::connect(address.expect("an address")).expect("connected");
    stream.write_all(b"GET /main/database HTTP/1.1\r\n").expect("sent");
    let line = format!("X-Filler: {}\r\n", "a".repeat(1000));
    // The server stops reading sooner or later, or answers that it has had enough.
    let sent = (0..1000).take_while(|_| stream.write_all(line.as_bytes()).is_ok()).count();
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    assert!(sent < 1000 || read.is_err() || answer.contains(" 431 "), "{sent} lines: {answer}");
    assert!(!answer.contains(" 200 "), "{answer}");
}

#[test]
fn a_damaged_layer_is_not_sent() {
    let bench = Bench::new();
    let (_server, url) = bench.serve();
    let file = bench.path("owner/repos/main/app_1/filesystem/usr/share/app");
    fs::write(file, "eno").expect("written");
    let (head, content) = get(&url, "/main/app_1.tar.zst", "");
    assert!(head.starts_with("http/1.1 500 ") && content.is_empty(), "{head}");
    let left = fs::read_dir(bench.path("cache")).expect("listed").count();
    assert_eq!(left, 0, "and nothing of it is kept");
}
