//! A local mirror of the distribution's archive, over HTTP: the whole index that the
//! machine's apt has, the packages that were downloaded, and beside it an archive of
//! updates, which is empty until the update is published.

use std::fs;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use strata_tests::archive;
use strata_tests::commands::{output, run};

use crate::appliances::Archive;

const BASE: &str = "stable";
const UPDATES: &str = "stable-security";
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(10);

pub struct Mirror {
    directory: PathBuf,
    architecture: String,
    /// The index of the updates, once they are published.
    updates: String,
    server: Child,
    port: u16,
}

impl Mirror {
    /// Makes the mirror in a directory that is not there, and serves it.
    pub fn make(directory: &Path, archive: &Archive) -> Result<Mirror> {
        let pool = directory.join("pool");
        fs::create_dir_all(&pool)?;
        let architecture = output(Command::new("dpkg").arg("--print-architecture"))?;
        let architecture = String::from_utf8(architecture)?.trim().to_owned();
        let (mut base, mut updates) = (String::new(), String::new());
        for path in archive::indexes()? {
            let text = String::from_utf8(archive::read_index(&path)?)?;
            for stanza in text.split("\n\n").map(str::trim).filter(|stanza| !stanza.is_empty()) {
                let field = |name: &str| value(stanza, name);
                let index = match field("Version") == archive.update.new.as_str() {
                    true => &mut updates,
                    false => &mut base,
                };
                let listed = field("Filename");
                let name = listed.rsplit('/').next().unwrap_or_default();
                let escaped = field("Version").replace(':', "%3a");
                let file = format!("{}_{escaped}_{}.deb", field("Package"), field("Architecture"));
                let file = archive.directory.join(file);
                if file.exists() && !pool.join(name).exists() {
                    symlink(&file, pool.join(name))?;
                }
                let filename = format!("\nFilename: {listed}");
                index.push_str(&stanza.replace(&filename, &format!("\nFilename: pool/{name}")));
                index.push_str("\n\n");
            }
        }
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let server = Command::new("busybox")
            .args(["httpd", "-f", "-p", &format!("127.0.0.1:{port}"), "-h"])
            .arg(directory)
            .stdin(Stdio::null())
            .spawn()
            .context("busybox httpd")?;
        let directory = directory.to_owned();
        let mirror = Mirror { directory, architecture, updates, server, port };
        mirror.write_archive(BASE, &base)?;
        mirror.write_archive(UPDATES, "")?;
        let end = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            ensure!(Instant::now() < end, "the mirror does not answer");
            std::thread::sleep(PAUSE);
        }
        Ok(mirror)
    }

    /// Releases the update.
    pub fn publish(&self) -> Result<()> {
        self.write_archive(UPDATES, &self.updates)
    }

    /// The lines for apt.
    pub fn sources(&self) -> String {
        let line = |archive: &str| {
            format!("deb [trusted=yes] http://127.0.0.1:{}/ {archive} main\n", self.port)
        };
        [line(BASE), line(UPDATES)].concat()
    }

    fn write_archive(&self, name: &str, index: &str) -> Result<()> {
        let archive = self.directory.join("dists").join(name);
        let below = format!("main/binary-{}", self.architecture);
        fs::create_dir_all(archive.join(&below))?;
        let plain = format!("{below}/Packages");
        fs::File::create(archive.join(&plain))?.write_all(index.as_bytes())?;
        run(Command::new("gzip").args(["-1", "-k", "-f", "-n"]).arg(archive.join(&plain)))?;
        let mut release = format!(
            "Suite: {name}\nCodename: {name}\nArchitectures: {}\nComponents: main\nDate: {}SHA256:\n",
            self.architecture,
            String::from_utf8(output(Command::new("date").args(["-Ru"]))?)?
        );
        for file in [plain.clone(), plain + ".gz"] {
            let path = archive.join(&file);
            let sum = String::from_utf8(output(Command::new("sha256sum").arg(&path))?)?;
            let sum = sum.split(' ').next().unwrap_or_default();
            release.push_str(&format!(" {sum} {} {file}\n", path.metadata()?.len()));
        }
        Ok(fs::write(archive.join("Release"), release)?)
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        // Both fail where it has ended, and then there is nothing to end.
        let _ended = self.server.kill();
        let _status = self.server.wait();
    }
}

/// The value of a field that stands in one line, or nothing.
fn value<'a>(stanza: &'a str, name: &str) -> &'a str {
    let lines = stanza.lines().filter_map(|line| line.split_once(": "));
    lines.filter(|(field, _)| *field == name).map(|(_, value)| value).next().unwrap_or_default()
}
