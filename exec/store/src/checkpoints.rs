//! Checkpoints at a place other nodes can read: `TASK/REPLICA/step-0000000042/`, files first, manifest last.

use std::path::Path;

use mloc_core::{
    id::AttemptId,
    ledger::entry::{Artifact, CheckpointRef},
    task::spec::Location,
};
use mloc_exec::{OnMoved, checkpoint::Retention, failpoint};

use crate::{
    Store,
    disk::{self, off_thread},
    error::StoreError,
    manifest::{FORMAT, MANIFEST, MANIFEST_BYTES_MAX, Manifest},
    meter::Meter,
    place::Area,
    transfer,
};

/// A checkpoint that was brought here.
#[derive(Clone, Debug, PartialEq)]
pub struct Fetched {
    /// What the ledger calls it.
    pub checkpoint: CheckpointRef,
    /// Newer ones that were left aside, and why: for the log.
    pub passed_over: Vec<String>,
}

impl Store {
    /// Pushes a checkpoint's folder. The same one again, by the same attempt, sends nothing; then what does not stay is
    /// removed. Old ones that cannot be removed are logged and left.
    pub async fn push_checkpoint(
        &self,
        attempt: &AttemptId,
        destination: &Location,
        step: u64,
        folder: &Path,
        retention: Retention,
        tell: OnMoved,
    ) -> Result<CheckpointRef, StoreError> {
        let all = self.area(destination)?.join(&owner(attempt));
        let place = all.join(&step_name(step));
        let from = folder.to_owned();
        let files = off_thread(move || stamped(&from)).await?;
        if files.is_empty() {
            return Err(StoreError::Empty { place: folder.display().to_string() });
        }
        let meter = Meter::new(files.iter().map(|f| f.bytes).sum(), tell).at(&self.limit);
        let mut manifest = Manifest {
            format: FORMAT,
            attempt: attempt.clone(),
            step: Some(step),
            files,
            summary: Default::default(),
            lineage: None,
        };
        if let Some(there) = place.get(MANIFEST, MANIFEST_BYTES_MAX).await? {
            let same = Manifest::read(&place.url(), &there).is_ok_and(|m| m == manifest);
            if same {
                return Ok(reference(step, &there));
            }
            // Another attempt's: this one came here because it was damaged, or its push was not heard of. Without
            // its manifest it counts for nothing while it is written over.
            place.remove(MANIFEST).await?;
        }
        for file in &mut manifest.files {
            let sent = place.put(&file.path, &folder.join(&file.path), &meter).await?;
            if sent.sha256 != file.sha256 {
                let place = folder.join(&file.path).display().to_string();
                return Err(StoreError::Changed { place });
            }
        }
        let bytes = manifest.to_bytes()?;
        place.put_bytes(MANIFEST, bytes.clone(), &meter).await?;
        place.sweep(&manifest.files.iter().map(|f| f.path.as_str()).collect::<Vec<_>>()).await;
        if let Err(error) = prune(&*all, step, retention).await {
            tracing::warn!(place = all.url(), %error, "old checkpoints stay");
        }
        Ok(reference(step, &bytes))
    }

    /// Steps of the checkpoints at a destination, oldest first. Half-written ones are among them.
    pub async fn list_checkpoints(&self, attempt: &AttemptId, destination: &Location) -> Result<Vec<u64>, StoreError> {
        steps(&*self.area(destination)?.join(&owner(attempt))).await
    }

