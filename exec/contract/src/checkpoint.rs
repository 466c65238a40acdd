//! Checkpoints on this node's disk: `step-0000000042/`, whole under its name or not there.
//!
//! Written aside, every file synced, `manifest.json` with digests last, then renamed; after each of these moments a
//! crash leaves either the old state or the new one. Read back only after every digest was checked.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{failpoint, module::ModuleError};

/// Name of the file with the digests.
pub const MANIFEST: &str = "manifest.json";
/// Version of that file.
pub const MANIFEST_VERSION: u32 = 1;
const PREFIX: &str = "step-";
const ASIDE: &str = ".aside-";

/// A whole checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Optimizer steps done.
    pub step: u64,
    /// Its folder.
    pub dir: PathBuf,
    /// What it says of itself.
    pub manifest: Manifest,
}

/// What a checkpoint is made of, and what made it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`MANIFEST_VERSION`].
    pub v: u32,
    /// Optimizer steps done.
    pub step: u64,
    /// Version of the binary that wrote it.
    pub mloc: String,
    /// See [`crate::cpu_features`]: a resumed run is bit-identical where these and `threads` agree.
    pub cpu_features: String,
    /// Threads it computed with.
    pub threads: usize,
    /// The files, sorted by path.
    pub files: Vec<FileStamp>,
}

/// One file of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStamp {
    /// Path below the folder, with `/`.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256, hex.
    pub sha256: String,
}

/// A checkpoint that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Its folder.
    pub dir: PathBuf,
    /// What is wrong with it.
    pub found: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "checkpoint {} is damaged: {}", self.dir.display(), self.found)
    }
}

/// Which checkpoints stay when a new one was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// How many; 0 keeps all.
    pub keep: usize,
    /// The step of the best one, if one is: it stays however old it is, as one of the `keep`, and beside the newest where
    /// that is the only one.
    pub best: Option<u64>,
}

impl Retention {
    /// So many of the newest; 0 keeps all.
    pub fn newest(keep: usize) -> Self {
        Self { keep, best: None }
    }

    /// Which of `steps` go, once that of `newest` is whole, oldest first. What lies ahead of it is not looked at: a run that
    /// found newer ones damaged writes them anew.
    pub fn goes(self, steps: &[u64], newest: u64) -> Vec<u64> {
        if self.keep == 0 {
            return Vec::new();
        }
        let best = self.best.filter(|best| *best < newest && steps.contains(best));
        let mut old: Vec<u64> = steps.iter().copied().filter(|step| *step < newest && best != Some(*step)).collect();
        old.sort_unstable();
        let stay = (self.keep - 1).saturating_sub(usize::from(best.is_some()));
        old.truncate(old.len().saturating_sub(stay));
        old
    }
}

/// The folder of a step below `checkpoints`.
pub fn dir_of(checkpoints: &Path, step: u64) -> PathBuf {
    checkpoints.join(format!("{PREFIX}{step:010}"))
}

/// Writes a checkpoint: `write` fills an empty folder, and what it left there becomes the checkpoint of `step`.
///
/// # Errors
/// What `write` says, or [`ModuleError::Retryable`] for the disk.
pub fn save(
    checkpoints: &Path,
    step: u64,
    threads: usize,
    write: impl FnOnce(&Path) -> Result<(), ModuleError>,
) -> Result<Checkpoint, ModuleError> {
    let disk = |e: io::Error| ModuleError::disk("write a checkpoint below", checkpoints, &e);
    let aside = checkpoints.join(format!("{ASIDE}{step:010}"));
    remove(&aside).map_err(disk)?;
    fs::create_dir_all(&aside).map_err(disk)?;
    failpoint::reached("checkpoint.begin");
    write(&aside)?;
    failpoint::reached("checkpoint.files");
    let mut files = Vec::new();
    seal(&aside, "", &mut files).map_err(disk)?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    failpoint::reached("checkpoint.sync");
    let manifest = Manifest {
        v: MANIFEST_VERSION,
        step,
        mloc: crate::VERSION.into(),
        cpu_features: crate::cpu_features(),
        threads,
        files,
    };
    let bytes = serde_json::to_vec_pretty(&manifest).map_err(|e| disk(e.into()))?;
    write_whole(&aside.join(MANIFEST), &bytes).map_err(disk)?;
    failpoint::reached("checkpoint.manifest");
    Ok(Checkpoint { step, dir: adopt(&aside, checkpoints, step).map_err(disk)?, manifest })
}

