//! What every fetch needs, whatever it fetches from: a file that is on its way and can be
//! taken up again, and a pace for all of them together.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::FlockOperation;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Attempts without progress after which a file is given up.
pub const ATTEMPTS: u32 = 5;
/// The pause after the first failure; it doubles with each.
pub const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// Called with the number of bytes that came.
pub type Observer = Arc<dyn Fn(u64) + Send + Sync>;

/// What has come of a file: `NAME.part` beside its place, which one writer holds locked. Whoever
/// else fetches the same file meanwhile has a `NAME.part-…` of its own, which goes with it.
#[derive(Debug)]
pub struct PartialFile {
    path: PathBuf,
    file: File,
    length: u64,
    /// Nobody else will take it up.
    is_own: bool,
}

impl PartialFile {
    /// What an earlier run left is taken up, unless somebody writes it.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(to: &Path) -> io::Result<Self> {
        let path = beside(to, ".part");
        loop {
            let file = File::options().create(true).append(true).read(true).open(&path)?;
            if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                return Self::open_own(to);
            }
            // Who held the lock may have renamed the file into place before it was ours.
            if is_at(&file, &path)? {
                let length = file.metadata()?.len();
                return Ok(PartialFile { path, file, length, is_own: false });
            }
        }
    }

    fn open_own(to: &Path) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = beside(to, &format!(".part-{}-{number}", std::process::id()));
            match File::options().create_new(true).append(true).read(true).open(&path) {
                // Left by a dead process of our number.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                file => return Ok(PartialFile { path, file: file?, length: 0, is_own: true }),
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that have come.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// # Errors
    /// They cannot be written.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Throws away what has come.
    ///
    /// # Errors
    /// It cannot be cut.
    pub fn cut(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.length = 0;
        Ok(())
    }

    /// Another handle to the file, for who writes or reads it whole.
    ///
    /// # Errors
    /// There are too many open files.
    pub fn handle(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Notes what was written through [`PartialFile::handle`].
    pub fn written(&mut self, length: u64) {
        self.length = length;
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if !self.is_own {
            return;
        }
        match fs::remove_file(&self.path) {
            Ok(()) => {}
            // It was renamed into place.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(path = %self.path.display(), %error, "a part stays"),
        }
    }
}

fn beside(to: &Path, suffix: &str) -> PathBuf {
    let mut name = to.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    to.with_file_name(name)
}

/// Whether `path` leads to this very file.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let opened = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(found) => Ok((found.dev(), found.ino()) == (opened.dev(), opened.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Holds all fetches together to so many bytes a second.
#[derive(Debug, Clone)]
pub struct Pace {
    rate: Option<u64>,
    /// When the next bytes may be taken.
    next: Arc<Mutex<Instant>>,
}

impl Pace {
    /// `rate` in bytes a second; without one nothing waits.
    pub fn new(rate: Option<u64>) -> Self {
        Pace { rate, next: Arc::new(Mutex::new(Instant::now())) }
    }

    /// Waits as long as these bytes may take.
    pub async fn keep(&self, bytes: u64) {
        let Some(rate) = self.rate else { return };
        let mut next = self.next.lock().await;
        let begin = (*next).max(Instant::now());
        *next = begin + Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        let until = *next;
        drop(next);
        tokio::time::sleep_until(until).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_takes_a_part_up_and_others_have_their_own() {
        let directory = tempfile::tempdir().expect("a directory");
        let to = directory.path().join("file");
        fs::write(directory.path().join("file.part"), "begun").expect("written");
        let first = PartialFile::open(&to).expect("opened");
        let (second, third) =
            (PartialFile::open(&to).expect("opened"), PartialFile::open(&to).expect("opened"));
        assert_eq!((first.length(), second.length(), third.length()), (5, 0, 0));
        assert!(second.path() != first.path() && third.path() != second.path());
        drop((first, second, third));
        let left: Vec<_> = fs::read_dir(directory.path())
            .expect("listed")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        assert_eq!(left, ["file.part"]);
    }

    /// Between opening a part and locking it, another may give the same file its place.
    #[test]
    fn what_has_its_place_is_never_written_again() {
        const CONTENT: &[u8] = b"whole";
        let directory = tempfile::tempdir().expect("a directory");
        let to = directory.path().join("file");
        let fetch = || {
            let mut part = PartialFile::open(&to).expect("opened");
            part.cut().expect("cut");
            part.append(CONTENT).expect("written");
            fs::rename(part.path(), &to).expect("in its place");
        };
        fetch();
        std::thread::scope(|scope| {
            let fetching: Vec<_> =
                (0..4).map(|_| scope.spawn(|| (0..2_000).for_each(|_| fetch()))).collect();
            while fetching.iter().any(|thread| !thread.is_finished()) {
                assert_eq!(fs::read(&to).expect("there"), CONTENT);
            }
        });
    }
}
