//! Which files of a folder are data, and which of them are of a split.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::read::{self, Format};
use super::{DatasetError, Part};

/// Files that lie beside data and are none.
const BESIDE: [&str; 6] =
    ["config.json", "dataset_dict.json", "dataset_info.json", "dataset_infos.json", "mloc-manifest.json", "state.json"];
/// Names that speak of a part other than the one for training.
const PARTS: [&str; 7] = ["train", "test", "valid", "validation", "eval", "dev", "heldout"];
/// Folders in folders: a link to one above would go round for ever.
const DEPTH_MAX: usize = 16;

/// Files, and which of their rows, counted over all of them.
pub(super) type Rows = (Vec<PathBuf>, Range<usize>);

/// The files of each part of a data set that is asked for; everything where no part is named.
pub(super) fn wanted(path: &Path, split: Option<&[Part]>) -> Result<Vec<Rows>, DatasetError> {
    let Some(parts) = split else { return Ok(vec![(all(path)?, 0..usize::MAX)]) };
    let part = |part: &Part| {
        let files = of_split(path, &part.name, parts.len() == 1)?;
        let Some(slice) = &part.slice else { return Ok((files, 0..usize::MAX)) };
        let rows = files.iter().map(|file| read::count(file)).sum::<Result<usize, _>>()?;
        let wanted = slice.rows(rows);
        if wanted.is_empty() {
            return Err(DatasetError::EmptySlice { path: path.to_owned(), slice: part.to_string(), rows });
        }
        Ok((files, wanted))
    };
    parts.iter().map(part).collect()
}

/// The files of a data set: itself where it is a file; those of the folder and of its `data` folder; where there are
/// none, those of all folders below.
pub(super) fn all(path: &Path) -> Result<Vec<PathBuf>, DatasetError> {
    if !is_folder(path)? {
        return Ok(vec![path.to_owned()]);
    }
    let near = near(path)?;
    let files = if near.data.is_empty() { below(path)?.data } else { near.data };
    if files.is_empty() { Err(none(path, near.others)) } else { Ok(of_one_format(files)) }
}

/// The files of one split. A single file is whatever split is asked for, if it is `only` one.
pub(super) fn of_split(path: &Path, split: &str, only: bool) -> Result<Vec<PathBuf>, DatasetError> {
    let no_files = |problem: String| Err(DatasetError::NoFiles { path: path.to_owned(), problem });
    if !is_folder(path)? {
        if only {
            return Ok(vec![path.to_owned()]);
        }
        return no_files(format!("one file cannot be split `{split}` and another one"));
    }
    for folder in [path.join(split), path.join("data").join(split)] {
        if folder.is_dir() {
            let files = below(&folder)?;
            return if files.data.is_empty() {
                Err(none(&folder, files.others))
            } else {
                Ok(of_one_format(files.data))
            };
        }
    }
    let near = near(path)?;
    let files = near.data;
    if files.is_empty() {
        let folders = folders(path)?;
        return if folders.is_empty() {
            Err(none(path, near.others))
        } else {
            no_files(format!("no file and no folder for split `{split}`, there are {}", folders.join(", ")))
        };
    }
    let chosen: Vec<PathBuf> = files.iter().filter(|f| is_of(f, split)).cloned().collect();
    if !chosen.is_empty() {
        return Ok(of_one_format(chosen));
    }
    // Files whose names speak of no part are all for training.
    if split == "train" && !files.iter().any(|f| PARTS.iter().any(|part| is_of(f, part))) {
        return Ok(of_one_format(files));
    }
    let stem = |file: &PathBuf| file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    no_files(format!(
        "no file for split `{split}`, there are {}",
        files.iter().map(stem).collect::<Vec<_>>().join(", ")
    ))
}

/// Whether a file's name begins with that of a split.
fn is_of(file: &Path, split: &str) -> bool {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    stem.strip_prefix(split).is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '_', '.']))
}

#[derive(Default)]
struct Found {
    /// Files of formats that can be read, sorted.
    data: Vec<PathBuf>,
    /// Names of the others.
    others: BTreeSet<String>,
}

fn near(path: &Path) -> Result<Found, DatasetError> {
    let mut found = Found::default();
    for folder in [path.to_owned(), path.join("data")] {
        if folder.is_dir() {
            look(&folder, 0, 0, &mut found)?;
        }
    }
    found.data.sort();
    Ok(found)
}

fn below(path: &Path) -> Result<Found, DatasetError> {
    let mut found = Found::default();
    look(path, 0, DEPTH_MAX, &mut found)?;
    found.data.sort();
    Ok(found)
}

fn look(folder: &Path, depth: usize, deepest: usize, found: &mut Found) -> Result<(), DatasetError> {
    for path in entries(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // Ours, and what tools put aside.
        if name.starts_with('.') {
            continue;
        }
        if path.is_dir() {
            if depth < deepest {
                look(&path, depth + 1, deepest, found)?;
            }
        } else if Format::of(&name).is_some() && !BESIDE.contains(&name.as_str()) {
            found.data.push(path);
        } else {
            found.others.insert(name);
        }
    }
    Ok(())
}

fn folders(path: &Path) -> Result<Vec<String>, DatasetError> {
    let folders = entries(path)?.into_iter().filter(|path| path.is_dir());
    let names = folders.map(|path| path.file_name().unwrap_or_default().to_string_lossy().into_owned());
    let mut names: Vec<_> = names.filter(|name| !name.starts_with('.')).collect();
    names.sort();
    Ok(names)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, DatasetError> {
    let io = |source| DatasetError::Io { path: folder.to_owned(), source };
    std::fs::read_dir(folder).map_err(io)?.map(|entry| entry.map(|e| e.path()).map_err(io)).collect()
}

fn is_folder(path: &Path) -> Result<bool, DatasetError> {
    let meta = std::fs::metadata(path).map_err(|source| DatasetError::Io { path: path.to_owned(), source })?;
    Ok(meta.is_dir())
}

/// Data that lies there in two formats is the same data twice: the first format is taken.
fn of_one_format(files: Vec<PathBuf>) -> Vec<PathBuf> {
    let format = |file: &PathBuf| Format::of(&file.file_name().unwrap_or_default().to_string_lossy());
    let first = files.iter().filter_map(format).min();
    files.into_iter().filter(|file| format(file) == first).collect()
}

fn none(path: &Path, others: BTreeSet<String>) -> DatasetError {
    let there: Vec<_> = others.into_iter().take(10).collect();
    let there = if there.is_empty() { "nothing".to_owned() } else { there.join(", ") };
    let problem = format!(
        "no {} file in this folder, there is {there} (hint: convert the data to JSON lines or Parquet)",
        Format::NAMES
    );
    DatasetError::NoFiles { path: path.to_owned(), problem }
}
