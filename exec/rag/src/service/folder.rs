//! A folder that a service follows: what changed there is accepted, what went is deleted.

use std::{fs, path::Path, time::SystemTime};

use sha2::{Digest, Sha256};

use super::{Service, ServiceError, Upload};
use crate::{
    parse::{Format, Source},
    watch::{Bounds, Known, scan},
};

/// What a look at a folder came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Followed {
    /// Ids of documents that were accepted.
    pub accepted: Vec<String>,
    /// Ids of documents that were deleted.
    pub deleted: Vec<String>,
    /// Files that were left, and why.
    pub skipped: Vec<(String, String)>,
}

/// A file's document: the same as long as it has its place in the folder.
fn id_of(label: &str, path: &str) -> String {
    format!("file-{}", &hex::encode(Sha256::digest(format!("{label}\n{path}")))[..24])
}

impl Service {
    /// Looks at a folder once. `label`: its name among those that this service follows; what was seen is kept by it, across
    /// restarts too. Documents get `folder` and `path` as metadata. Files of other shards are left to them.
    ///
    /// # Errors
    /// When the folder can't be read, or the disk fails.
    pub fn follow(
        &self,
        label: &str,
        folder: &Path,
        bounds: &Bounds,
        now: SystemTime,
    ) -> Result<Followed, ServiceError> {
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let note = format!("folder/{label}");
        let known: Known = self.index.note(&note)?.unwrap_or_default();
        let field = |error: std::io::Error| {
            let message = format!("{}: {error}", folder.display());
            ServiceError::Field { field: "folder".into(), message }
        };
        let mut changes = scan(folder, &known, bounds, now).map_err(field)?;
        let mut followed = Followed { skipped: std::mem::take(&mut changes.skipped), ..Followed::default() };
        for path in changes.changed {
            let id = id_of(label, &path);
            if !self.settings.sharding.holds(&id) || Format::of(&path, None).is_err() {
                continue;
            }
            let metadata = [("folder".to_owned(), label.into()), ("path".to_owned(), path.as_str().into())];
            let taken = fs::read(folder.join(&path)).map_err(field).and_then(|bytes| {
                let source = Source { name: path.clone(), ..Source::default() };
                self.accept(
                    Upload { id: Some(id.clone()), source, metadata: metadata.into_iter().collect(), bytes },
                    seconds,
                )
            });
            match taken {
                Ok(accepted) if !accepted.unchanged => followed.accepted.push(id),
                Ok(_) => {}
                Err(error @ ServiceError::Index(_)) => return Err(error),
                Err(error) => {
                    // At the next look it is again what it was before this one.
                    match known.get(&path) {
                        Some(seen) => changes.known.insert(path.clone(), seen.clone()),
                        None => changes.known.remove(&path),
                    };
                    followed.skipped.push((path, error.to_string()));
                }
            }
        }
        for path in changes.removed {
            let id = id_of(label, &path);
            if self.settings.sharding.holds(&id) && self.delete(&id)? {
                followed.deleted.push(id);
            }
        }
        if changes.known != known {
            let bytes = serde_json::to_vec(&changes.known);
            let bytes = bytes.map_err(|error| crate::index::IndexError::Damaged(error.to_string()))?;
            self.index.put_notes(&[(note, Some(bytes))])?;
        }
        Ok(followed)
    }
}
