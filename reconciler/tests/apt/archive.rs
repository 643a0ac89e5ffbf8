//! A small archive of packages, signed with a key of its own, an apt that knows
//! no other, and a server on the loopback that can be told to misbehave.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;

/// Runs a tool that the tests need; its standard output.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| {
        panic!("{command:?}: {error}; apt-get install apt dpkg gnupg gpgv")
    });
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

pub struct Archive {
    directory: TempDir,
    pub server: Server,
}

impl Archive {
    /// An archive without packages, an apt whose only source it is, and a store.
    pub fn set_up() -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let root = directory.path();
        for path in [
            "gpg",
            "archive/pool",
            "archive/dists/sid/main",
            "apt/etc/sources.list.d",
            "apt/state/lists",
            "apt/cache",
        ] {
            fs::create_dir_all(root.join(path)).expect("a directory");
        }
        let server = Server::start(root.join("archive"));
        let archive = Archive { directory, server };
        let keys = archive.path("gpg");
        fs::set_permissions(&keys, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .expect("mode");
        archive.make_key("archive@example.org", "archive.asc");
        let apt = archive.path("apt");
        let configuration = format!(
            "Dir \"{0}\";\nDir::Etc \"etc\";\nDir::State \"state\";\nDir::State::status \"{0}/state/status\";\nDir::Cache \"cache\";\nAPT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; }};\nAcquire::http::Proxy \"DIRECT\";\n",
            text(&apt)
        );
        fs::write(archive.path("apt.conf"), configuration).expect("written");
        fs::write(apt.join("state/status"), "").expect("written");
        archive.source("");
        run(Command::new(env!("CARGO_BIN_EXE_strata")).args(["init", text(&archive.path("store"))]));
        archive
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn gpg(&self) -> Command {
        let mut gpg = Command::new("gpg");
        gpg.args(["--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]);
        gpg.arg("--homedir").arg(self.path("gpg"));
        gpg
    }

    /// Makes a key and exports it, armoured, to `file`.
    pub fn make_key(&self, user: &str, file: &str) {
        run(self.gpg().args(["--quick-gen-key", user, "ed25519", "sign", "never"]));
        let key = run(self.gpg().args(["--armor", "--export", user]));
        fs::write(self.path(file), key).expect("written");
    }

    /// Writes the source: a deb822 stanza with these further lines.
    pub fn source(&self, more: &str) {
        let (url, key) = (self.server.url(), self.path("archive.asc"));
        let stanza = format!(
            "# the tests' archive\nTypes: deb\nURIs: {url}\nSuites: sid\nComponents: main\nSigned-By: {}\n{more}",
            text(&key)
        );
        fs::write(self.path("apt/etc/sources.list.d/test.sources"), stanza).expect("written");
    }

    /// Writes the source as a line of a `.list`.
    pub fn source_line(&self, line: &str) {
        fs::remove_file(self.path("apt/etc/sources.list.d/test.sources")).expect("removed");
        fs::write(self.path("apt/etc/sources.list.d/test.list"), line).expect("written");
    }

    /// Puts a package into the pool. `fill` bytes that do not compress are in it.
    pub fn package(&self, name: &str, version: &str, fields: &str, fill: usize) {
        let root = self.path(&format!("roots/{name}_{version}"));
        fs::create_dir_all(root.join("DEBIAN")).expect("a directory");
        fs::create_dir_all(root.join("usr/share")).expect("a directory");
        let control = format!(
            "Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: A <a@example.org>\nSection: net\n{fields}Description: a package\n"
        );
        fs::write(root.join("DEBIAN/control"), control).expect("written");
        let mut state = 1_u64;
        let noise = (0..fill).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        });
        fs::write(root.join("usr/share").join(name), noise.collect::<Vec<_>>()).expect("written");
        let deb = self.path(&format!("archive/pool/{name}_{version}_amd64.deb"));
        run(Command::new("dpkg-deb")
            .args(["-Znone", "--root-owner-group", "--build"])
            .arg(&root)
            .arg(&deb));
    }

    /// Writes the index of the pool and a release that is valid for a week.
    pub fn publish(&self) {
        self.publish_dated("now", "now +7 days");
    }

    pub fn publish_dated(&self, date: &str, valid_until: &str) {
        let mut index = String::new();
        let mut names: Vec<_> = fs::read_dir(self.path("archive/pool"))
            .expect("the pool")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        names.sort();
        for deb in names {
            index.push_str(run(Command::new("dpkg-deb").arg("-f").arg(&deb)).trim_end());
            let name = deb.file_name().expect("a name").to_string_lossy().into_owned();
            let size = deb.metadata().expect("there").len();
            index.push_str(&format!(
                "\nFilename: pool/{name}\nSize: {size}\nSHA256: {}\n\n",
                sha256(&deb)
            ));
        }
        let place = self.path("archive/dists/sid/main/binary-amd64");
        fs::create_dir_all(&place).expect("a directory");
        fs::write(place.join("Packages"), index).expect("written");
        run(Command::new("gzip").args(["-kfn9"]).arg(place.join("Packages")));
        let of = |text: &str| run(Command::new("date").args(["-u", "-R", "-d", text]));
        let mut release = format!(
            "Origin: Tests\nLabel: Tests-Security\nSuite: unstable\nCodename: sid\nArchitectures: amd64\nComponents: main\nDate: {}Valid-Until: {}SHA256:\n",
            of(date),
            of(valid_until)
        );
        for file in ["Packages", "Packages.gz"] {
            let path = place.join(file);
            let size = path.metadata().expect("there").len();
            release.push_str(&format!(" {} {size} main/binary-amd64/{file}\n", sha256(&path)));
        }
        fs::write(self.path("archive/dists/sid/Release"), release).expect("written");
        self.sign("archive@example.org");
    }

    /// Signs the release, inline.
    pub fn sign(&self, user: &str) {
        let release = self.path("archive/dists/sid/Release");
        let signed = self.path("archive/dists/sid/InRelease");
        run(self.gpg().args(["--yes", "--clearsign", "-u", user, "-o"]).arg(signed).arg(release));
    }

    /// Signs the release in a file of its own, and has no other.
    pub fn sign_detached(&self) {
        let release = self.path("archive/dists/sid/Release");
        let signature = self.path("archive/dists/sid/Release.gpg");
        run(self
            .gpg()
            .args(["--yes", "--armor", "--detach-sign", "-o"])
            .arg(signature)
            .arg(release));
        fs::remove_file(self.path("archive/dists/sid/InRelease")).expect("removed");
    }

    pub fn strata(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_strata"));
        command.args(arguments).env("STRATA_STORE", self.path("store"));
        command.env("APT_CONFIG", self.path("apt.conf")).env_remove("http_proxy");
        command
    }

    pub fn import_command(&self, arguments: &[&str]) -> Command {
        let cache = self.path("packages");
        let mut command =
            self.strata(&["layer", "import", "--from", "apt", "--cache", text(&cache)]);
        command.args(arguments);
        command
    }

    pub fn import(&self, arguments: &[&str]) -> Output {
        self.import_command(arguments).output().expect("strata runs")
    }

    /// What a successful import prints.
    pub fn good(&self, arguments: &[&str]) -> String {
        let output = self.import(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// What an import that exits with 2 says.
    pub fn bad(&self, arguments: &[&str]) -> String {
        let output = self.import(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        String::from_utf8(output.stderr).expect("UTF-8")
    }

    /// The layers of the repository, `layer version` each, after a check that the
    /// database is what an index of the directories gives, with nothing left.
    pub fn layers(&self) -> Vec<String> {
        self.layers_of("main")
    }

    /// [`Archive::layers`] of any repository.
    pub fn layers_of(&self, repository: &str) -> Vec<String> {
        let list = |archive: &Archive| {
            let list = run(archive
                .strata(&["layer", "list", "--output", "json"])
                .arg("--repo")
                .arg(repository));
            serde_json::from_str::<serde_json::Value>(&list).expect("JSON")
        };
        let before = list(self);
        run(self.strata(&["repo", "index"]).arg(repository));
        assert_eq!(before, list(self), "the database is what the directories hold");
        let repository = self.path(&format!("store/repos/{repository}"));
        let names = fs::read_dir(&repository).expect("the repository");
        let names = names.map(|entry| entry.expect("an entry").file_name());
        let left: Vec<_> =
            names.filter(|name| name.to_string_lossy().starts_with(".staging")).collect();
        assert!(left.is_empty(), "{left:?}");
        let units = before["layers"].as_array().or(before.as_array()).expect("a list").clone();
        let word =
            |unit: &serde_json::Value, name: &str| unit[name].as_str().unwrap_or("").to_owned();
        units
            .iter()
            .map(|unit| format!("{} {}", word(unit, "layer"), word(unit, "version")))
            .collect()
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        let ended = Command::new("gpgconf")
            .args(["--kill", "gpg-agent", "--homedir"])
            .arg(self.path("gpg"))
            .output();
        if let Err(error) = ended {
            eprintln!("gpg-agent was not ended: {error}");
        }
    }
}

fn sha256(path: &Path) -> String {
    run(Command::new("sha256sum").arg(path)).split(' ').next().expect("a digest").to_owned()
}

/// What the server does to a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Answers so many requests with half of what is left, then closes.
    Cut(u32),
    /// Answers so many requests with 503.
    Unavailable(u32),
    /// Sends a little at a time.
    Slow,
}

#[derive(Default)]
struct Shared {
    faults: BTreeMap<String, Fault>,
    /// `Basic` and what follows it, without which nothing is given out.
    authorization: Option<String>,
    /// Path and where the answer began.
    requests: Vec<(String, u64)>,
}

/// Serves a directory over HTTP, with ranges, until the test ends.
pub struct Server {
    port: u16,
    shared: Arc<Mutex<Shared>>,
}

impl Server {
    fn start(root: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Mutex::new(Shared::default()));
        let for_threads = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { continue };
                let (root, shared) = (root.clone(), for_threads.clone());
                // A client that goes away is none of the server's business.
                std::thread::spawn(move || drop(answer(stream, &root, &shared)));
            }
        });
        Server { port, shared }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    pub fn fault(&self, path: &str, fault: Fault) {
        self.shared.lock().expect("lock").faults.insert(path.to_owned(), fault);
    }

