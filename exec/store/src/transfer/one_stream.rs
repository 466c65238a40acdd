//! A file that can only be had from its first byte to its last: it begins again whenever the line breaks.

use std::{fs, io::Write, sync::Arc};

use futures::TryStreamExt;

use super::{BLOCK, Part, Paths, name_it, open_part};
use crate::{
    disk::{Stamp, off_thread},
    error::StoreError,
    meter::Meter,
    remote::{Object, Remote},
};

/// Fetches it, then its digest and its name. Of its size only what the server says is known: nothing, perhaps.
pub(super) async fn fetch(
    remote: &dyn Remote,
    object: &Object,
    paths: &Paths,
    meter: &Meter,
) -> Result<Stamp, StoreError> {
    let patience = remote.patience();
    let mut failures = 0;
    let bytes = loop {
        let error = match read(remote, object, paths, meter).await {
            Ok(bytes) => break bytes,
            Err(error) => error,
        };
        failures += 1;
        let Some(wait) = patience.wait_for(&error, failures) else { return Err(error.after(failures)) };
        tracing::info!(place = remote.url(&object.name), %error, ?wait, "the line broke, and it begins again: the server gives no ranges");
        meter.start_over();
        tokio::time::sleep(wait).await;
    };
    let part = Part { bytes, ..Part::fresh(object) };
    name_it(remote, object, paths, part).await
}

/// All of it, once. Returns how many bytes came.
async fn read(remote: &dyn Remote, object: &Object, paths: &Paths, meter: &Meter) -> Result<u64, StoreError> {
    let mut stream = remote.read(object, 0..object.bytes).await?;
    let (path, fresh) = (paths.clone(), Part { bytes: 0, ..Part::fresh(object) });
    let file = Arc::new(off_thread(move || open_part(&path, &fresh)).await?);
    let (mut held, mut came) = (Vec::with_capacity(BLOCK), 0);
    loop {
        let next = stream.try_next().await?;
        let over = next.is_none();
        let bytes = next.unwrap_or_default();
        meter.pass(bytes.len() as u64).await;
        held.extend_from_slice(&bytes);
        if held.len() >= BLOCK || (over && !held.is_empty()) {
            let (block, file, path) = (std::mem::take(&mut held), file.clone(), paths.part.clone());
            let written = block.len() as u64;
            off_thread(move || (&*file).write_all(&block).map_err(|e| StoreError::disk("write", &path, e))).await?;
            came += written;
            meter.moved(written);
        }
        if over {
            break;
        }
    }
    if object.bytes != 0 && came != object.bytes {
        return Err(remote.cut_short(object, came));
    }
    let path = paths.part.clone();
    off_thread(move || file.sync_data().map_err(|e| StoreError::disk("sync", &path, e))).await?;
    debug_assert!(fs::metadata(&paths.part).is_ok_and(|m| m.len() == came));
    Ok(came)
}
