//! The interpreter that a script names in its first line (execve(2)).

/// Bytes of the first line that the kernel looks at (`BINPRM_BUF_SIZE`).
pub const LINE_BYTES: usize = 256;

/// What runs a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Interpreter {
    /// A program by its path, without the slash before it.
    Path(Vec<u8>),
    /// A program that `env` looks for, and the path of `env`.
    Searched { env: Vec<u8>, name: Vec<u8> },
    /// The line names no absolute path: the kernel would look in the current directory.
    Relative(Vec<u8>),
}

impl Interpreter {
    /// The interpreter of a file that begins so; `None` where it is no script.
    pub fn of(start: &[u8]) -> Option<Self> {
        let start = &start[..start.len().min(LINE_BYTES)];
        let line = start.strip_prefix(b"#!")?.split(|byte| matches!(byte, b'\n' | 0)).next()?;
        let mut words =
            line.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty());
        let program = words.next()?;
        let Some(path) = program.strip_prefix(b"/") else {
            return Some(Interpreter::Relative(program.to_vec()));
        };
        // `/usr//bin/../bin/perl` is what nobody writes; a path is taken as it stands.
        let path: Vec<u8> = path.to_vec();
        if path.ends_with(b"/env") {
            // Options and assignments come before the name.
            let name = words.find(|word| word[0] != b'-' && !word.contains(&b'='));
            if let Some(name) = name.filter(|name| !name.contains(&b'/')) {
                return Some(Interpreter::Searched { env: path, name: name.to_vec() });
            }
        }
        Some(Interpreter::Path(path))
    }
}

/// Directories that `env` looks in, of a merged system.
pub const SEARCHED: [&str; 4] = ["usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_lines() {
        let path = |path: &str| Some(Interpreter::Path(path.as_bytes().to_vec()));
        let searched = |name: &str| {
            Some(Interpreter::Searched { env: b"usr/bin/env".to_vec(), name: name.into() })
        };
        for (text, wanted) in [
            ("#!/bin/sh\nexit", path("bin/sh")),
            ("#! /usr/bin/perl -w\n", path("usr/bin/perl")),
            ("#!/usr/bin/env python3\n", searched("python3")),
            ("#!/usr/bin/env -S A=1 node --x\n", searched("node")),
            ("#!/usr/bin/env\n", path("usr/bin/env")),
            // The kernel takes the carriage return for a part of the name, too.
            ("#!/usr/bin/python3\r\n", path("usr/bin/python3\r")),
            ("#!perl\n", Some(Interpreter::Relative(b"perl".to_vec()))),
            ("#!\n", None),
            ("# comment\n", None),
            ("", None),
        ] {
            assert_eq!(Interpreter::of(text.as_bytes()), wanted, "{text}");
        }
        let long = [b"#!/".as_slice(), &[b'a'; 1000]].concat();
        assert_eq!(Interpreter::of(&long), Some(Interpreter::Path(vec![b'a'; LINE_BYTES - 3])));
    }
}
