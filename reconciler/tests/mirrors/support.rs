//! An owner's store, published in every way, and a store that mirrors it.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use strata_store::Store;
use tempfile::TempDir;

pub fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

pub fn command(program: &str) -> Command {
    Command::new(program)
}

/// A process that ends with the test.
pub struct Server {
    child: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

pub struct Bench {
    pub directory: TempDir,
    /// Where layers are made.
    pub owner: Store,
    /// Where they are used.
    pub reader: Store,
}

impl Bench {
    /// An owner with two layers of one repository, signed and published in `published/`.
    pub fn new() -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        // Servers that drop their privileges read below it.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("set");
        let store = |name: &str| Store::init(&directory.path().join(name)).expect("a store");
        let (owner, reader) = (store("owner"), store("reader"));
        let bench = Bench { directory, owner, reader };
        bench.layer("app", "1", "one");
        bench.layer("lib", "1:2", &noise(160_000));
        for name in ["offline", "nightly"] {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f", text(&bench.path(name))])
                .status()
                .expect("ssh-keygen runs: apt-get install openssh-client");
            assert!(made.success());
        }
        let (offline, nightly) = (bench.path("offline.pub"), bench.path("nightly.pub"));
        let keys = ["--root-key", text(&offline), "--database-key", text(&nightly)];
        let key = bench.path("offline");
        let set = [&["repo", "key", "set", "main"][..], &keys, &["--key", text(&key)]].concat();
        bench.good(&bench.owner, &set);
        bench.publish();
        bench
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.directory.path().join(below)
    }

    /// Builds a layer in the owner's store; its file is `usr/share/LAYER`.
    pub fn layer(&self, layer: &str, version: &str, content: &str) {
        let root = self.path(&format!("roots/{layer}-{version}"));
        fs::create_dir_all(root.join("usr/share")).expect("made");
        fs::write(root.join("usr/share").join(layer), content).expect("written");
        let build = ["layer", "build", "--repo", "main", "--name", layer, "--version", version];
        self.good(&self.owner, &[&build[..], &["--root", text(&root)]].concat());
    }

    pub fn sign(&self) {
        let key = self.path("nightly");
        self.good(&self.owner, &["repo", "sign", "main", "--key", text(&key)]);
    }

    pub fn publish(&self) {
        self.sign();
        let to = self.path("published/main");
        self.good(&self.owner, &["repo", "publish", "main", text(&to)]);
    }

    /// Writes the reader's GitOps repository: `main` from a URL, and one LDF of both layers.
    pub fn configure(&self, url: &str, more: &str) {
        let public = fs::read_to_string(self.path("offline.pub")).expect("a key");
        let keys = format!("keys = [\"{}\"]\n{more}", public.trim_end());
        self.configure_with(url, &keys);
    }

    pub fn configure_with(&self, url: &str, keys: &str) {
        let directory = self.path("gitops");
        fs::create_dir_all(directory.join("templates")).expect("made");
        let configuration = format!("[[repository]]\nname = \"main\"\nurl = \"{url}\"\n{keys}");
        fs::write(directory.join("strata.toml"), configuration).expect("written");
        let ldf = "main/app 1\nmain/lib 1:2\n";
        fs::write(directory.join("templates/web.ldf"), ldf).expect("written");
    }

    pub fn gitops(&self) -> String {
        text(&self.path("gitops")).to_owned()
    }

    pub fn command(&self, store: &Store, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_strata"));
        command.args(arguments).env("STRATA_STORE", store.root());
        // What a developer's machine has set must not lead loopback astray.
        for name in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"] {
            command.env_remove(name);
        }
        command
    }

    pub fn strata(&self, store: &Store, arguments: &[&str]) -> Output {
        self.command(store, arguments).output().expect("strata runs")
    }

    pub fn good(&self, store: &Store, arguments: &[&str]) -> String {
        let output = self.strata(store, arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// What the reader's command prints that does not succeed.
    pub fn refused(&self, arguments: &[&str]) -> String {
        let output = self.strata(&self.reader, arguments);
        assert!(!output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8([output.stdout, output.stderr].concat()).expect("UTF-8")
    }

    pub fn sync(&self) -> String {
        self.good(&self.reader, &["repo", "sync", &self.gitops()])
    }

    pub fn mirror(&self) -> String {
        self.good(&self.reader, &["repo", "mirror", &self.gitops()])
    }

    /// The mirror has both layers, bit for bit, and the check of the LDFs agrees.
    pub fn assert_mirrored(&self) {
        let said = self.good(&self.reader, &["repo", "verify", "main"]);
        assert!(said.contains("2 units"), "{said}");
        self.good(&self.reader, &["check", &self.gitops()]);
        self.assert_nothing_half();
    }

    /// What the reader's repository holds besides its documents and units.
    pub fn assert_nothing_half(&self) {
        let repository = self.path("reader/repos/main");
        for entry in fs::read_dir(&repository).expect("listed") {
            let name = entry.expect("an entry").file_name().into_string().expect("UTF-8");
            assert!(!name.starts_with(".staging") && !name.starts_with(".new"), "{name} is left");
        }
    }

    pub fn unit(&self, layer: &str, version: &str) -> PathBuf {
        let name = layer.parse().expect("a name");
        let version = version.parse().expect("a version");
        self.reader.unit_path(&"main".parse().expect("a name"), &name, &version)
    }

    pub fn archive(&self, layer: &str, version: &str) -> PathBuf {
        let unit = self.unit(layer, version);
        let name = unit.file_name().expect("a name").to_string_lossy().into_owned();
        self.path(&format!("published/main/{name}.tar.zst"))
    }

    /// Serves the owner's store by `strata repo serve`; the URL of `main`.
    pub fn serve(&self) -> (Server, String) {
        let cache = self.path("cache");
        let arguments =
            ["repo", "serve", "main", "--listen", "127.0.0.1:0", "--cache", text(&cache)];
        let mut command = self.command(&self.owner, &arguments);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("strata runs");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let server = Server { child };
        let address = line.trim().rsplit_once(' ').expect("an address").1.to_owned();
        (server, format!("{address}/main"))
    }

    /// Starts a server that does not go into the background, and waits until it answers.
    pub fn spawn(&self, mut command: Command, port: u16, hint: &str) -> Server {
        let name = command.get_program().to_string_lossy().into_owned();
        let log = self.path(&format!("{}.log", name.rsplit('/').next().unwrap_or(&name)));
        let output = fs::File::create(&log).expect("a log");
        let errors = output.try_clone().expect("a handle");
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}; {hint}"));
        let mut server = Server { child };
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = server.child.try_wait().expect("waited");
            let said = || fs::read_to_string(&log).unwrap_or_default();
            assert!(ended.is_none(), "{name} ended: {ended:?}: {}", said());
            assert!(Instant::now() < deadline, "{name} does not answer: {}", said());
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }
}

/// Text that cannot be compressed to next to nothing; the same each time.
fn noise(bytes: usize) -> String {
    let mut state = 1_u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(b'0' + ((state >> 33) % 64) as u8)
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

/// A port that was free just now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
    listener.local_addr().expect("an address").port()
}

/// One request with nothing between the test and the wire: status line, headers, content.
pub fn request(url: &str, head: &str) -> (String, Vec<u8>) {
    let address = url.strip_prefix("http://").expect("a URL").split('/').next().expect("a host");
    let mut stream = TcpStream::connect(address).expect("connected");
    stream.write_all(head.as_bytes()).expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("read");
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("headers") + 4;
    let content = answer.split_off(end);
    (String::from_utf8(answer).expect("text").to_ascii_lowercase(), content)
}
