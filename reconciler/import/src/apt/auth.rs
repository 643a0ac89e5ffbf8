//! Names and passwords for archives (`apt_auth.conf(5)`): what `machine` stands for which
//! address.

use std::fmt;

use zeroize::Zeroizing;

/// Who to be at an archive.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    pub name: Zeroizing<String>,
    pub password: Zeroizing<String>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login")
    }
}

/// One `machine` with what follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Machine {
    scheme: Option<String>,
    host: String,
    port: Option<u16>,
    /// With its slash; empty where any path is meant.
    path: String,
    login: Login,
}

/// What all files say together, the first that fits counts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Logins {
    machines: Vec<Machine>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    #[error("the file is not UTF-8")]
    Encoding,
    #[error("`{0}` is the last word, and something must follow it")]
    Cut(&'static str),
    #[error("the machine {0:?} is not [PROTOCOL://]HOST[:PORT][/PATH]")]
    Machine(String),
}

impl Logins {
    /// Adds what a file says. Words that are not known are passed over, as apt does.
    ///
    /// # Errors
    /// It is cut short or names a machine that cannot be.
    pub fn add(&mut self, text: &[u8]) -> Result<(), AuthError> {
        let text = std::str::from_utf8(text).map_err(|_| AuthError::Encoding)?;
        let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
        let mut words = lines.flat_map(str::split_whitespace);
        let mut machine: Option<Machine> = None;
        while let Some(word) = words.next() {
            match word {
                "machine" => {
                    let next = words.next().ok_or(AuthError::Cut("machine"))?;
                    self.machines.extend(machine.replace(parse_machine(next)?));
                }
                "login" => {
                    let next = words.next().ok_or(AuthError::Cut("login"))?;
                    if let Some(machine) = &mut machine {
                        machine.login.name = Zeroizing::new(next.to_owned());
                    }
                }
                "password" => {
                    let next = words.next().ok_or(AuthError::Cut("password"))?;
                    if let Some(machine) = &mut machine {
                        machine.login.password = Zeroizing::new(next.to_owned());
                    }
                }
                _ => {}
            }
        }
        self.machines.extend(machine);
        Ok(())
    }

    /// Who to be at an address. A machine without a protocol is one of https alone, so that
    /// no password goes over the wire in the clear which nobody wanted there.
    pub fn find(&self, scheme: &str, host: &str, port: Option<u16>, path: &str) -> Option<&Login> {
        let fits = |machine: &&Machine| {
            machine.scheme.as_deref().unwrap_or("https") == scheme
                && machine.host.eq_ignore_ascii_case(host)
                && machine.port.is_none_or(|own| Some(own) == port)
                && path.starts_with(&machine.path)
        };
        self.machines.iter().find(fits).map(|machine| &machine.login)
    }
}

fn parse_machine(text: &str) -> Result<Machine, AuthError> {
    let bad = || AuthError::Machine(text.chars().take(100).collect());
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) => (Some(scheme.to_ascii_lowercase()), rest),
        None => (None, text),
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let is_port = |(_, port): &(&str, &str)| !port.is_empty() && !port.contains(']');
    let (host, port) = match authority.rsplit_once(':').filter(is_port) {
        Some((host, port)) => (host, Some(port.parse().map_err(|_| bad())?)),
        None => (authority, None),
    };
    if host.is_empty() || host.contains('@') {
        return Err(bad());
    }
    let login = Login { name: Zeroizing::default(), password: Zeroizing::default() };
    Ok(Machine { scheme, host: host.to_owned(), port, path: path.to_owned(), login })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logins(text: &str) -> Logins {
        let mut logins = Logins::default();
        logins.add(text.as_bytes()).expect("valid");
        logins
    }

    /// The manual's own examples.
    #[test]
    fn which_lines_fit() {
        let at_example = |machine: &str| {
            let logins = logins(&format!("machine {machine} login apt password debian"));
            let found = logins.find("https", "example.org", None, "/debian/dists/x");
            found.map(|login| format!("{}:{}", *login.name, *login.password))
        };
        for machine in
            ["example.org", "example.org/deb", "example.org/debian", "https://example.org/debian/"]
        {
            assert_eq!(at_example(machine).as_deref(), Some("apt:debian"), "{machine}");
        }
        for machine in [
            "example.org:443",
            "example.org/deb/",
            "example.org/ubuntu",
            "example.orga",
            "example.net",
            "http://example.org",
        ] {
            assert_eq!(at_example(machine), None, "{machine}");
        }
    }

    #[test]
    fn several_lines_and_files() {
        let mut logins = logins(
            "# machine z login z\nmachine a\n login one\n password 1 account x\nmachine http://a:80/p login two password 2\n",
        );
        logins
            .add(b"machine a login three password 3\nmachine [::1]:81 login v6 password 6\n")
            .expect("valid");
        let name = |scheme: &str, host: &str, port, path: &str| {
            logins.find(scheme, host, port, path).map(|login| login.name.as_str())
        };
        assert_eq!(name("https", "A", None, "/"), Some("one"), "the first counts");
        assert_eq!(name("http", "a", Some(80), "/pool"), Some("two"));
        assert_eq!(name("http", "a", Some(81), "/pool"), None);
        assert_eq!(name("https", "[::1]", Some(81), "/"), Some("v6"));
        assert!(!format!("{logins:?}").contains("three"), "no name or password is printed");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |text: &[u8]| Logins::default().add(text).expect_err("refused");
        assert_eq!(refused(b"machine"), AuthError::Cut("machine"));
        assert_eq!(refused(b"machine a login"), AuthError::Cut("login"));
        for machine in ["https:///x", "a:b", "me@a"] {
            let text = format!("machine {machine} login a");
            assert_eq!(refused(text.as_bytes()), AuthError::Machine(machine.to_owned()));
        }
        assert_eq!(refused(b"\xff"), AuthError::Encoding);
    }
}