/// Gives a folder that lies on the same file system its place as the checkpoint of `step`.
///
/// # Errors
/// Those of the disk.
pub fn adopt(folder: &Path, checkpoints: &Path, step: u64) -> io::Result<PathBuf> {
    let dir = dir_of(checkpoints, step);
    // Only a damaged one, or the same one from before a crash, can be there.
    remove(&dir)?;
    failpoint::reached("checkpoint.removed");
    fs::rename(folder, &dir)?;
    failpoint::reached("checkpoint.rename");
    sync_dir(checkpoints)?;
    failpoint::reached("checkpoint.parent");
    Ok(dir)
}

/// The newest checkpoint whose every digest is right, and what is wrong with newer ones. What a crash left half
/// written was never a checkpoint, and is cleared away.
///
/// # Errors
/// When the folder cannot be listed. A folder that is not there holds none.
pub fn find_newest_valid(checkpoints: &Path) -> io::Result<(Option<Checkpoint>, Vec<Damage>)> {
    for aside in entries(checkpoints)?.into_iter().filter(|(name, _)| name.starts_with(ASIDE)) {
        remove(&aside.1)?;
    }
    let mut damages = Vec::new();
    for (step, dir) in steps(checkpoints)?.into_iter().rev() {
        match verify(&dir, step) {
            Ok(manifest) => return Ok((Some(Checkpoint { step, dir, manifest }), damages)),
            Err(found) => damages.push(Damage { dir, found }),
        }
    }
    Ok((None, damages))
}

/// Removes what does not stay now that the checkpoint of `newest` was written.
///
/// # Errors
/// Those of the disk.
pub fn prune(checkpoints: &Path, newest: u64, retention: Retention) -> io::Result<()> {
    let there = steps(checkpoints)?;
    let goes = retention.goes(&there.iter().map(|(step, _)| *step).collect::<Vec<_>>(), newest);
    for (step, dir) in there.into_iter().filter(|(step, _)| goes.contains(step)) {
        // Under another name first: half removed it must not look like a damaged one.
        let aside = checkpoints.join(format!("{ASIDE}{step:010}"));
        remove(&aside)?;
        fs::rename(&dir, &aside)?;
        failpoint::reached("checkpoint.prune");
        remove(&aside)?;
    }
    Ok(())
}

/// Gives the files of every checkpoint second names below `folder/checkpoints/`, to be published. Returns their paths
/// below `folder`, sorted. Where the file system knows no second names they are copied.
///
/// # Errors
/// Those of the disk.
pub fn link_into(checkpoints: &Path, folder: &Path) -> io::Result<Vec<String>> {
    let mut paths = Vec::new();
    for (_, dir) in steps(checkpoints)? {
        let Some(name) = dir.file_name() else { continue };
        let below = format!("checkpoints/{}", name.to_string_lossy());
        link_all(&dir, folder, &below, &mut paths)?;
    }
    paths.sort();
    Ok(paths)
}

fn link_all(from: &Path, top: &Path, below: &str, paths: &mut Vec<String>) -> io::Result<()> {
    fs::create_dir_all(top.join(below))?;
    for (name, path) in entries(from)? {
        let name = format!("{below}/{name}");
        if path.is_dir() {
            link_all(&path, top, &name, paths)?;
        } else {
            let to = top.join(&name);
            // A second name of the same bytes that was there already must not be written through.
            match fs::remove_file(&to) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            fs::hard_link(&path, &to).or_else(|_| fs::copy(&path, &to).map(drop))?;
            paths.push(name);
        }
    }
    Ok(())
}

