//! Cut off, killed, and several at once.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::{Bench, text};

/// A web server that breaks off the first answers with an archive in the middle, and notes
/// from which byte on archives are asked for. It ends with the test's process.
fn flaky_server(root: PathBuf, cuts: usize) -> (String, Arc<Mutex<Vec<u64>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let url = format!("http://{}/main", listener.local_addr().expect("an address"));
    let asked = Arc::new(Mutex::new(Vec::new()));
    let noted = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut lines = BufReader::new(stream.try_clone().expect("a handle")).lines();
            let Some(Ok(first)) = lines.next() else { continue };
            let headers: Vec<_> =
                lines.map_while(Result::ok).take_while(|l| !l.is_empty()).collect();
            let range = headers.iter().find_map(|line| {
                let (name, value) = line.split_once(": ")?;
                let from = value.strip_prefix("bytes=")?.split('-').next()?;
                name.eq_ignore_ascii_case("range").then(|| from.parse::<u64>().expect("a number"))
            });
            let path = first.split(' ').nth(1).expect("a path").trim_start_matches('/').to_owned();
            let path = path.replace("%25", "%");
            let Ok(content) = fs::read(root.join(&path)) else {
                let _gone = stream
                    .write_all(b"HTTP/1.1 404 N\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                continue;
            };
            let from = range.unwrap_or(0).min(content.len() as u64);
            let rest = &content[from as usize..];
            let (status, extra) = match range {
                None => ("200 OK", String::new()),
                Some(_) if rest.is_empty() => {
                    ("416 R", format!("Content-Range: bytes */{}\r\n", content.len()))
                }
                Some(_) => (
                    "206 P",
                    format!(
                        "Content-Range: bytes {from}-{}/{}\r\n",
                        content.len() - 1,
                        content.len()
                    ),
                ),
            };
            let is_archive = path.ends_with(".tar.zst");
            let mut end = rest.len();
            if is_archive {
                let mut asked = noted.lock().expect("no panic while held");
                if asked.len() < cuts {
                    end = rest.len() / 2;
                }
                asked.push(from);
            }
            let head = format!(
                "HTTP/1.1 {status}\r\n{extra}Content-Length: {}\r\nConnection: close\r\n\r\n",
                rest.len()
            );
            let _gone =
                stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&rest[..end]));
        }
    });
    (url, asked)
}

#[test]
fn a_fetch_that_is_cut_off_goes_on_where_it_was() {
    let bench = Bench::new();
    let (url, asked) = flaky_server(bench.path("published"), 3);
    bench.configure(&url, "");
    let said = bench.good(&bench.reader, &["repo", "mirror", &bench.gitops(), "main/lib"]);
    assert!(said.contains("1 layer mirrored"), "{said}");
    let asked = asked.lock().expect("no panic while held").clone();
    assert_eq!(asked.len(), 4, "{asked:?}");
    assert!(asked[0] == 0 && asked.is_sorted_by(|a, b| a < b), "{asked:?}");
    let length = fs::metadata(bench.archive("lib", "1:2")).expect("an archive").len();
    assert!(said.contains("fetched"), "{said}");
    assert!(asked[3] > length / 2, "half, a quarter and an eighth had come: {asked:?} of {length}");
}

#[test]
fn what_an_earlier_run_fetched_is_taken_up() {
    let bench = Bench::new();
    let (url, asked) = flaky_server(bench.path("published"), 0);
    bench.configure(&url, "");
    bench.sync();
    let archive = fs::read(bench.archive("lib", "1:2")).expect("an archive");
    let name =
        bench.archive("lib", "1:2").file_name().expect("a name").to_string_lossy().into_owned();
    let part = bench.path(&format!("reader/repos/main/.fetch/{name}.part"));
    fs::create_dir_all(part.parent().expect("a directory")).expect("made");
    fs::write(&part, &archive[..1000]).expect("written");
    bench.good(&bench.reader, &["repo", "mirror", &bench.gitops(), "main/lib"]);
    assert_eq!(*asked.lock().expect("no panic while held"), [1000]);
    assert!(!part.exists(), "it is done with");
    bench.good(&bench.reader, &["repo", "verify", "main"]);
    // What was left of another archive is thrown away, and all is fetched.
    fs::remove_dir_all(bench.unit("lib", "1:2")).expect("removed");
    fs::write(&part, vec![b'x'; 1000]).expect("written");
    asked.lock().expect("no panic while held").clear();
    bench.good(&bench.reader, &["repo", "mirror", &bench.gitops(), "main/lib"]);
    assert_eq!(*asked.lock().expect("no panic while held"), [1000, 0]);
    bench.good(&bench.reader, &["repo", "verify", "main"]);
}

#[test]
fn a_rate_is_kept() {
    let bench = Bench::new();
    bench.configure(text(&bench.path("published/main")), "");
    bench.sync();
    let length = fs::metadata(bench.archive("lib", "1:2")).expect("an archive").len();
    let rate = (length / 2).to_string();
    let begun = Instant::now();
    bench.good(
        &bench.reader,
        &["repo", "mirror", &bench.gitops(), "main/lib", "--limit-rate", &rate],
    );
    assert!(begun.elapsed() >= Duration::from_millis(1500), "{:?}", begun.elapsed());
    let said = bench.refused(&[
        "repo",
        "mirror",
        &bench.gitops(),
        "main/app",
        "--limit-rate",
        "1",
        "--timeout",
        "1",
    ]);
    assert!(said.contains("not there after 1 s"), "a deadline ends it: {said}");
}

#[test]
fn a_mirror_that_is_killed_is_valid_and_goes_on() {
    let bench = Bench::new();
    bench.configure(text(&bench.path("published/main")), "");
    for moment in [1, 2, 4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 128] {
        if moment % 16 == 0 {
            bench.publish();
        }
        let mut command = bench.command(&bench.reader, &["repo", "mirror", &bench.gitops()]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut child = child.expect("strata runs");
        // The moment is what is tried here; nothing is waited for.
        std::thread::sleep(Duration::from_millis(moment));
        child.kill().expect("a signal");
        child.wait().expect("it ends");
        if bench.path("reader/repos/main/database").exists() {
            bench.good(&bench.reader, &["repo", "verify", "main"]);
        }
        let layers = bench.path("reader/repos/main/app_1");
        if moment % 16 == 0 && layers.exists() {
            fs::remove_dir_all(layers).expect("removed");
        }
    }
    // The next writer removes what killed ones left.
    bench.publish();
    bench.mirror();
    bench.assert_mirrored();
}

#[test]
fn several_mirrors_at_once_are_one() {
    let bench = Bench::new();
    let (_server, url) = bench.serve();
    bench.configure(&url, "");
    let running: Vec<_> = (0..4)
        .map(|_| {
            let mut command = bench.command(&bench.reader, &["repo", "mirror", &bench.gitops()]);
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("strata runs")
        })
        .collect();
    for child in running {
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{output:?}");
    }
    bench.assert_mirrored();
}
