//! `strata repo key`, `sign` and `cosign`: who may say what a repository holds.

use std::path::PathBuf;

use serde::Serialize;
use ssh_key::HashAlg;
use strata_core::RepositoryName;
use strata_core::remote::Credentials;
use strata_core::signed::{Expiry, Role, RoleName};

use super::super::{
    Failure, Outcome, OutputArgs, OutputFormat, StoreArgs, print_bytes, print_json, quantity,
};
use crate::repositories::signed::public_key;
use crate::repositories::signing::{self, Signing, SigningError};
use crate::repositories::{high_water, now};

const DAY_S: i64 = 24 * 60 * 60;

/// Show and change the keys that a repository is signed with
#[derive(Debug, clap::Args)]
pub struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, clap::Subcommand)]
enum KeyCommand {
    /// Show whose keys count, what they signed and until when it counts
    #[command(after_help = "Example:\n  strata repo key list main --store /srv/strata")]
    List(ListArgs),
    Set(SetArgs),
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    /// The repository
    #[arg(value_name = "REPOSITORY")]
    repository: RepositoryName,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Give a repository its first keys, or others than it has
///
/// Two roles have keys: `root` keys sign changes of keys and are best kept apart from any
/// server; `database` keys sign what the repository holds. A change is signed by the root
/// keys of before and by those of after: name as many private keys with --key as are at
/// hand; it waits until the others have added theirs (`strata repo cosign`). Keys are SSH
/// keys, Ed25519 or ECDSA P-256.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  ssh-keygen -t ed25519 -N '' -f offline\n  ssh-keygen -t ed25519 -N '' -f nightly\n  strata repo key set main --root-key offline.pub --database-key nightly.pub --key offline\n\nThen pin the root key where the repository is used, in strata.toml:\n  [[repository]]\n  name = \"main\"\n  keys = [\"ssh-ed25519 AAAA…\"]"
)]
struct SetArgs {
    /// The repository
    #[arg(value_name = "REPOSITORY")]
    repository: RepositoryName,
    /// A public key that signs changes of keys; several may be given
    #[arg(long, value_name = "FILE", required = true)]
    root_key: Vec<PathBuf>,
    /// So many of the root keys must sign
    #[arg(long, value_name = "N", default_value_t = 1)]
    root_threshold: u32,
    /// A public key that signs what the repository holds; several may be given
    #[arg(long, value_name = "FILE", required = true)]
    database_key: Vec<PathBuf>,
    /// So many of the database keys must sign
    #[arg(long, value_name = "N", default_value_t = 1)]
    database_threshold: u32,
    #[command(flatten)]
    signer: SignerArgs,
    /// For so many days the keys count
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Sign what a repository holds now
///
/// Run it after each change, and again before the signature expires. Readers that pin the
/// repository's keys see a change once it is signed.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  strata repo sign main --key /etc/strata/nightly --store /srv/strata\n  strata repo sign main --key nightly --passphrase file:/run/credentials/strata-sign.service/nightly"
)]
pub struct SignArgs {
    /// The repository
    #[arg(value_name = "REPOSITORY")]
    repository: RepositoryName,
    #[command(flatten)]
    signer: SignerArgs,
    /// For so many days the signature counts
    #[arg(long, value_name = "DAYS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Add a signature to keys or a database that wait for more
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  strata repo cosign main --key bob --store /srv/strata")]
pub struct CosignArgs {
    /// The repository
    #[arg(value_name = "REPOSITORY")]
    repository: RepositoryName,
    #[command(flatten)]
    signer: SignerArgs,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, clap::Args)]
struct SignerArgs {
    /// A private key to sign with; several may be given
    #[arg(long, value_name = "FILE", required = true)]
    key: Vec<PathBuf>,
    /// Where the passphrase of encrypted keys is: `env:NAME` or `file:/PATH`
    #[arg(long, value_name = "WHERE")]
    passphrase: Option<Credentials>,
}

impl SignerArgs {
    fn read(&self) -> Result<Vec<ssh_key::PrivateKey>, SigningError> {
        let read = |path: &PathBuf| signing::read_private_key(path, self.passphrase.as_ref());
        self.key.iter().map(read).collect()
    }
}

#[derive(Debug, Serialize)]
struct Listed {
    repository: RepositoryName,
    /// The version of the root.
    version: u32,
    expires: String,
    roles: Vec<ListedRole>,
    snapshot: Option<ListedSnapshot>,
    /// The newest versions that this store accepted.
    seen: Option<Seen>,
}

#[derive(Debug, Serialize)]
struct ListedRole {
    role: RoleName,
    threshold: u32,
    keys: Vec<ListedKey>,
}

#[derive(Debug, Serialize)]
struct ListedKey {
    fingerprint: String,
    /// As `keys` in `strata.toml` has it.
    key: String,
}

#[derive(Debug, Serialize)]
struct ListedSnapshot {
    version: u32,
    expires: String,
    database: strata_core::Digest,
    /// The repository has changed since.
    changed: bool,
}

#[derive(Debug, Serialize)]
struct Seen {
    root: u32,
    snapshot: u32,
}