/// Checks every digest of a checkpoint's folder.
///
/// # Errors
/// What is wrong with it.
pub fn verify(dir: &Path, step: u64) -> Result<Manifest, String> {
    let bytes = fs::read(dir.join(MANIFEST)).map_err(|e| format!("{MANIFEST}: {e}"))?;
    let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|e| format!("{MANIFEST}: {e}"))?;
    if manifest.v != MANIFEST_VERSION {
        return Err(format!("{MANIFEST}: version {}, this build reads {MANIFEST_VERSION}", manifest.v));
    }
    if manifest.step != step {
        return Err(format!("{MANIFEST}: of step {}", manifest.step));
    }
    for file in &manifest.files {
        let (bytes, sha256) = stamp(&dir.join(&file.path)).map_err(|e| format!("{}: {e}", file.path))?;
        if bytes != file.bytes {
            return Err(format!("{}: {bytes} bytes, the manifest says {}", file.path, file.bytes));
        }
        if sha256 != file.sha256 {
            return Err(format!("{}: SHA-256 is {sha256}, the manifest says {}", file.path, file.sha256));
        }
    }
    Ok(manifest)
}

/// Writes a file so that it is there whole, durably, or as it was before.
///
/// # Errors
/// Those of the disk.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or_else(|| io::Error::other("no file name"))?.to_string_lossy();
    let aside = parent.join(format!(".{name}.aside"));
    let mut file = File::create(&aside)?;
    file.write_all(bytes)?;
    failpoint::reached("file.written");
    file.sync_all()?;
    failpoint::reached("file.synced");
    fs::rename(&aside, path)?;
    failpoint::reached("file.renamed");
    sync_dir(parent)?;
    failpoint::reached("file.folder");
    Ok(())
}

/// Makes names in a folder durable.
///
/// # Errors
/// Those of the disk.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Syncs every file and folder below `dir` and notes their digests.
fn seal(dir: &Path, below: &str, files: &mut Vec<FileStamp>) -> io::Result<()> {
    for (name, path) in entries(dir)? {
        let name = format!("{below}{name}");
        if path.is_dir() {
            seal(&path, &format!("{name}/"), files)?;
        } else if name != MANIFEST {
            File::open(&path)?.sync_all()?;
            failpoint::reached("checkpoint.sealed");
            let (bytes, sha256) = stamp(&path)?;
            files.push(FileStamp { path: name, bytes, sha256 });
        }
    }
    sync_dir(dir)
}

fn stamp(path: &Path) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((bytes, hex::encode(digest.finalize()))),
            n => {
                digest.update(&buffer[..n]);
                bytes += n as u64;
            }
        }
    }
}

/// Checkpoints by name, oldest first; whole or not.
fn steps(checkpoints: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let named = |(name, path): (String, PathBuf)| Some((name.strip_prefix(PREFIX)?.parse().ok()?, path));
    let mut steps: Vec<(u64, PathBuf)> = entries(checkpoints)?.into_iter().filter_map(named).collect();
    steps.sort_unstable();
    Ok(steps)
}

