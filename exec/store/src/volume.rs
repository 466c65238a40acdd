//! Local paths: only below the folders a node declares, whatever `..` and symbolic links say.

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

use crate::{disk, error::StoreError};

/// A path that may be used, with the real folder of its volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inside {
    /// The volume's real folder.
    pub root: PathBuf,
    /// The real path as far as it exists, and the rest as written.
    pub path: PathBuf,
}

impl Inside {
    /// Where a file below this place is written: its folder exists afterwards, and lies in the volume whatever links
    /// somebody has put there meanwhile. The file itself may be a link; it is replaced, never followed.
    pub fn goal(&self, name: &str) -> Result<PathBuf, StoreError> {
        let path = self.path.join(name);
        let (Some(folder), Some(file)) = (path.parent(), path.file_name()) else {
            return Err(StoreError::BadName { place: self.path.display().to_string(), name: name.to_owned() });
        };
        let folder = real(folder)?;
        if !folder.starts_with(&self.root) {
            let found = format!("a link leads to {}", folder.display());
            return Err(StoreError::Escapes { path: path.display().to_string(), found });
        }
        disk::make_folder(&folder)?;
        Ok(folder.join(file))
    }
}

/// Finds what a `local` path means on this node: `VOLUME/relative/path`, or absolute below a volume's folder.
/// The file need not exist; what exists of the way to it must lie inside the volume when all links are followed.
pub(crate) fn resolve(volumes: &BTreeMap<String, PathBuf>, given: &str) -> Result<Inside, StoreError> {
    let escapes = |found: String| StoreError::Escapes { path: given.to_owned(), found };
    let path = Path::new(given);
    if path.components().any(|c| c == Component::ParentDir) {
        return Err(escapes("it has `..`".into()));
    }
    let (volume, folder, rest) = volumes
        .iter()
        .filter_map(|(name, folder)| {
            let rest = if path.is_absolute() {
                // As declared, or as it is when links are followed.
                let real = || path.strip_prefix(folder.canonicalize().ok()?).ok();
                path.strip_prefix(folder).ok().or_else(real)
            } else {
                path.strip_prefix(name).ok()
            };
            Some((name, folder, rest?))
        })
        // Volumes may lie in one another: the innermost one is meant.
        .max_by_key(|(_, folder, _)| folder.components().count())
        .ok_or_else(|| StoreError::NoVolume { path: given.to_owned(), declared: listed(volumes) })?;
    let root = folder.canonicalize().map_err(|source| StoreError::VolumeGone {
        volume: volume.clone(),
        folder: folder.clone(),
        source,
    })?;
    let path = real(&root.join(rest))?;
    if !path.starts_with(&root) {
        return Err(escapes(format!("a link leads to {}", path.display())));
    }
    Ok(Inside { root, path })
}

/// Checks that every file below a source really lies in its volume: a link among them may lead out.
pub(crate) fn all_inside(given: &str, inside: &Inside, files: &[disk::Found]) -> Result<(), StoreError> {
    for file in files {
        let path = inside.path.join(&file.path);
        let real = path.canonicalize().map_err(|e| StoreError::disk("follow", &path, e))?;
        if !real.starts_with(&inside.root) {
            let found = format!("{} is a link to {}", file.path, real.display());
            return Err(StoreError::Escapes { path: given.to_owned(), found });
        }
    }
    Ok(())
}

/// The real path of what exists of it, and the rest as written.
fn real(path: &Path) -> Result<PathBuf, StoreError> {
    for there in path.ancestors() {
        match there.symlink_metadata() {
            Ok(_) => {
                // A link that leads nowhere fails here: it might lead out once its goal is made.
                let real = there.canonicalize().map_err(|e| StoreError::disk("follow", there, e))?;
                let rest = path.strip_prefix(there).unwrap_or(Path::new(""));
                return Ok(if rest.as_os_str().is_empty() { real } else { real.join(rest) });
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(StoreError::disk("look at", there, e)),
        }
    }
    Ok(path.to_owned())
}

fn listed(volumes: &BTreeMap<String, PathBuf>) -> String {
    if volumes.is_empty() {
        return "none".into();
    }
    let each: Vec<_> = volumes.iter().map(|(name, folder)| format!("{name} ({})", folder.display())).collect();
    each.join(", ")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_declared_volumes_are_reached() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        let data = top.join("data");
        fs::create_dir_all(data.join("in")).unwrap();
        fs::create_dir_all(top.join("secret")).unwrap();
        fs::write(data.join("in/a"), "a").unwrap();
        std::os::unix::fs::symlink(top.join("secret"), data.join("out")).unwrap();
        std::os::unix::fs::symlink(data.join("in"), data.join("alias")).unwrap();
        std::os::unix::fs::symlink(top.join("nowhere"), data.join("dangling")).unwrap();
        let volumes = BTreeMap::from([("data".to_owned(), data.clone())]);
        let path = |given: &str| resolve(&volumes, given).map(|i| i.path);

        assert_eq!(path("data/in/a").unwrap(), data.join("in/a"));
        assert_eq!(path("data").unwrap(), data);
        assert_eq!(path(data.join("in").to_str().unwrap()).unwrap(), data.join("in"));
        assert_eq!(path("data/alias/a").unwrap(), data.join("in/a"));
        assert_eq!(path("data/new/folder").unwrap(), data.join("new/folder"));
        for out in ["data/../secret", "data/out", "data/out/new", "data/in/../../secret"] {
            assert!(matches!(path(out), Err(StoreError::Escapes { .. })), "{out}: {:?}", path(out));
        }
        assert!(matches!(path("data/dangling/x"), Err(StoreError::Disk { .. })));
        for none in ["/etc/passwd", "other/a", "database/a", top.join("secret").to_str().unwrap()] {
            assert!(matches!(path(none), Err(StoreError::NoVolume { .. })), "{none}: {:?}", path(none));
        }
    }

    #[test]
    fn a_file_is_not_written_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        fs::create_dir_all(top.join("data/out")).unwrap();
        fs::create_dir_all(top.join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(top.join("elsewhere"), top.join("data/out/logs")).unwrap();
        let inside = Inside { root: top.join("data"), path: top.join("data/out") };
        assert!(matches!(inside.goal("logs/x"), Err(StoreError::Escapes { .. })));
        assert!(matches!(inside.goal("logs/new/x"), Err(StoreError::Escapes { .. })));
        assert_eq!(fs::read_dir(top.join("elsewhere")).unwrap().count(), 0);
        assert_eq!(inside.goal("new/x").unwrap(), top.join("data/out/new/x"));
    }

    #[test]
    fn the_innermost_volume_is_meant_and_a_gone_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        fs::create_dir_all(top.join("inner")).unwrap();
        let volumes = BTreeMap::from([
            ("a".to_owned(), top.join("inner")),
            ("b".to_owned(), top.clone()),
            ("gone".to_owned(), top.join("gone")),
        ]);
        fs::create_dir(top.join("far")).unwrap();
        std::os::unix::fs::symlink(top.join("far"), top.join("inner/link")).unwrap();
        let linked = BTreeMap::from([("linked".to_owned(), top.join("inner/link"))]);
        let linked = resolve(&linked, top.join("far/x").to_str().unwrap());
        assert_eq!(linked.unwrap().path, top.join("far/x"));
        assert_eq!(resolve(&volumes, top.join("inner/x").to_str().unwrap()).unwrap().root, top.join("inner"));
        assert!(matches!(resolve(&volumes, "gone/x"), Err(StoreError::VolumeGone { .. })));
    }
}
