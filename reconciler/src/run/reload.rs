//! Takes the settings of this host anew, all of them or none.
//!
//! What can fail comes first: the files are read, addresses are bound, secrets are read, the
//! mirror is made ready. Then everything is taken at once. What was refused changes
//! nothing, is told, and shows as a condition until other settings are taken.

use std::path::PathBuf;

use tokio::time::Instant;

use super::{MainLoop, RunError, lend};
use crate::pass::{Keeper, PassReport};
use crate::service::ReloadError;
use crate::settings::Settings;

/// The settings of this host, and where they can be read again.
#[derive(Debug, Clone)]
pub struct Configuration {
    pub file: PathBuf,
    pub settings: Settings,
    /// Whether the command line gives the source, and not `[source]`.
    pub source_is_given: bool,
}

impl<T: FnMut(&PassReport)> MainLoop<T> {
    /// Reads the settings anew and takes them. Returns nothing where the end was asked for.
    pub(super) async fn reload(&mut self, mut keeper: Keeper) -> Result<Option<Keeper>, RunError> {
        let Some((file, source_is_given)) = self.configuration.clone() else {
            tracing::info!("there is no configuration to read anew: --config names none");
            return Ok(Some(keeper));
        };
        self.service.reloading();
        let read = tokio::task::spawn_blocking(move || Settings::read(&file)).await?;
        let refused = match read {
            Ok(settings) => self.take(&mut keeper, settings, source_is_given).await?,
            Err(error) => Some(error.into()),
        };
        let refused = refused.map(|error: ReloadError| error.to_string());
        let noted = refused.clone();
        let (keeper, _, ended) = lend(keeper, &mut self.signals, move |keeper, _| {
            keeper.note_settings(noted);
            Ok(())
        })
        .await?;
        self.service.reloaded(refused);
        Ok(Some(keeper).filter(|_| !ended))
    }

    /// Takes settings, or says why they cannot be taken.
    async fn take(
        &mut self,
        keeper: &mut Keeper,
        mut settings: Settings,
        source_is_given: bool,
    ) -> Result<Option<ReloadError>, RunError> {
        if source_is_given {
            settings.source = Some(keeper.source().clone());
        }
        let Some(source) = settings.source.clone() else {
            return Ok(Some(ReloadError::NoSource));
        };
        let service = match self.service.prepare(&settings).await {
            Ok(prepared) => prepared,
            Err(error) => return Ok(Some(error)),
        };
        let webhook = match self.triggers.prepare(settings.webhook.as_ref()).await {
            Ok(prepared) => prepared,
            Err(error) => return Ok(Some(error.into())),
        };
        let looks_elsewhere =
            source != *keeper.source() || settings.trust != self.service.settings().trust;
        if looks_elsewhere {
            // A pass that is under way ends for it, so the next one is due whatever comes of it.
            self.next_pass = Instant::now();
            match self.looking.reconfigure(source.clone(), settings.trust.clone()).await? {
                Ok(longest) => self.longest = longest,
                Err(error) => return Ok(Some(error.into())),
            }
            self.failures = 0;
            self.triggers.watch(&source, self.schedule);
            keeper.follow(source.clone());
            self.service.follow(source, self.longest);
        }
        self.service.take(service, settings);
        self.triggers.take(webhook);
        Ok(None)
    }
}
