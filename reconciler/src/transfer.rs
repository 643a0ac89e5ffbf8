//! What every fetch needs, whatever it fetches from: a file that is on its way and can be
//! taken up again, and a pace for all of them together.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
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

/// What has come of a file: `NAME.part` beside its place.
#[derive(Debug)]
pub struct PartialFile {
    path: PathBuf,
    file: File,
    length: u64,
}

impl PartialFile {
    /// What an earlier run left is taken up, unless another process writes it.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(to: &Path) -> io::Result<Self> {
        let beside = |suffix: &str| {
            let mut name = to.file_name().unwrap_or_default().to_owned();
            name.push(suffix);
            to.with_file_name(name)
        };
        let open = |path: &Path| File::options().create(true).append(true).read(true).open(path);
        let mut path = beside(".part");
        let mut file = open(&path)?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            path = beside(&format!(".part-{}", std::process::id()));
            file = open(&path)?;
        }
        let length = file.metadata()?.len();
        Ok(PartialFile { path, file, length })
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
