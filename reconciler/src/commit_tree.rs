//! Reads what concerns Strata of one commit, by object id.
//!
//! Sizes are asked of the object database before an object is read, so that a
//! commit cannot make Strata hold more than the limits allow. Names are checked
//! in every directory that is looked at, whether the entry matters or not.

use git2::{ObjectType, Odb, Oid, Repository, Tree};
use strata_core::limits;
use strata_core::printable::is_unprintable;
use strata_core::source::{SourceContent, SourceError, SourceTree};

/// Bytes of one directory of a commit.
const TREE_BYTES: usize = 32 << 20;
/// Entries looked at in one commit, directories and passed-over files included.
const ENTRIES: usize = 2 * limits::SOURCE_FILES;

/// Type bits of a mode in a git tree.
const TYPE_MASK: i32 = 0o170_000;
const SYMLINK: i32 = 0o120_000;
const EXECUTABLE: i32 = 0o100;

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("an object of the commit is missing or damaged: {0}")]
    Damaged(#[from] git2::Error),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("the entry {name:?} of the directory {directory:?} has a forbidden name")]
    Name { directory: String, name: String },
    #[error("the directory {0:?} is larger than {TREE_BYTES} bytes")]
    TreeTooLarge(String),
    #[error("the commit has more than {ENTRIES} entries")]
    TooManyEntries,
}

impl ReadError {
    /// Whether fetching everything anew could help.
    pub fn is_damage(&self) -> bool {
        matches!(self, ReadError::Damaged(_))
    }
}

/// Reads the commit `id`.
///
/// # Errors
/// The first object that is missing, damaged, too large or of a forbidden name.
pub fn read(repository: &Repository, id: Oid) -> Result<SourceTree, ReadError> {
    let root = repository.find_commit(id)?.tree_id();
    let database = repository.odb()?;
    let mut reader = Reader { repository, database, tree: SourceTree::default(), entries: 0 };
    let mut pending = vec![(Vec::new(), root)];
    while let Some((directory, id)) = pending.pop() {
        reader.read_directory(&directory, id, &mut pending)?;
    }
    Ok(reader.tree)
}

/// The author of a commit, as it names itself; short and of printable characters.
pub fn author(repository: &Repository, id: Oid) -> Option<String> {
    const CHARACTERS: usize = 200;
    let commit = repository.find_commit(id).ok()?;
    let author = commit.author();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let whole = format!("{} <{}>", text(author.name_bytes()), text(author.email_bytes()));
    Some(whole.chars().filter(|c| !is_unprintable(*c)).take(CHARACTERS).collect())
}

/// When a commit was made, as its committer's clock said, in milliseconds since 1970.
pub fn committed_at(repository: &Repository, id: Oid) -> Option<u64> {
    let seconds = repository.find_commit(id).ok()?.time().seconds();
    Some(u64::try_from(seconds).ok()?.saturating_mul(1000))
}

struct Reader<'r> {
    repository: &'r Repository,
    database: Odb<'r>,
    tree: SourceTree,
    entries: usize,
}

impl Reader<'_> {
    fn read_directory(
        &mut self,
        directory: &[u8],
        id: Oid,
        pending: &mut Vec<(Vec<u8>, Oid)>,
    ) -> Result<(), ReadError> {
        let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (size, _) = self.database.read_header(id)?;
        if size > TREE_BYTES {
            return Err(ReadError::TreeTooLarge(lossy(directory)));
        }
        let tree: Tree<'_> = self.repository.find_tree(id)?;
        for entry in &tree {
            self.entries += 1;
            if self.entries > ENTRIES {
                return Err(ReadError::TooManyEntries);
            }
            let name = entry.name_bytes();
            if is_forbidden(name) {
                return Err(ReadError::Name { directory: lossy(directory), name: lossy(name) });
            }
            let path = match directory {
                [] => name.to_vec(),
                _ => [directory, b"/", name].concat(),
            };
            let concerns = SourceTree::concerns(&String::from_utf8_lossy(&path));
            match entry.kind() {
                Some(ObjectType::Tree) if concerns => {
                    if path.len() > limits::PATH_BYTES {
                        return Err(SourceError::PathTooLong(lossy(&path[..128])).into());
                    }
                    pending.push((path, entry.id()));
                }
                Some(ObjectType::Blob) if concerns => {
                    let content = self.read_blob(&path, entry.filemode(), entry.id())?;
                    self.tree.insert(&path, content)?;
                }
                Some(ObjectType::Commit) if concerns => {
                    self.tree.insert(&path, SourceContent::Submodule)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn read_blob(&self, path: &[u8], mode: i32, id: Oid) -> Result<SourceContent, ReadError> {
        let (length, _) = self.database.read_header(id)?;
        if length > limits::SOURCE_FILE_BYTES {
            let path = String::from_utf8_lossy(path).into_owned();
            return Err(SourceError::FileTooLarge { path, length }.into());
        }
        let bytes = self.repository.find_blob(id)?.content().to_vec();
        if mode & TYPE_MASK == SYMLINK {
            return Ok(SourceContent::Symlink { target: bytes });
        }
        Ok(SourceContent::Regular { bytes, executable: mode & EXECUTABLE != 0 })
    }
}

fn is_forbidden(name: &[u8]) -> bool {
    matches!(name, b"" | b"." | b"..")
        || name.eq_ignore_ascii_case(b".git")
        || name.iter().any(|byte| matches!(byte, b'/' | 0))
}
