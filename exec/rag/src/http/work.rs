//! The one who indexes: takes what waits, a group at a time, until it is told to stop.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::App;

/// After the disk failed: full disks are emptied by people.
const PAUSE: Duration = Duration::from_secs(5);

/// Indexes what was accepted, also before a restart. Returns when it is told to stop and the group at hand is done.
pub async fn work(app: Arc<App>, stop: CancellationToken) {
    loop {
        if stop.is_cancelled() {
            return;
        }
        let worker = app.clone();
        let done = tokio::task::spawn_blocking(move || worker.service.ingest_next((worker.now)())).await;
        let pause = match done {
            Ok(Ok(ids)) if ids.is_empty() => None,
            Ok(Ok(ids)) => {
                tracing::debug!(service = app.service.name(), documents = ?ids, "documents were looked at");
                continue;
            }
            Ok(Err(error)) => {
                tracing::error!(service = app.service.name(), %error, "nothing can be indexed for now");
                Some(PAUSE)
            }
            Err(error) => {
                tracing::error!(service = app.service.name(), %error, "indexing ended in a panic");
                Some(PAUSE)
            }
        };
        tokio::select! { biased;
            () = stop.cancelled() => return,
            () = app.came.notified(), if pause.is_none() => {}
            () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {}
        }
    }
}
