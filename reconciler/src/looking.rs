//! The inspection of commits, beside the main loop.
//!
//! The [`Inspector`] is here between its pieces of work, and on a blocking thread during
//! one: there is one at a time. Whoever drops what is under way has it end by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;

use crate::pass::{Accepted, Inspected, Inspector, Known, PassError};
use crate::source::Source;
use crate::traces::spans;
use crate::trust::Trust;

/// Everything but fetches that an inspection waits for, mirrors above all, has ended by
/// now.
const LONGEST: Duration = Duration::from_secs(60 * 60);

/// What came of it.
#[derive(Debug)]
pub enum Looked {
    /// The commit that was taken last.
    Recalled(Result<Option<Arc<Accepted>>, PassError>),
    Inspected(Box<Inspected>),
    /// The mirror is in order.
    Tidied,
}

#[derive(Debug)]
struct UnderWay {
    task: JoinHandle<(Inspector, Looked)>,
    cancelled: Arc<AtomicBool>,
    begun: Instant,
}

#[derive(Debug)]
pub struct Looking {
    idle: Option<Inspector>,
    under_way: Option<UnderWay>,
}

impl Drop for Looking {
    fn drop(&mut self) {
        if let Some(under_way) = &self.under_way {
            under_way.cancelled.store(true, Ordering::Relaxed);
        }
    }
}

impl Looking {
    pub fn new(inspector: Inspector) -> Self {
        Looking { idle: Some(inspector), under_way: None }
    }

    pub fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// Whether it takes longer than all that it may wait for. `fetch` is the longest
    /// fetch.
    pub fn is_stuck(&self, fetch: Duration) -> bool {
        let since = self.under_way.as_ref().map(|under_way| under_way.begun.elapsed());
        since.is_some_and(|since| since > fetch + LONGEST)
    }

    /// Looks at the head.
    pub fn inspect(&mut self, known: Known) {
        let span = spans::Pass::begin();
        self.begin(move |inspector, flag| {
            Looked::Inspected(Box::new(inspector.inspect(span, &known, flag)))
        });
    }

    /// Looks at the commit that was taken last.
    pub fn recall(&mut self, known: Known) {
        self.begin(move |inspector, flag| Looked::Recalled(inspector.recall(&known, flag)));
    }

    /// Puts the mirror in order, now that nobody waits for it.
    pub fn tidy(&mut self) {
        self.begin(|inspector, flag| {
            inspector.tidy(flag);
            Looked::Tidied
        });
    }

    fn begin(&mut self, work: impl FnOnce(&mut Inspector, &AtomicBool) -> Looked + Send + 'static) {
        let Some(mut inspector) = self.idle.take() else { return };
        let cancelled = Arc::new(AtomicBool::new(false));
        let flag = cancelled.clone();
        let task = tokio::task::spawn_blocking(move || {
            let looked = work(&mut inspector, &flag);
            (inspector, looked)
        });
        self.under_way = Some(UnderWay { task, cancelled, begun: Instant::now() });
    }

    /// Waits until what is under way is done; for ever where nothing is. May be cancelled.
    ///
    /// # Errors
    /// It broke off.
    pub async fn done(&mut self) -> Result<Looked, JoinError> {
        let Some(under_way) = &mut self.under_way else { return std::future::pending().await };
        let (inspector, looked) = (&mut under_way.task).await?;
        (self.idle, self.under_way) = (Some(inspector), None);
        Ok(looked)
    }

    /// Looks at another source and believes other signers from the next inspection on; what
    /// is under way is ended, and nothing comes of it. Returns the longest fetch, or why
    /// all stays as it was.
    ///
    /// # Errors
    /// It broke off.
    pub async fn reconfigure(
        &mut self,
        source: Source,
        trust: Option<Trust>,
    ) -> Result<Result<Duration, PassError>, JoinError> {
        self.end().await?;
        let mut inspector = self.idle.take().expect("it is idle where nothing is under way");
        let task = tokio::task::spawn_blocking(move || {
            let done = inspector.reconfigure(source, trust).map(|()| inspector.longest_fetch());
            (inspector, done)
        });
        let (inspector, done) = task.await?;
        self.idle = Some(inspector);
        Ok(done)
    }

    /// Ends what is under way, and nothing comes of it: a fetch is killed.
    ///
    /// # Errors
    /// It broke off.
    pub async fn end(&mut self) -> Result<(), JoinError> {
        if let Some(UnderWay { task, cancelled, .. }) = self.under_way.take() {
            cancelled.store(true, Ordering::Relaxed);
            self.idle = Some(task.await?.0);
        }
        Ok(())
    }
}
