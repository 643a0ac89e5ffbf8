//! Who may sign: lists in the formats that OpenSSH and OpenPGP have for them, and the
//! programs of both that check a signature against them.
//!
//! `ssh-keygen -Y verify` and `gpgv` are what git itself relies on. They know every
//! kind of key (RSA, security keys, certificates, subkeys), the options of
//! `allowed_signers` (namespaces, times) and revocations, and a machine that fetches
//! over SSH or imports from apt has them. Each runs as a child with a deadline, in a
//! directory of its own.
//!
//! A key counts as it stands at the time of the check, not at the time that the
//! commit gives: whoever signs chooses that one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use strata_core::Digest;
use strata_import::apt::keyring;

use super::TrustError;
use super::signature::{Format, Signed};
use crate::child::{self, Bounds};
use crate::gpgv;

/// Bytes of one list of signers.
pub const LIST_BYTES: usize = 1 << 20;
const DEADLINE: Duration = Duration::from_secs(60);
const OUTPUT_BYTES: u64 = 64 << 10;
/// Names of one key in `allowed_signers` that are tried.
const PRINCIPALS: usize = 16;
/// What ssh-keygen says where nobody has the key, besides its status.
const NOBODY: &str = "No principal matched.";
/// What git signs under.
const NAMESPACE: &str = "git";

/// Lists of signers, as they are written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lists {
    /// `allowed_signers` of ssh-keygen(1).
    pub ssh: Option<Vec<u8>>,
    /// Revoked keys of SSH: a list of public keys, or a KRL.
    pub ssh_revoked: Option<Vec<u8>>,
    /// A keyring of OpenPGP, armoured or not.
    pub openpgp: Option<Vec<u8>>,
}

impl Lists {
    /// Whether nobody at all may sign.
    pub fn is_empty(&self) -> bool {
        let blank = |list: &Option<Vec<u8>>| {
            list.as_ref().is_none_or(|list| list.iter().all(u8::is_ascii_whitespace))
        };
        blank(&self.ssh) && blank(&self.openpgp)
    }

    /// Lays the lists out for the programs.
    ///
    /// # Errors
    /// A keyring is damaged, or nothing can be written to the temporary directory.
    pub fn unfold(&self) -> Result<Signers, TrustError> {
        let scratch = |source| TrustError::Scratch { path: std::env::temp_dir(), source };
        let directory = tempfile::tempdir().map_err(scratch)?;
        let mut parts = Vec::new();
        for (name, list) in
            [(ALLOWED, &self.ssh), (REVOKED, &self.ssh_revoked), (KEYRING, &self.openpgp)]
        {
            parts.extend_from_slice(name.as_bytes());
            let Some(list) = list else { continue };
            parts.extend_from_slice(Digest::of(list).to_string().as_bytes());
            let content = match name {
                KEYRING => keyring::binary(list)
                    .map_err(|error| TrustError::Keyring { why: error.to_string() })?,
                _ => list.clone(),
            };
            std::fs::write(directory.path().join(name), content).map_err(scratch)?;
        }
        Ok(Signers { directory, digest: Digest::of(&parts) })
    }
}

const ALLOWED: &str = "allowed_signers";
const REVOKED: &str = "revoked";
const KEYRING: &str = "keyring.gpg";

/// Lists of signers in a directory of their own, which goes with them.
#[derive(Debug)]
pub struct Signers {
    directory: tempfile::TempDir,
    digest: Digest,
}

impl Signers {
    /// What distinguishes these lists from others.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Who signed. The inner error says why the signature does not count.
    ///
    /// # Errors
    /// The check could not be made.
    pub fn check(
        &self,
        signed: &Signed,
        cancelled: &AtomicBool,
    ) -> Result<Result<String, String>, TrustError> {
        let scratch = |source| TrustError::Scratch { path: self.path("signature"), source };
        std::fs::write(self.path("signature"), &signed.signature).map_err(scratch)?;
        match signed.format {
            Format::Ssh if !self.path(ALLOWED).exists() => {
                Ok(Err("no signer of SSH is listed".to_owned()))
            }
            Format::Ssh => self.check_ssh(signed, cancelled),
            Format::OpenPgp if !self.path(KEYRING).exists() => {
                Ok(Err("no signer of OpenPGP is listed".to_owned()))
            }
            Format::OpenPgp => {
                std::fs::write(self.path("payload"), &signed.payload).map_err(scratch)?;
                self.check_openpgp(cancelled)
            }
        }
    }