fn entries(dir: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    match fs::read_dir(dir) {
        Ok(all) => all.map(|e| e.map(|e| (e.file_name().to_string_lossy().into_owned(), e.path()))).collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn save_step(dir: &Path, step: u64) -> Checkpoint {
        let write = |to: &Path| {
            fs::create_dir(to.join("state")).unwrap();
            fs::write(to.join("state/weights.bin"), vec![step as u8; 1000]).unwrap();
            fs::write(to.join("rng.json"), b"[1,2]").unwrap();
            Ok(())
        };
        save(dir, step, 2, write).unwrap()
    }

    #[test]
    fn the_newest_whole_one_is_found() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(find_newest_valid(&dir.path().join("none")).unwrap(), (None, vec![]));
        save_step(dir.path(), 5);
        let ten = save_step(dir.path(), 10);
        assert_eq!(find_newest_valid(dir.path()).unwrap(), (Some(ten.clone()), vec![]));
        assert_eq!(ten.manifest.files.iter().map(|f| &*f.path).collect::<Vec<_>>(), ["rng.json", "state/weights.bin"]);
    }

    #[test]
    fn damage_is_noticed_and_the_one_before_is_used() {
        type Damager = (&'static str, fn(&Path));
        let ways: [Damager; 6] = [
            ("999 bytes, the manifest says 1000", |d| fs::write(d.join("state/weights.bin"), vec![10; 999]).unwrap()),
            ("SHA-256 is", |d| fs::write(d.join("state/weights.bin"), vec![11; 1000]).unwrap()),
            ("rng.json: No such file", |d| fs::remove_file(d.join("rng.json")).unwrap()),
            ("manifest.json: No such file", |d| fs::remove_file(d.join(MANIFEST)).unwrap()),
            ("manifest.json: EOF", |d| fs::write(d.join(MANIFEST), b"{").unwrap()),
            ("of step 5", |d| {
                fs::copy(d.parent().unwrap().join("step-0000000005/manifest.json"), d.join(MANIFEST)).map(drop).unwrap()
            }),
        ];
        for (said, damage) in ways {
            let dir = tempfile::tempdir().unwrap();
            let five = save_step(dir.path(), 5);
            damage(&save_step(dir.path(), 10).dir);
            let (found, damages) = find_newest_valid(dir.path()).unwrap();
            assert_eq!(found, Some(five), "{said}");
            assert!(damages.len() == 1 && damages[0].to_string().contains(said), "{damages:?} lacks {said}");
            // The damaged one is written over by the run that comes by again.
            let ten = save_step(dir.path(), 10);
            assert_eq!(find_newest_valid(dir.path()).unwrap(), (Some(ten), vec![]));
        }
    }

    #[test]
    fn old_ones_go_and_the_newest_whole_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        for step in [1, 2, 3, 9] {
            save_step(dir.path(), step);
        }
        // 9 lies ahead: it was found damaged, and the run goes on from 2.
        prune(dir.path(), 3, Retention::newest(1)).unwrap();
        let left: Vec<u64> = steps(dir.path()).unwrap().into_iter().map(|(s, _)| s).collect();
        assert_eq!(left, [3, 9]);
        prune(dir.path(), 9, Retention::newest(0)).unwrap();
        assert_eq!(steps(dir.path()).unwrap().len(), 2);
    }

    #[test]
    fn the_best_one_stays_among_those_that_stay() {
        let goes = |keep, best, newest| Retention { keep, best }.goes(&[2, 4, 6, 8, 10], newest);
        assert_eq!(goes(2, None, 10), [2, 4, 6]);
        assert_eq!(goes(3, Some(4), 10), [2, 6]);
        assert_eq!(goes(2, Some(4), 10), [2, 6, 8]);
        assert_eq!(goes(1, Some(4), 10), [2, 6, 8], "beside the newest");
        assert_eq!(goes(1, Some(10), 10), [2, 4, 6, 8]);
        assert_eq!(goes(2, Some(3), 10), [2, 4, 6], "it was never saved");
        assert_eq!(goes(1, Some(8), 6), [2, 4], "it was ahead, and is damaged");
        assert!(goes(0, Some(4), 10).is_empty() && goes(9, None, 10).is_empty());
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let failed = save(dir.path(), 4, 1, |to| {
            fs::write(to.join("half"), b"x").unwrap();
            Err(ModuleError::Cancelled)
        });
        assert!(matches!(failed, Err(ModuleError::Cancelled)));
        assert_eq!(find_newest_valid(dir.path()).unwrap(), (None, vec![]));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
