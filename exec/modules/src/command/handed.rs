//! What a program hands over: folders that become checkpoints, files that become artifacts. Everything is looked at
//! before it is believed, for this process reads what the program may not.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use mloc_core::task::artifacts::OTHER as FILES;
use mloc_exec::{ModuleOutput, Output, checkpoint::MANIFEST};

/// Files of one checkpoint or one result: each is named in a manifest.
const FILES_MAX: usize = 100_000;

/// A folder that can become a checkpoint.
///
/// # Errors
/// Why it cannot.
pub fn checkpoint(checkpoints: &Path, dir: &Path) -> Result<PathBuf, String> {
    let given = checkpoints.join(dir);
    let said = |e: io::Error| format!("{}: {e}", given.display());
    let (top, found) = (checkpoints.canonicalize().map_err(said)?, given.canonicalize().map_err(said)?);
    if found == top || !found.starts_with(&top) {
        return Err(format!("{}: is no folder below {}, which MLOC_CHECKPOINTS names", given.display(), top.display()));
    }
    if !found.is_dir() {
        return Err(format!("{}: is no folder", given.display()));
    }
    if found.join(MANIFEST).exists() {
        return Err(format!("{}: holds a {MANIFEST}, the name of the mesh's own file of digests", given.display()));
    }
    match files(&found)? {
        (_, odd) if !odd.is_empty() => Err(format!(
            "{}: holds what is neither a file nor a folder, or has no UTF-8 name: {}",
            given.display(),
            odd.join(", ")
        )),
        (files, _) if files.is_empty() => Err(format!("{}: is empty", given.display())),
        _ => Ok(found),
    }
}

/// Takes a checked folder's content to where a checkpoint is made; what it was in goes. On one file system that copies
/// nothing.
///
/// # Errors
/// Those of the disk, and what came into it meanwhile.
pub fn take(from: &Path, into: &Path) -> Result<(), String> {
    let said = |e: io::Error| format!("{}: {e}", from.display());
    for entry in fs::read_dir(from).map_err(said)? {
        let entry = entry.map_err(said)?;
        fs::rename(entry.path(), into.join(entry.file_name())).map_err(said)?;
    }
    fs::remove_dir(from).map_err(said)?;
    // Here the program can change it no more.
    match files(into)? {
        (_, odd) if !odd.is_empty() => Err(format!("{}: it was changed while it was taken", from.display())),
        _ => Ok(()),
    }
}

/// What may be published (which of it is, `output.artifacts` decides): what the program named, or else every file; and what is left out of that.
///
/// # Errors
/// When it named what is not there.
pub fn artifacts(dir: &Path, named: Option<ModuleOutput>) -> Result<(ModuleOutput, Vec<String>), String> {
    let (files, odd) = files(dir)?;
    let mut output = named.unwrap_or_default();
    if output.outputs.is_empty() {
        let output_of = |path: String| Output { kind: kind_of(&path).to_owned(), path };
        output.outputs = files.into_iter().map(output_of).collect();
    } else if let Some(missing) = output.outputs.iter().find(|output| !files.contains(&output.path)) {
        return Err(format!(
            "its result names `{}`, and there is no such file below {}, which MLOC_ARTIFACTS names",
            missing.path,
            dir.display()
        ));
    }
    Ok((output, odd))
}

/// The kind of a file by its name, as the libraries that write such files call them.
pub fn kind_of(path: &str) -> &'static str {
    let name = path.rsplit('/').next().unwrap_or(path);
    let ends = |ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
    let begins = |begins: &[&str]| begins.iter().any(|begin| name.starts_with(begin));
    if begins(&["adapter_model.", "adapter_config."]) {
        "adapter_weights"
    } else if begins(&["tokenizer", "special_tokens_map.", "added_tokens.", "vocab.", "merges.", "chat_template."]) {
        "tokenizer"
    } else if ends(&[".log"]) || begins(&["training_log", "trainer_state.", "events.out.tfevents"]) {
        "training_logs"
    } else if ends(&[".safetensors", ".gguf"])
        || begins(&["pytorch_model", "model.", "config.json", "generation_config.json"])
    {
        "full_model"
    } else {
        FILES
    }
}

