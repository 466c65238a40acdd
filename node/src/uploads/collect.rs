//! What goes: files that no kept list names, once they are old enough. Never one that a live task names; where that is
//! not known, nothing goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use super::{Uploads, files_in, folders_in};

/// What a collection came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Files that went.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Why less went than might have.
    pub kept_because: Option<String>,
}

impl Uploads {
    /// Removes what neither these lists (those that tasks which have not ended name) nor the last while needs. Blocks.
    pub fn collect(&self, named: &BTreeSet<String>, now: SystemTime) -> Collected {
        let _gate = self.gate();
        let mut collected = Collected::default();
        let old = |path: &PathBuf| {
            let modified = fs::metadata(path).and_then(|meta| meta.modified());
            // A file from the future has an age that nobody knows.
            let age = modified.ok().and_then(|modified| now.duration_since(modified).ok()).unwrap_or(Duration::ZERO);
            age >= self.limits.keep_for
        };
        // Those that were named until a while ago count as well.
        let mut trees: BTreeMap<String, PathBuf> = files_in(&self.root.join("trees"))
            .filter_map(|path| Some((path.file_name()?.to_str()?.to_owned(), path)))
            .collect();
        trees.extend(named.iter().map(|tree| (tree.clone(), self.mark(tree))));
        let mut needed = BTreeSet::new();
        for (tree, mark) in trees {
            if named.contains(&tree) {
                if let Err(error) =
                    fs::write(&mark, b"").and_then(|()| fs::File::options().append(true).open(&mark)?.set_modified(now))
                {
                    collected.kept_because = Some(format!("cannot mark {}: {error}", mark.display()));
                    return collected;
                }
            } else if old(&mark) {
                // Should it not go, it goes the next time.
                let _later = fs::remove_file(&mark);
                continue;
            }
            match self.tree(&tree) {
                Ok(list) => needed.extend(list.files.into_iter().map(|file| file.sha256)),
                Err(error) if named.contains(&tree) => {
                    // Nobody knows which files it names.
                    collected.kept_because =
                        Some(format!("the list {tree}, which a live task names, is lost: {error}"));
                    return collected;
                }
                Err(_) => {}
            }
            needed.insert(tree);
        }
        let shelves = folders_in(&self.root.join("sha256")).flat_map(|shelf| files_in(&shelf));
        for path in shelves.chain(files_in(&self.root.join("part"))) {
            let is_needed = path.file_name().and_then(|name| name.to_str()).is_none_or(|name| needed.contains(name));
            if is_needed || !old(&path) {
                continue;
            }
            let bytes = fs::metadata(&path).map_or(0, |meta| meta.len());
            match fs::remove_file(&path) {
                Ok(()) => (collected.files, collected.bytes) = (collected.files + 1, collected.bytes + bytes),
                Err(error) => collected.kept_because = Some(format!("cannot remove {}: {error}", path.display())),
            }
        }
        self.count();
        collected
    }
}