    /// Gives nothing out but to those who send this header (in lower case, as it is compared).
    pub fn demand(&self, authorization: &str) {
        let authorization = Some(authorization.to_ascii_lowercase());
        self.shared.lock().expect("lock").authorization = authorization;
    }

    pub fn heal(&self) {
        self.shared.lock().expect("lock").faults.clear();
    }

    /// The requests so far of paths that contain `part`, by where they began.
    pub fn requests(&self, part: &str) -> Vec<u64> {
        let shared = self.shared.lock().expect("lock");
        let requests = shared.requests.iter().filter(|(path, _)| path.contains(part));
        requests.map(|(_, start)| *start).collect()
    }
}

fn answer(mut stream: TcpStream, root: &Path, shared: &Mutex<Shared>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or(Ok(String::new()))?;
    let path = first.split(' ').nth(1).unwrap_or("/").trim_start_matches('/').to_owned();
    let (mut start, mut authorization) = (0_u64, None);
    for line in lines {
        let line = line?.to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(range) = line.strip_prefix("range: bytes=") {
            start = range.trim_end_matches('-').parse().unwrap_or(0);
        }
        if let Some(given) = line.strip_prefix("authorization: ") {
            authorization = Some(given.to_owned());
        }
    }
    let wanted = shared.lock().expect("lock").authorization.clone();
    if wanted.is_some() && wanted != authorization {
        return write!(stream, "HTTP/1.1 401 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    }
    let fault = {
        let mut shared = shared.lock().expect("lock");
        shared.requests.push((path.clone(), start));
        let fault = shared.faults.get(&path).copied();
        match fault {
            Some(Fault::Cut(1) | Fault::Unavailable(1)) => shared.faults.remove(&path),
            Some(Fault::Cut(n)) => shared.faults.insert(path.clone(), Fault::Cut(n - 1)),
            Some(Fault::Unavailable(n)) => {
                shared.faults.insert(path.clone(), Fault::Unavailable(n - 1))
            }
            Some(Fault::Slow) | None => None,
        };
        fault
    };
    let Ok(mut file) = fs::File::open(root.join(&path)) else {
        return write!(stream, "HTTP/1.1 404 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    };
    if matches!(fault, Some(Fault::Unavailable(_))) {
        return write!(stream, "HTTP/1.1 503 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    }
    let mut body = Vec::new();
    file.read_to_end(&mut body)?;
    let total = body.len();
    let body = &body[usize::try_from(start).unwrap_or(0).min(total)..];
    let status = if start == 0 { "200 Yes" } else { "206 Part" };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nContent-Range: bytes {start}-{}/{total}\r\nConnection: close\r\n\r\n",
        body.len(),
        total.saturating_sub(1)
    )?;
    match fault {
        Some(Fault::Cut(_)) => stream.write_all(&body[..body.len() / 2]),
        Some(Fault::Slow) => body.chunks(4_096).try_for_each(|chunk| {
            std::thread::sleep(Duration::from_millis(20));
            stream.write_all(chunk)
        }),
        _ => stream.write_all(body),
    }
}