/// Every file below a folder by its path with `/`, sorted, and whatever else there is.
fn files(dir: &Path) -> Result<(Vec<String>, Vec<String>), String> {
    let (mut files, mut odd) = (Vec::new(), Vec::new());
    let mut folders = vec![(dir.to_owned(), String::new())];
    while let Some((folder, below)) = folders.pop() {
        let said = |e: io::Error| format!("{}: {e}", folder.display());
        for entry in fs::read_dir(&folder).map_err(said)? {
            let entry = entry.map_err(said)?;
            let kind = entry.file_type().map_err(said)?;
            match entry.file_name().to_str().map(|name| format!("{below}{name}")) {
                Some(name) if kind.is_dir() => folders.push((entry.path(), format!("{name}/"))),
                Some(name) if kind.is_file() => files.push(name),
                _ => odd.push(format!("{below}{}", entry.file_name().to_string_lossy())),
            }
            if files.len() + odd.len() > FILES_MAX {
                return Err(format!("{}: more than {FILES_MAX} files", dir.display()));
            }
        }
    }
    files.sort();
    Ok((files, odd))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn outputs(output: &ModuleOutput) -> Vec<(&str, &str)> {
        output.outputs.iter().map(|o| (o.path.as_str(), o.kind.as_str())).collect()
    }

    #[test]
    fn files_are_published_by_kind_and_links_are_not() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        for name in ["adapter_model.safetensors", "sub/tokenizer.json", "sub/notes.txt", "training_log.jsonl"] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        symlink("/etc/passwd", dir.path().join("passwd")).unwrap();
        let all = [
            ("adapter_model.safetensors", "adapter_weights"),
            ("sub/notes.txt", "files"),
            ("sub/tokenizer.json", "tokenizer"),
            ("training_log.jsonl", "training_logs"),
        ];
        let (found, odd) = artifacts(dir.path(), None).unwrap();
        assert_eq!((outputs(&found), odd), (all.to_vec(), vec!["passwd".to_owned()]));

        let named = |path: &str| ModuleOutput {
            outputs: vec![Output { path: path.into(), kind: "report".into() }],
            summary: [("loss".to_owned(), 1.into())].into(),
        };
        let (found, _) = artifacts(dir.path(), Some(named("sub/notes.txt"))).unwrap();
        assert_eq!((outputs(&found), found.summary.len()), (vec![("sub/notes.txt", "report")], 1));
        for bad in ["none", "passwd", "../x", "/etc/passwd", "sub"] {
            assert!(artifacts(dir.path(), Some(named(bad))).unwrap_err().contains("no such file"), "{bad}");
        }
    }

    #[test]
    fn only_plain_folders_of_its_own_become_checkpoints() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("checkpoints");
        for folder in ["good/sub", "empty", "linked", "named"] {
            fs::create_dir_all(top.join(folder)).unwrap();
        }
        fs::create_dir(dir.path().join("beside")).unwrap();
        fs::write(dir.path().join("beside/x"), "x").unwrap();
        fs::write(top.join("good/sub/weights"), "w").unwrap();
        fs::write(top.join("file"), "w").unwrap();
        fs::write(top.join("named/manifest.json"), "{}").unwrap();
        symlink("/etc/passwd", top.join("linked/passwd")).unwrap();
        symlink(dir.path().join("beside"), top.join("out")).unwrap();
        for (bad, says) in [
            ("none", "No such file"),
            (".", "no folder below"),
            ("../beside", "no folder below"),
            ("out", "no folder below"),
            ("file", "is no folder"),
            ("empty", "is empty"),
            ("named", "manifest.json"),
            ("linked", "neither a file nor a folder, or has no UTF-8 name: passwd"),
        ] {
            let said = checkpoint(&top, Path::new(bad)).unwrap_err();
            assert!(said.contains(says), "{bad}: {said}");
        }
        let found = checkpoint(&top, &top.join("good")).unwrap();
        let into = dir.path().join("into");
        fs::create_dir(&into).unwrap();
        take(&found, &into).unwrap();
        assert_eq!(fs::read(into.join("sub/weights")).unwrap(), b"w");
        assert!(!top.join("good").exists());
    }
}