pub fn run(args: &KeyArgs) -> Result<Outcome, Failure> {
    match &args.command {
        KeyCommand::List(args) => list(args),
        KeyCommand::Set(args) => set(args),
    }
}

fn list(args: &ListArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let repository = args.repository.clone();
    let root = signing::last_root(&store, &repository).map_err(failure)?;
    let (root, _) = root.ok_or_else(|| failure(SigningError::NoRoot(repository.clone())))?;
    let present = store.database_file(&repository)?.map(|bytes| strata_core::Digest::of(&bytes));
    let snapshot = signing::snapshot(&store, &repository).map_err(failure)?;
    let seen = high_water::read(&store, &repository).map_err(|error| failure(error.into()))?;
    let listed = Listed {
        version: root.version,
        expires: root.expires.to_string(),
        roles: vec![
            listed_role(RoleName::Root, &root.root)?,
            listed_role(RoleName::Database, &root.database)?,
        ],
        snapshot: snapshot.map(|(snapshot, _)| ListedSnapshot {
            version: snapshot.version,
            expires: snapshot.expires.to_string(),
            database: snapshot.database,
            changed: present != Some(snapshot.database),
        }),
        seen: seen.map(|seen| Seen { root: seen.root.version, snapshot: seen.snapshot.version }),
        repository,
    };
    if args.output.output == OutputFormat::Json {
        print_json(&listed)?;
        return Ok(Outcome::Done);
    }
    let mut text =
        format!("{}: root {}, until {}\n", listed.repository, listed.version, listed.expires);
    for ListedRole { role, threshold, keys } in &listed.roles {
        text.push_str(&format!("{role}: {threshold} of {}\n", quantity(keys.len(), "key")));
        for ListedKey { fingerprint, key } in keys {
            text.push_str(&format!("  {fingerprint}\n    {key}\n"));
        }
    }
    match &listed.snapshot {
        None => text.push_str("the database was never signed\n"),
        Some(ListedSnapshot { version, expires, database, changed }) => {
            let now = if *changed { "; the repository has changed since" } else { "" };
            let database = database.short();
            text.push_str(&format!("snapshot {version}: {database}, until {expires}{now}\n"));
        }
    }
    print_bytes(text.as_bytes())?;
    Ok(Outcome::Done)
}

fn listed_role(role: RoleName, keys: &Role) -> Result<ListedRole, Failure> {
    let listed = keys.keys.iter().map(|text| {
        let key = public_key(text).map_err(|error| Failure::new(format!("{text}: {error}")))?;
        let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
        Ok(ListedKey { fingerprint, key: text.to_string() })
    });
    let listed = listed.collect::<Result<_, Failure>>()?;
    Ok(ListedRole { role, threshold: keys.threshold, keys: listed })
}

fn set(args: &SetArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let role = |paths: &[PathBuf], threshold| -> Result<Role, SigningError> {
        let keys = paths.iter().map(|path| signing::read_public_key(path));
        Ok(Role { threshold, keys: keys.collect::<Result<_, _>>()? })
    };
    let done = || -> Result<Signing, SigningError> {
        let root = role(&args.root_key, args.root_threshold)?;
        let database = role(&args.database_key, args.database_threshold)?;
        let keys = args.signer.read()?;
        signing::set_keys(&store, &args.repository, (root, database), expiry(args.days), &keys)
    };
    report(&done().map_err(failure)?, args.output.output)
}

pub fn sign(args: &SignArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let keys = args.signer.read().map_err(failure)?;
    let signed = signing::sign(&store, &args.repository, expiry(args.days), &keys);
    report(&signed.map_err(failure)?, args.output.output)
}

pub fn cosign(args: &CosignArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let keys = args.signer.read().map_err(failure)?;
    let signed = signing::cosign(&store, &args.repository, &keys);
    report(&signed.map_err(failure)?, args.output.output)
}

fn expiry(days: u32) -> Expiry {
    Expiry::at(now() + i64::from(days) * DAY_S).expect("100 years from now are in the calendar")
}

fn report(signing: &Signing, output: OutputFormat) -> Result<Outcome, Failure> {
    if output == OutputFormat::Json {
        print_json(signing)?;
        return Ok(Outcome::Done);
    }
    let Signing { repository, role, version, expires, signers, missing } = signing;
    let what = match role {
        RoleName::Root => "root",
        RoleName::Database => "snapshot",
    };
    let by = quantity(signers.len(), "key");
    let text = match missing {
        0 => format!("{repository}: {what} {version} is signed by {by}, until {expires}\n"),
        missing => format!(
            "{repository}: {what} {version} is signed by {by} and waits for {}: strata repo cosign {repository} --key FILE\n",
            quantity(*missing, "more signature")
        ),
    };
    print_bytes(text.as_bytes())?;
    Ok(Outcome::Done)
}

fn failure(error: SigningError) -> Failure {
    match error {
        SigningError::Store(error) => error.into(),
        error => {
            let failure = Failure::new(&error);
            match error.hint() {
                Some(hint) => failure.hint(hint),
                None => failure,
            }
        }
    }
}
