//! Owners by name: RPM packages name users and groups, files have numbers.

use std::collections::BTreeMap;

/// Users and groups that are known when a package is converted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owners {
    users: BTreeMap<String, u32>,
    groups: BTreeMap<String, u32>,
}

impl Default for Owners {
    /// Only root.
    fn default() -> Self {
        let root = || BTreeMap::from([("root".to_owned(), 0)]);
        Owners { users: root(), groups: root() }
    }
}

impl Owners {
    /// Adds what a `passwd(5)` and a `group(5)` file hold; root stays 0.
    pub fn add(&mut self, passwd: &[u8], group: &[u8]) {
        fn read(into: &mut BTreeMap<String, u32>, text: &[u8]) {
            for line in String::from_utf8_lossy(text).lines() {
                let mut fields = line.split(':');
                let (name, number) = (fields.next(), fields.nth(1).and_then(|n| n.parse().ok()));
                if let (Some(name), Some(number)) = (name, number) {
                    into.entry(name.to_owned()).or_insert(number);
                }
            }
        }
        read(&mut self.users, passwd);
        read(&mut self.groups, group);
    }

    pub fn user(&self, name: &str) -> Option<u32> {
        self.users.get(name).copied()
    }

    pub fn group(&self, name: &str) -> Option<u32> {
        self.groups.get(name).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_numbers() {
        let mut owners = Owners::default();
        owners.add(b"root:x:7:7::/:/bin/sh\nmail:x:8:12::/:\nbad\n", b"mail:x:12:\n");
        assert_eq!((owners.user("root"), owners.user("mail")), (Some(0), Some(8)));
        assert_eq!((owners.group("mail"), owners.group("bad")), (Some(12), None));
    }
}
