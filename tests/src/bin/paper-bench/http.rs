//! A web server with a search over a database, and load on it.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use strata_tests::commands::output;
use strata_tests::random::Random;

use crate::systems::inside;

/// What a template needs besides its own packages.
pub const PACKAGES: [&str; 4] = ["apache2", "libapache2-mod-php", "php-mysql", "mariadb-server"];
/// Where the database is: declared as data, as the paper advises (§6.4).
pub const DATA: &str = "/var/lib/mysql";

const ROWS: usize = 10_000;
/// MariaDB takes 60,000 bytes at most when it starts.
const ROWS_OF_A_STATEMENT: usize = 50;
const WORDS: usize = 2_000;
const WORDS_OF_A_ROW: usize = 60;
/// Different searches.
const SEARCHES: usize = 20;
/// Requests at once.
const CLIENTS: &str = "2";
const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(50);

const SERVE: &str = "set -e
mkdir -p /run/mysqld /tmp && chmod 1777 /tmp
mariadb-install-db --no-defaults --user=root --datadir=/var/lib/mysql \
    --auth-root-authentication-method=normal --skip-test-db --force > /bench/install.log 2>&1
mariadbd --no-defaults --user=root --datadir=/var/lib/mysql --socket=/run/mysqld/mysqld.sock \
    --skip-networking --init-file=/bench/load.sql > /bench/mariadb.log 2>&1 &
exec apache2 -D FOREGROUND -f /bench/apache.conf > /bench/apache.log 2>&1
";

/// With the cache of compiled scripts, as the distribution sets it up.
const PHP: &str = "zend_extension=opcache.so\nextension=mysqlnd.so\nextension=mysqli.so\n";

const SEARCH: &str = r#"<?php
$db = new mysqli("localhost", "root", "", "songs", 0, "/run/mysqld/mysqld.sock");
$query = $db->prepare("SELECT artist, title, LEFT(text, 200) FROM song WHERE MATCH (text) AGAINST (?) LIMIT 20");
$word = "word" . mt_rand(0, SEARCHES - 1);
$query->bind_param("s", $word);
$query->execute();
$query->bind_result($artist, $title, $text);
echo "<html><body><h1>Songs with ", htmlspecialchars($word), "</h1><ul>\n";
while ($query->fetch()) {
    echo "<li>", htmlspecialchars("$artist: $title: $text"), "</li>\n";
}
echo "</ul></body></html>\n";
"#;

/// The servers in one root; ended when they are dropped.
pub struct Server {
    child: Child,
    port: u16,
}

impl Server {
    /// Starts them, makes the data set, and waits until a search finds something.
    pub fn start(root: &Path) -> Result<Server> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let bench = root.join("bench");
        fs::create_dir_all(bench.join("www"))?;
        let search = SEARCH.replace("SEARCHES", &SEARCHES.to_string());
        fs::write(bench.join("www/search.php"), search)?;
        fs::write(bench.join("load.sql"), songs())?;
        fs::write(bench.join("php.ini"), PHP)?;
        fs::write(bench.join("apache.conf"), apache(root, port)?)?;
        let program = ["sh", "-c", SERVE].map(OsStr::new);
        let child = inside(root, &program).spawn().context("unshare")?;
        let mut server = Server { child, port };
        let end = Instant::now() + PATIENCE;
        while !server.search().is_ok_and(|page| page.contains("<li>")) {
            let ended = server.child.try_wait()?;
            ensure!(
                Instant::now() < end && ended.is_none(),
                "no page from {}: {}",
                root.display(),
                logs(&bench)
            );
            std::thread::sleep(PAUSE);
        }
        Ok(server)
    }

    fn search(&self) -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /search.php HTTP/1.0\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        Ok(page)
    }

    /// Requests a second.
    pub fn load(&self, requests: usize) -> Result<f64> {
        let mut ab = Command::new("ab");
        ab.args(["-q", "-l", "-c", CLIENTS, "-n", &requests.to_string()]);
        let said = output(ab.arg(format!("http://127.0.0.1:{}/search.php", self.port)))?;
        let said = String::from_utf8(said)?;
        let value = |name: &str| {
            let line = said.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.split_whitespace().next())
        };
        ensure!(value("Failed requests:") == Some("0"), "requests failed: {said}");
        ensure!(value("Non-2xx responses:").is_none(), "requests failed: {said}");
        Ok(value("Requests per second:").context("ab's answer")?.parse()?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail where it has ended, and then there is nothing to end.
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

/// What the servers wrote last.
fn logs(bench: &Path) -> String {
    let names = ["install.log", "mariadb.log", "apache.log", "errors.log"];
    let text = |name: &&str| fs::read_to_string(bench.join(name)).unwrap_or_default();
    let tail = |text: String| text.lines().rev().take(5).map(str::to_owned).collect::<Vec<_>>();
    names.iter().flat_map(|name| tail(text(name))).collect::<Vec<_>>().join("\n")
}

fn apache(root: &Path, port: u16) -> Result<String> {
    let modules = root.join("usr/lib/apache2/modules");
    let mut names = Vec::new();
    for entry in fs::read_dir(&modules).with_context(|| modules.display().to_string())? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    let php = names.iter().find(|name| name.starts_with("libphp")).context("no module of PHP")?;
    Ok(format!(
        "ServerRoot /usr/lib/apache2\nServerName localhost\nListen 127.0.0.1:{port}\nPidFile /bench/apache.pid\n\
         ErrorLog /bench/errors.log\nLoadModule mpm_prefork_module modules/mod_mpm_prefork.so\n\
         LoadModule authz_core_module modules/mod_authz_core.so\nLoadModule mime_module modules/mod_mime.so\n\
         LoadModule php_module modules/{php}\nTypesConfig /etc/mime.types\nUser www-data\nGroup www-data\nPHPIniDir /bench\n\
         StartServers 4\nMaxRequestWorkers 8\nDocumentRoot /bench/www\n<FilesMatch \\.php$>\n\
         SetHandler application/x-httpd-php\n</FilesMatch>\n"
    ))
}

/// The data set, the same every time: each line is one statement.
fn songs() -> String {
    let mut random = Random::new(1);
    let mut text = "CREATE DATABASE songs;\nUSE songs;\nCREATE TABLE song (id INT PRIMARY KEY, artist TEXT, title TEXT, text TEXT, \
                    FULLTEXT (text)) ENGINE=InnoDB;\n"
        .to_owned();
    for row in 0..ROWS {
        text.push_str(if row % ROWS_OF_A_STATEMENT == 0 {
            "INSERT INTO song VALUES "
        } else {
            ","
        });
        let words: Vec<_> =
            (0..WORDS_OF_A_ROW).map(|_| format!("word{}", random.below(WORDS))).collect();
        text.push_str(&format!(
            "({row},'artist {}','song {row}','{}')",
            random.below(500),
            words.join(" ")
        ));
        if (row + 1) % ROWS_OF_A_STATEMENT == 0 {
            text.push_str(";\n");
        }
    }
    text
}
