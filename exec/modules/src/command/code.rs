//! The code of a program: a copy of it in the attempt's own folder, which the program may change as it likes.

use std::{fs, path::Path};

use super::unpack::{self, Bounds, Format, Tree};

/// What a pull keeps beside a source's files.
const PULLS_OWN: &str = ".mloc-pull";

/// Brings what was pulled (a folder, a file or an archive) into an empty folder.
///
/// # Errors
/// What is wrong with it, or with the disk.
pub fn bring(code: &Path, into: &Path) -> Result<(), String> {
    let meta = fs::metadata(code).map_err(|e| e.to_string())?;
    if let Some(format) = Format::of(code).filter(|_| meta.is_file()) {
        return unpack::unpack(code, format, into, Bounds::CODE);
    }
    let mut tree = Tree::new(into, Bounds::CODE);
    if meta.is_dir() {
        copy(code, Path::new(""), &mut tree)?;
    } else {
        let name = code.file_name().ok_or("it has no name")?;
        copy_file(code, Path::new(name), &mut tree)?;
    }
    tree.finish()
}

fn copy(from: &Path, name: &Path, tree: &mut Tree<'_>) -> Result<(), String> {
    let said = |e: std::io::Error| format!("{}: {e}", from.display());
    for entry in fs::read_dir(from).map_err(said)? {
        let entry = entry.map_err(said)?;
        let (path, name) = (entry.path(), name.join(entry.file_name()));
        let kind = entry.file_type().map_err(said)?;
        if kind.is_symlink() {
            tree.link(&name, fs::read_link(&path).map_err(said)?)?;
        } else if kind.is_dir() {
            if entry.file_name() != PULLS_OWN {
                tree.folder(&name)?;
                copy(&path, &name, tree)?;
            }
        } else if kind.is_file() {
            copy_file(&path, &name, tree)?;
        } else {
            return Err(format!("`{}` is neither a file nor a folder nor a link", name.display()));
        }
    }
    Ok(())
}

fn copy_file(from: &Path, name: &Path, tree: &mut Tree<'_>) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    let said = |e: std::io::Error| format!("{}: {e}", from.display());
    let mut file = fs::File::open(from).map_err(said)?;
    let runs = file.metadata().map_err(said)?.permissions().mode() & 0o111 != 0;
    tree.file(name, runs, &mut file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_folder_and_a_file_are_copied_and_what_leads_out_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (code, one, two) = (dir.path().join("code"), dir.path().join("one"), dir.path().join("two"));
        fs::create_dir_all(code.join("sub")).unwrap();
        fs::create_dir_all(code.join(PULLS_OWN)).unwrap();
        fs::create_dir(&one).unwrap();
        fs::create_dir(&two).unwrap();
        fs::write(code.join("sub/train.py"), "print(1)").unwrap();
        symlink("sub/train.py", code.join("main.py")).unwrap();
        bring(&code, &one).unwrap();
        assert_eq!(fs::read_to_string(one.join("main.py")).unwrap(), "print(1)");
        assert!(!one.join(PULLS_OWN).exists());
        bring(&code.join("sub/train.py"), &two).unwrap();
        assert_eq!(fs::read_to_string(two.join("train.py")).unwrap(), "print(1)");
        symlink("/etc/passwd", code.join("out")).unwrap();
        let three = dir.path().join("three");
        fs::create_dir(&three).unwrap();
        assert!(bring(&code, &three).unwrap_err().contains("leads out of it"));
    }
}