    fn check_ssh(
        &self,
        signed: &Signed,
        cancelled: &AtomicBool,
    ) -> Result<Result<String, String>, TrustError> {
        let mut find = self.command("ssh-keygen");
        find.args(["-Y", "find-principals"]);
        find.arg("-s").arg(self.path("signature")).arg("-f").arg(self.path(ALLOWED));
        let (found, principals) = child::run_capturing(&mut find, bounds(cancelled))?;
        let principals = String::from_utf8_lossy(&principals);
        if !found.status.success() {
            let said = String::from_utf8_lossy(&found.stderr).replace(NOBODY, "");
            let key = self.key(signed, cancelled)?;
            let unlisted = format!("its {key} is not among the signers");
            return Ok(Err(self.reason(said.as_bytes(), &unlisted)));
        }
        let mut why = "its key is not among the signers".to_owned();
        for principal in principals.lines().filter(|line| !line.is_empty()).take(PRINCIPALS) {
            let mut verify = self.command("ssh-keygen");
            verify.args(["-Y", "verify", "-n", NAMESPACE, "-I", principal]);
            verify.arg("-s").arg(self.path("signature")).arg("-f").arg(self.path(ALLOWED));
            if self.path(REVOKED).exists() {
                verify.arg("-r").arg(self.path(REVOKED));
            }
            let (ended, said) =
                child::run_with_input(&mut verify, &signed.payload, bounds(cancelled))?;
            if ended.status.success() {
                let said = String::from_utf8_lossy(&said);
                let key = said.split_whitespace().last().unwrap_or("");
                return Ok(Ok(format!("{principal} ({key})")));
            }
            // Of a revoked key ssh-keygen says no more than that.
            let otherwise = match self.path(REVOKED).exists() {
                true => "its signature is bad, or its key was revoked",
                false => "its signature is bad",
            };
            why = self.reason(&ended.stderr, otherwise);
        }
        Ok(Err(why))
    }

    /// The kind and the fingerprint of the key that made a signature, whoever has it.
    fn key(&self, signed: &Signed, cancelled: &AtomicBool) -> Result<String, TrustError> {
        let mut ask = self.command("ssh-keygen");
        ask.args(["-Y", "check-novalidate", "-n", NAMESPACE]);
        ask.arg("-s").arg(self.path("signature"));
        let (ended, said) = child::run_with_input(&mut ask, &signed.payload, bounds(cancelled))?;
        // `Good "git" signature with ED25519 key SHA256:…`
        let said = String::from_utf8_lossy(&said);
        let key = said.trim_end().rsplit_once(" with ").filter(|_| ended.status.success());
        Ok(key.map_or_else(|| "key".to_owned(), |(_, key)| key.to_owned()))
    }

    fn check_openpgp(&self, cancelled: &AtomicBool) -> Result<Result<String, String>, TrustError> {
        let mut command = self.command("gpgv");
        command.args(gpgv::ARGUMENTS).arg("--homedir").arg(self.directory.path());
        command.arg("--keyring").arg(self.path(KEYRING));
        command.arg(self.path("signature")).arg(self.path("payload"));
        let ended = child::run(&mut command, bounds(cancelled))?;
        let said = String::from_utf8_lossy(&ended.stderr);
        Ok(gpgv::judge(&said, |_, _| true, "listed"))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("LC_ALL", "C");
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        command.current_dir(self.directory.path());
        command
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What a program said, in one line and without the names of temporary files.
    fn reason(&self, stderr: &[u8], otherwise: &str) -> String {
        let said = String::from_utf8_lossy(stderr);
        let directory = format!("{}/", self.directory.path().display());
        let lines: Vec<_> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let reason = lines.join("; ").replace(&directory, "");
        match reason.is_empty() {
            true => otherwise.to_owned(),
            false => format!("{otherwise}: {reason}"),
        }
    }
}

fn bounds(cancelled: &AtomicBool) -> Bounds<'_> {
    Bounds { deadline: DEADLINE, file_bytes: OUTPUT_BYTES, cancelled }
}

/// Reads a list that the operator named by its path.
///
/// # Errors
/// It is not there, no plain file, or too large.
pub fn read_list(path: &Path) -> Result<Vec<u8>, TrustError> {
    let unreadable = |why: String| TrustError::List { path: path.to_owned(), why };
    let real = path.canonicalize().map_err(|error| unreadable(error.to_string()))?;
    strata_store::read_limited(&real, LIST_BYTES).map_err(|error| unreadable(error.to_string()))
}
