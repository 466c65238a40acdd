//! A checkpoint that is on its way to the shared place keeps its files: the child prunes old ones as it goes, and a
//! push slower than its saves would otherwise never come through.

use std::{fs, io, path::Path, path::PathBuf};

/// Second names for the files of a checkpoint, gone with this value.
#[derive(Debug)]
pub(crate) struct Held {
    dir: PathBuf,
    links: bool,
}

impl Held {
    /// Gives the files of `checkpoint` second names below `at`; `None` when it is gone already, for then a newer one is
    /// there. Where the file system knows no second names it stands for the folder itself. Blocks.
    pub fn take(checkpoint: &Path, at: PathBuf) -> Option<Self> {
        // What a daemon that died left there.
        let cleared = fs::remove_dir_all(&at).or_else(|e| if is_gone(&e) { Ok(()) } else { Err(e) });
        match cleared.and_then(|()| link_all(checkpoint, &at)) {
            Ok(()) => Some(Self { dir: at, links: true }),
            Err(error) => {
                // Half of the names are of no use.
                let _ = fs::remove_dir_all(&at);
                let there = checkpoint.is_dir() && !is_gone(&error);
                there.then(|| Self { dir: checkpoint.to_owned(), links: false })
            }
        }
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.links
            && let Err(error) = fs::remove_dir_all(&self.dir)
        {
            tracing::warn!(folder = %self.dir.display(), %error, "second names of a checkpoint stay until it is forgotten");
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

fn link_all(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() { link_all(&entry.path(), &to)? } else { fs::hard_link(entry.path(), to)? }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_outlive_their_checkpoint_and_no_longer_than_they_are_held() {
        let dir = tempfile::tempdir().unwrap();
        let (checkpoint, at) = (dir.path().join("step-1"), dir.path().join("held/step-1"));
        fs::create_dir_all(checkpoint.join("below")).unwrap();
        fs::write(checkpoint.join("below/weights"), b"w").unwrap();
        // A rest of an earlier time is in the way.
        fs::create_dir_all(&at).unwrap();
        fs::write(at.join("old"), b"o").unwrap();
        let held = Held::take(&checkpoint, at.clone()).unwrap();
        fs::remove_dir_all(&checkpoint).unwrap();
        assert_eq!(fs::read(held.dir().join("below/weights")).unwrap(), b"w");
        assert!(!held.dir().join("old").exists());
        drop(held);
        assert!(!at.exists());
        assert!(Held::take(&checkpoint, at.clone()).is_none(), "it is gone: a newer one is there");
        assert!(!at.exists());
    }
}
