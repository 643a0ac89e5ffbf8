//! Servers on the loopback that a source is fetched from: OpenSSH's, and git's own
//! smart HTTP over TLS.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::support::wait_until;

fn run(command: &mut Command) {
    let output = command.output().expect("apt-get install openssh-server openssh-client openssl");
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// A key pair; the public half is beside it with the extension `pub`.
pub fn ssh_key(path: &Path) {
    run(Command::new("ssh-keygen").args(["-q", "-N", "", "-t", "ed25519", "-f"]).arg(path));
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("bound").local_addr().expect("an address").port()
}

/// `sshd` with a host key of its own, which lets one key in.
pub struct SshServer {
    child: Child,
    pub port: u16,
}

impl SshServer {
    /// Keys are made in `directory`: `host`, where there is none yet, and the key
    /// `user`, which is let in.
    pub fn start(directory: &Path, host: &str) -> Self {
        let host_key = directory.join(host);
        ssh_key(&host_key);
        if !directory.join("user").exists() {
            ssh_key(&directory.join("user"));
        }
        fs::copy(directory.join("user.pub"), directory.join("authorized")).expect("copied");
        // Where sshd separates privileges; Debian makes it when the service starts.
        fs::create_dir_all("/run/sshd").expect("made");
        let port = free_port();
        let path = std::env::var("PATH").expect("set");
        let text = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\n\
             StrictModes no\nUsePAM no\nPidFile none\nPasswordAuthentication no\n\
             KbdInteractiveAuthentication no\nPermitRootLogin yes\nSetEnv PATH={path}\n",
            host_key.display(),
            directory.join("authorized").display()
        );
        let configuration = directory.join(format!("sshd-{port}"));
        fs::write(&configuration, text).expect("written");
        let child = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(&configuration)
            .stderr(fs::File::create(directory.join("sshd.log")).expect("a log"))
            .spawn()
            .expect("apt-get install openssh-server");
        wait_until("sshd listens", Duration::from_secs(20), || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        SshServer { child, port }
    }

    /// The line of `known_hosts` that names this server with a host key.
    pub fn known_host(&self, directory: &Path, host: &str) -> String {
        let public = fs::read_to_string(directory.join(host).with_extension("pub")).expect("read");
        format!("[127.0.0.1]:{} {public}", self.port)
    }
}

impl Drop for SshServer {
    fn drop(&mut self) {
        // Harmless where it has ended.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// `git http-backend` behind TLS, for those who bring the right `Authorization`.
pub struct HttpsServer {
    pub port: u16,
    /// The certificate to know it by.
    pub certificate: PathBuf,
    /// `Authorization` of every request, in order.
    pub seen: Arc<Mutex<Vec<Option<String>>>>,
    pub served: Arc<AtomicUsize>,
}

/// How a server answers.
#[derive(Debug, Clone)]
pub enum Answers {
    /// What `git http-backend` says, to those with this `Authorization`.
    Git { root: PathBuf, authorization: String },
    /// A redirection of everything.
    Redirect(String),
    /// The beginning of an answer, and then nothing more.
    Hang,
}

impl HttpsServer {
    /// Serves until the test ends.
    pub fn start(directory: &Path, name: &str, answers: Answers) -> Self {
        let (certificate, key) =
            (directory.join(format!("{name}.pem")), directory.join(format!("{name}.key")));
        run(Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
            .args(["-nodes", "-days", "3650", "-subj", "/CN=localhost"])
            .args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&certificate));
        let chain = vec![CertificateDer::from_pem_file(&certificate).expect("a certificate")];
        let key = PrivateKeyDer::from_pem_file(&key).expect("a key");
        let cryptography = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ServerConfig::builder_with_provider(cryptography)
            .with_safe_default_protocol_versions()
            .expect("versions of TLS")
            .with_no_client_auth()
            .with_single_cert(chain, key);
        let tls = Arc::new(tls.expect("a pair"));
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let port = listener.local_addr().expect("an address").port();
        let (seen, served) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<AtomicUsize>::default());
        let (all_seen, all_served) = (seen.clone(), served.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (tls, answers) = (tls.clone(), answers.clone());
                let (seen, served) = (all_seen.clone(), all_served.clone());
                std::thread::spawn(move || {
                    let connection = ServerConnection::new(tls).expect("a connection");
                    let mut stream = StreamOwned::new(connection, stream.expect("a stream"));
                    if let Some(request) = Request::read(&mut stream) {
                        seen.lock().expect("held by nobody").push(request.header("authorization"));
                        answer(&mut stream, &request, &answers);
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                    stream.conn.send_close_notify();
                    // The client may be gone.
                    let _flushed = stream.flush();
                });
            }
        });
        HttpsServer { port, certificate, seen, served }
    }

    pub fn url(&self, repository: &str) -> String {
        format!("https://127.0.0.1:{}/{repository}", self.port)
    }
}

struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    /// `None` where the client went away, as one that does not know the certificate.
    fn read(stream: impl Read) -> Option<Self> {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let mut words = line.split(' ');
        let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        let mut request = Request { method, target, headers, body: Vec::new() };
        let length = request.header("content-length").map_or(0, |text| text.parse().unwrap_or(0));
        request.body = vec![0; length];
        reader.read_exact(&mut request.body).ok()?;
        Some(request)
    }

    fn header(&self, name: &str) -> Option<String> {
        let found = self.headers.iter().find(|(found, _)| found == name);
        found.map(|(_, value)| value.clone())
    }
}

fn answer(stream: &mut impl Write, request: &Request, answers: &Answers) {
    let text = match answers {
        Answers::Redirect(to) => {
            format!("HTTP/1.1 302 Found\r\nLocation: {to}{}\r\n\r\n", request.target).into_bytes()
        }
        Answers::Hang => {
            let begun = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n001e# service";
            let _gone = stream.write_all(begun).and_then(|()| stream.flush());
            std::thread::sleep(Duration::from_secs(60));
            return;
        }
        Answers::Git { root, authorization } => {
            match request.header("authorization").is_some_and(|given| given == *authorization) {
                true => backend(root, request),
                false => b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"git\"\r\n\
                           Content-Length: 0\r\n\r\n"
                    .to_vec(),
            }
        }
    };
    // The client may be gone.
    let _gone = stream.write_all(&text);
}

/// What `git http-backend` answers, as HTTP.
fn backend(root: &Path, request: &Request) -> Vec<u8> {
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    let mut command = Command::new("git");
    command
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REQUEST_METHOD", &request.method)
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("CONTENT_LENGTH", request.body.len().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    for (variable, header) in [
        ("CONTENT_TYPE", "content-type"),
        ("HTTP_CONTENT_ENCODING", "content-encoding"),
        ("GIT_PROTOCOL", "git-protocol"),
    ] {
        if let Some(value) = request.header(header) {
            command.env(variable, value);
        }
    }
    let mut child = command.spawn().expect("git starts");
    child.stdin.take().expect("piped").write_all(&request.body).expect("taken");
    let output = child.wait_with_output().expect("ends").stdout;
    let status = match output.starts_with(b"Status: ") {
        true => {
            let line = output.split(|byte| *byte == b'\r').next().expect("a line");
            String::from_utf8_lossy(&line["Status: ".len()..]).into_owned()
        }
        false => "200 OK".to_owned(),
    };
    let mut text = format!("HTTP/1.1 {status}\r\nConnection: close\r\n").into_bytes();
    text.extend(output);
    text
}