    /// Brings the newest whole checkpoint into `folder`, which is emptied first: damaged and half-written ones are
    /// passed over and said. `None` when there is no whole one.
    ///
    /// # Errors
    /// Those of the line and of this disk: a checkpoint that cannot be reached just now is not passed over.
    pub async fn fetch_checkpoint(
        &self,
        attempt: &AttemptId,
        destination: &Location,
        folder: &Path,
        tell: OnMoved,
    ) -> Result<Option<Fetched>, StoreError> {
        let all = self.area(destination)?.join(&owner(attempt));
        let mut passed_over = Vec::new();
        for step in steps(&*all).await?.into_iter().rev() {
            let place = all.join(&step_name(step));
            match fetch_one(self, &*place, step, folder, tell.clone()).await {
                Ok(checkpoint) => return Ok(Some(Fetched { checkpoint, passed_over })),
                Err(
                    error @ (StoreError::Damaged { .. } | StoreError::BadName { .. } | StoreError::NotFound { .. }),
                ) => {
                    tracing::warn!(step, %error, "checkpoint passed over");
                    passed_over.push(format!("step {step}: {error}"));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

fn owner(attempt: &AttemptId) -> String {
    format!("{}/{}", attempt.task, attempt.replica)
}

fn step_name(step: u64) -> String {
    format!("step-{step:010}")
}

fn reference(step: u64, manifest: &[u8]) -> CheckpointRef {
    CheckpointRef { step, manifest_sha256: disk::stamp_bytes(manifest).sha256 }
}

async fn steps(all: &dyn Area) -> Result<Vec<u64>, StoreError> {
    let mut steps: Vec<u64> =
        all.folders().await?.iter().filter_map(|name| name.strip_prefix("step-")?.parse().ok()).collect();
    steps.sort_unstable();
    Ok(steps)
}

/// The manifest goes first: what is left of a half-removed checkpoint is no checkpoint.
async fn prune(all: &dyn Area, newest: u64, retention: Retention) -> Result<(), StoreError> {
    if retention.keep == 0 {
        return Ok(());
    }
    for step in retention.goes(&steps(all).await?, newest) {
        let old = all.join(&step_name(step));
        old.remove(MANIFEST).await?;
        failpoint::reached("store.checkpoint.prune");
        old.remove_all().await?;
    }
    Ok(())
}

fn stamped(folder: &Path) -> Result<Vec<Artifact>, StoreError> {
    let stamped = |file: disk::Found| {
        let stamp = disk::stamp(&folder.join(&file.path))?;
        Ok(Artifact { path: file.path, kind: "checkpoint".into(), bytes: stamp.bytes, sha256: stamp.sha256 })
    };
    // A manifest that lies in the folder is that of the place it came from.
    disk::files_below(folder)?.into_iter().filter(|f| f.path != MANIFEST).map(stamped).collect()
}

async fn fetch_one(
    store: &Store,
    place: &dyn Area,
    step: u64,
    folder: &Path,
    tell: OnMoved,
) -> Result<CheckpointRef, StoreError> {
    let Some(bytes) = place.get(MANIFEST, MANIFEST_BYTES_MAX).await? else {
        let found = "half-written: it has no manifest".into();
        return Err(StoreError::Damaged { place: place.url(), found });
    };
    let manifest = Manifest::read(&place.url(), &bytes)?;
    let bytes_all = manifest.files.iter().map(|f| f.bytes).sum();
    let meter = Meter::new(bytes_all, tell).at(&store.limit);
    let (here, cache, needed) =
        (folder.to_owned(), store.cache.clone(), bytes_all.saturating_add(store.config.reserve_bytes));
    off_thread(move || {
        disk::remove_all(&here)?;
        disk::make_folder(&here)?;
        cache.enough_room(&here, needed)
    })
    .await?;
    let stamps = place.fetch(&manifest.files, folder, &meter).await?;
    for (file, stamp) in std::iter::zip(&manifest.files, stamps) {
        if (stamp.bytes, &stamp.sha256) != (file.bytes, &file.sha256) {
            let found = format!(
                "{} bytes with SHA-256 {}; the manifest says {} bytes with {}",
                stamp.bytes, stamp.sha256, file.bytes, file.sha256
            );
            return Err(StoreError::Damaged { place: place.join(&file.path).url(), found });
        }
    }
    let here = folder.to_owned();
    off_thread(move || disk::remove_all(&here.join(transfer::UNDER_WAY))).await?;
    Ok(reference(step, &bytes))
}
