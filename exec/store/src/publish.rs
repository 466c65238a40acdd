//! The result to its destination, once.
//!
//! Files go under their plain names, the manifest last and only where there is none yet. So a destination holds one
//! whole result or none; a retry writes over what its own dead attempt left, and a result that is already there is
//! adopted when it is of the same task and replica.

use std::path::Path;

use mloc_core::{
    id::AttemptId,
    ledger::entry::{Artifact, TaskResult},
    task::spec::Location,
};
use mloc_exec::{Lineage, ModuleOutput, OnMoved, Output};

use crate::{
    Store,
    disk::{self, off_thread, until_dropped},
    error::StoreError,
    leftovers::{self, UPLOADING},
    manifest::{FORMAT, MANIFEST, MANIFEST_BYTES_MAX, Manifest},
    meter::Meter,
    place::Area,
};

impl Store {
    /// Publishes what an attempt made, with a word in the manifest on where it comes from. Call it only after the ledger
    /// has granted [`Publishing`] to this attempt. Without a destination the files stay where they are, and the result's
    /// location says so.
    ///
    /// # Errors
    /// [`StoreError::Taken`] when another task's result lies there; others as for any transfer.
    ///
    /// [`Publishing`]: mloc_core::ledger::entry::Entry::Publishing
    pub async fn publish(
        &self,
        attempt: &AttemptId,
        destination: Option<&Location>,
        folder: &Path,
        made: &ModuleOutput,
        lineage: Option<Lineage>,
        tell: OnMoved,
    ) -> Result<TaskResult, StoreError> {
        let outputs = &made.outputs;
        let manifest = |files| Manifest {
            format: FORMAT,
            attempt: attempt.clone(),
            step: None,
            files,
            summary: made.summary.clone(),
            lineage: lineage.clone(),
        };
        let sizes = sizes(folder, outputs)?;
        let meter = Meter::new(sizes.iter().sum(), tell).at(&self.limit);
        let Some(destination) = destination else {
            return stay(folder, outputs, manifest, &meter).await;
        };
        let place = self.area(destination)?;
        let all: Vec<&str> = outputs.iter().map(|o| o.path.as_str()).chain([MANIFEST]).collect();
        if let Some(there) = published(&*place, attempt).await? {
            place.sweep(&all).await;
            leftovers::clear(&*place, &there).await;
            return Ok(there.into_result(place.url()));
        }
        if let Some(folder) = place.folder().map(Path::to_owned) {
            let (cache, needed) = (self.cache.clone(), sizes.iter().sum());
            off_thread(move || cache.enough_room(&folder, needed)).await?;
        }
        leftovers::announce(&*place, attempt, outputs.iter().map(|o| o.path.as_str()), &meter).await?;
        let mut files = Vec::with_capacity(outputs.len());
        for output in outputs {
            let stamp = place.put(&output.path, &folder.join(&output.path), &meter).await?;
            files.push(artifact(output, stamp));
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let manifest = manifest(files);
        if !place.put_new(MANIFEST, manifest.to_bytes()?, &meter).await? {
            // Somebody was faster; perhaps this very attempt, whose answer was lost.
            let there = published(&*place, attempt).await?;
            return there.map(|m| m.into_result(place.url())).ok_or_else(|| StoreError::Changed { place: place.url() });
        }
        // What dead attempts were writing when they died; the result is whole without it.
        place.sweep(&all).await;
        leftovers::clear(&*place, &manifest).await;
        Ok(manifest.into_result(place.url()))
    }

    /// Clears away the temporary files that an attempt of this node was writing to a destination on its disks when the
    /// daemon died. Nobody else's: nothing where another one has begun to publish since.
    ///
    /// # Errors
    /// Those of this disk.
    pub async fn sweep(&self, attempt: &AttemptId, destination: &Location) -> Result<(), StoreError> {
        // Only on this node's disks is there anything; one that does not answer must not hold up the caller's thread.
        let Location::Local { .. } = destination else { return Ok(()) };
        let (here, to) = (self.clone(), destination.clone());
        let place = off_thread(move || here.area(&to)).await?;
        leftovers::sweep(&*place, attempt).await
    }

    /// The result of this task and replica at a destination, when an earlier attempt got so far and could not say
    /// so: an attempt that finds one has nothing left to compute.
    ///
    /// # Errors
    /// [`StoreError::Taken`] when another task's result lies there; others as for any transfer.
    pub async fn published(
        &self,
        attempt: &AttemptId,
        destination: &Location,
    ) -> Result<Option<TaskResult>, StoreError> {
        let place = self.area(destination)?;
        Ok(published(&*place, attempt).await?.map(|manifest| manifest.into_result(place.url())))
    }
}

async fn published(place: &dyn Area, attempt: &AttemptId) -> Result<Option<Manifest>, StoreError> {
    let Some(bytes) = place.get(MANIFEST, MANIFEST_BYTES_MAX).await? else { return Ok(None) };
    let manifest = Manifest::read(&place.join(MANIFEST).url(), &bytes)?;
    let of = &manifest.attempt;
    if (&of.task, of.replica) != (&attempt.task, attempt.replica) {
        let replica = if of.task == attempt.task { format!(" (replica {})", of.replica) } else { String::new() };
        return Err(StoreError::Taken { place: place.url(), task: format!("{}{replica}", of.task) });
    }
    Ok(Some(manifest))
}

/// No destination: the artifacts stay in the attempt's folder, with a manifest as at any destination.
async fn stay(
    folder: &Path,
    outputs: &[Output],
    manifest: impl FnOnce(Vec<Artifact>) -> Manifest,
    meter: &Meter,
) -> Result<TaskResult, StoreError> {
    let (from, all, meter) = (folder.to_owned(), outputs.to_vec(), meter.clone());
    let files = off_thread(move || {
        let mut files = Vec::with_capacity(all.len());
        for output in &all {
            let stamp = disk::stamp(&from.join(&output.path))?;
            meter.found(stamp.bytes);
            files.push(artifact(output, stamp));
        }
        files.sort_by(|a: &Artifact, b| a.path.cmp(&b.path));
        // A module without outputs may have made no folder.
        disk::make_folder(&from)?;
        Ok::<_, StoreError>(files)
    })
    .await?;
    let manifest = manifest(files);
    let (path, bytes) = (folder.join(MANIFEST), manifest.to_bytes()?);
    until_dropped(move |halt| disk::write(&path, &bytes, halt)).await?;
    Ok(manifest.into_result(folder.display().to_string()))
}

fn sizes(folder: &Path, outputs: &[Output]) -> Result<Vec<u64>, StoreError> {
    let size = |output: &Output| {
        let name = disk::below(&output.path)
            .filter(|_| ![MANIFEST, UPLOADING].contains(&output.path.as_str()))
            .ok_or_else(|| StoreError::BadName { place: folder.display().to_string(), name: output.path.clone() })?;
        let path = folder.join(name);
        std::fs::metadata(&path).map(|m| m.len()).map_err(|e| StoreError::disk("look at", &path, e))
    };
    outputs.iter().map(size).collect()
}

fn artifact(output: &Output, stamp: disk::Stamp) -> Artifact {
    Artifact { path: output.path.clone(), kind: output.kind.clone(), bytes: stamp.bytes, sha256: stamp.sha256 }
}
