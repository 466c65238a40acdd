//! Which files of a data set's repository are those of a configuration and a split: as its card declares, else by the
//! layout of its files, with the rules of the `datasets` library. Pure: file names in, file names out.

use std::collections::BTreeMap;

use glob::{MatchOptions, Pattern};

use crate::hub::card::Config;

/// What the files of one configuration are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The configuration.
    pub config: String,
    /// Splits and their files, sorted. The order of the splits is the card's, or train, validation, test.
    pub splits: Vec<(String, Vec<String>)>,
}

/// Why no files were found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// No configuration of that name; these are there.
    Config(Vec<String>),
    /// Nobody named one, and none is the default one.
    NoDefault(Vec<String>),
    /// Its files have no format that is read; what they are.
    Format(String),
    /// A pattern of the card that is none, or matches nothing.
    Pattern(String),
}

/// Endings of files that are read, and after `.gz` and `.zst` too but for Parquet.
const READ: [&str; 6] = ["jsonl", "ndjson", "parquet", "json", "csv", "tsv"];
/// Endings of files that go with data and are none.
const BESIDE: [&str; 9] = ["md", "py", "ipynb", "yaml", "yml", "toml", "pdf", "sh", "gitattributes"];
/// Files that the `datasets` library writes beside data.
const IGNORED: [&str; 6] =
    ["README.md", "config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "mloc-manifest.json"];
/// Words in names of files and folders that speak of a split.
const WORDS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// The files of a configuration.
pub(super) fn find(files: &[&str], configs: &[Config], wanted: Option<&str>) -> Result<Found, Missing> {
    let names = || configs.iter().map(|config| config.name.clone()).collect::<Vec<_>>();
    let config = match wanted {
        Some(wanted) if configs.is_empty() && wanted == "default" => None,
        Some(wanted) => match configs.iter().find(|config| config.name == wanted) {
            Some(config) => Some(config),
            None => return Err(Missing::Config(names())),
        },
        None if configs.len() > 1 => {
            let default = configs.iter().find(|c| c.default).or_else(|| configs.iter().find(|c| c.name == "default"));
            Some(default.ok_or_else(|| Missing::NoDefault(names()))?)
        }
        None => configs.first(),
    };
    let folder = config.and_then(|config| config.folder.as_deref());
    let data: Vec<&str> = files.iter().copied().filter(|file| is_data(file) && below(file, folder).is_some()).collect();
    let splits = match config {
        Some(config) if !config.splits.is_empty() => {
            let of = |patterns: &[String]| matching(files, folder, patterns);
            config
                .splits
                .iter()
                .map(|(split, patterns)| Ok((split.clone(), of(patterns)?)))
                .collect::<Result<_, _>>()?
        }
        _ => layout(&data, folder),
    };
    let config = config.map_or("default", |config| config.name.as_str()).to_owned();
    Ok(Found { config, splits: of_one_format(splits)? })
}

/// Files by where they lie and what they are called; `path` is what a user has named of them.
pub(super) fn of_path(files: &[&str]) -> Result<Vec<(String, Vec<String>)>, Missing> {
    let data: Vec<&str> = files.iter().copied().filter(|file| is_data(file)).collect();
    of_one_format(layout(&data, None))
}

/// The name below a folder.
fn below<'f>(file: &'f str, folder: Option<&str>) -> Option<&'f str> {
    match folder {
        None => Some(file),
        Some(folder) => file.strip_prefix(folder)?.strip_prefix('/'),
    }
}

/// Whether a file may be data: not hidden, not of a folder such as `__pycache__`, not known to be something else.
fn is_data(file: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or(file);
    let hidden = file.split('/').any(|part| part.starts_with('.') || part.starts_with("__"));
    !hidden && !IGNORED.contains(&name) && ending(file).is_some_and(|ending| !BESIDE.contains(&ending.as_str()))
}

/// How a file's name ends, what packs it left out.
fn ending(file: &str) -> Option<String> {
    let name = file.rsplit('/').next()?.to_ascii_lowercase();
    let bare = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst"));
    let ending = bare.unwrap_or(&name).rsplit_once('.')?.1;
    // Parquet packs itself; packed once more it is not read.
    Some(if bare.is_some() && ending == "parquet" { "parquet.gz".into() } else { ending.to_owned() })
}

/// The files of some patterns of a card.
fn matching(files: &[&str], folder: Option<&str>, patterns: &[String]) -> Result<Vec<String>, Missing> {
    let options = MatchOptions { require_literal_separator: true, ..MatchOptions::default() };
    let mut all = Vec::new();
    for pattern in patterns {
        let glob = Pattern::new(pattern).map_err(|e| Missing::Pattern(format!("`{pattern}`: {e}")))?;
        // As in a shell: what is hidden must be named.
        let hidden = |path: &str| path.split('/').filter(|part| part.starts_with('.')).count();
        let fits = |file: &&str| {
            below(file, folder).is_some_and(|name| {
                (name == pattern || glob.matches_with(name, options)) && hidden(name) == hidden(pattern)
            })
        };
        let found: Vec<_> = files.iter().filter(|file| fits(file)).map(|file| (*file).to_owned()).collect();
        if found.is_empty() {
            return Err(Missing::Pattern(format!("`{pattern}` matches no file")));
        }
        all.extend(found);
    }
    all.sort();
    all.dedup();
    Ok(all)
}

/// Splits by layout: `data/SPLIT-00000-of-00001.*`, else folders and then files whose names speak of one, else all of it
/// is for training.
fn layout(files: &[&str], folder: Option<&str>) -> Vec<(String, Vec<String>)> {
    let mut shards: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for file in files {
        if let Some(split) = below(file, folder).and_then(shard_of) {
            shards.entry(split).or_default().push((*file).to_owned());
        }
    }
    if !shards.is_empty() {
        let known = |split: &str| WORDS.iter().position(|(name, _)| *name == split).unwrap_or(WORDS.len());
        let mut splits: Vec<_> = shards.into_iter().map(|(split, files)| (split.to_owned(), files)).collect();
        splits.sort_by_key(|(split, _)| known(split));
        return splits;
    }
    for in_folders in [true, false] {
        let speaks = |file: &str, words: &[&str]| {
            let Some(name) = below(file, folder) else { return false };
            let (folders, name) = name.rsplit_once('/').unwrap_or(("", name));
            words.iter().any(|word| match in_folders {
                true => folders.split('/').any(|part| has_word(part, word, true)),
                false => has_word(name, word, false),
            })
        };
        let of =
            |words: &[&str]| files.iter().filter(|f| speaks(f, words)).map(|f| (*f).to_owned()).collect::<Vec<_>>();
        let splits: Vec<_> = WORDS.iter().map(|(split, words)| ((*split).to_owned(), of(words))).collect();
        if splits.iter().any(|(_, files)| !files.is_empty()) {
            return splits.into_iter().filter(|(_, files)| !files.is_empty()).collect();
        }
    }
    vec![("train".to_owned(), files.iter().map(|f| (*f).to_owned()).collect())]
}

/// The split of `data/SPLIT-00000-of-00001….ext`.
fn shard_of(file: &str) -> Option<&str> {
    let name = file.strip_prefix("data/").filter(|name| !name.contains('/'))?;
    let five = |text: &str| text.len() >= 5 && text.bytes().take(5).all(|b| b.is_ascii_digit());
    let (at, _) = name.match_indices("-of-").find(|(at, _)| {
        let (before, after) = (&name[..*at], &name[*at + 4..]);
        let number = before.rsplit_once('-').map(|(_, number)| number);
        number.is_some_and(|n| n.len() == 5 && five(n))
            && five(after)
            && after.get(5..).is_some_and(|rest| rest.contains('.'))
    })?;
    let split = name[..at].rsplit_once('-')?.0;
    (!split.is_empty()).then_some(split)
}

/// Whether a name has a word in it, between its edges, separators and digits. A file's name goes on after it.
fn has_word(name: &str, word: &str, may_end: bool) -> bool {
    let edge = |c: char| "-._ ".contains(c) || c.is_ascii_digit();
    name.match_indices(word).any(|(at, _)| {
        let (before, after) = (&name[..at], &name[at + word.len()..]);
        let ends = if after.is_empty() { may_end } else { after.starts_with(edge) };
        ends && (before.is_empty() || before.ends_with(edge))
    })
}

/// The files of the format that most of them have, when it is one that is read.
fn of_one_format(splits: Vec<(String, Vec<String>)>) -> Result<Vec<(String, Vec<String>)>, Missing> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for ending in splits.iter().flat_map(|(_, files)| files).filter_map(|file| ending(file)) {
        *counts.entry(ending).or_default() += 1;
    }
    let is_read = |ending: &str| READ.iter().position(|read| *read == ending);
    let rank = |ending: &str| READ.len() - is_read(ending).unwrap_or(READ.len());
    let most = counts.iter().max_by_key(|(ending, count)| (**count, rank(ending)));
    let Some((most, _)) = most.filter(|(most, _)| is_read(most).is_some()) else {
        let there: Vec<_> = counts.iter().map(|(ending, count)| format!("{count} .{ending}")).collect();
        let there = if there.is_empty() { "no files of data".to_owned() } else { there.join(", ") };
        return Err(Missing::Format(there));
    };
    let keep = |files: Vec<String>| files.into_iter().filter(|file| ending(file).as_ref() == Some(most)).collect();
    let splits = splits.into_iter().map(|(split, files)| (split, keep(files)));
    Ok(splits.filter(|(_, files): &(String, Vec<String>)| !files.is_empty()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::card;

    fn shown(splits: &[(String, Vec<String>)]) -> String {
        splits.iter().map(|(split, files)| format!("{split}: {}", files.join(" "))).collect::<Vec<_>>().join("; ")
    }

    /// The splits of a repository without a card.
    fn by_layout(files: &[&str]) -> String {
        find(files, &[], None).map_or_else(|missing| format!("{missing:?}"), |found| shown(&found.splits))
    }

    /// What these come to is what the `datasets` library (5.2.0, `get_data_patterns`) made of the same files; then the ones
    /// of one format.
    #[test]
    fn splits_are_found_by_the_layout_of_the_files() {
        for (files, want) in [
            (&["README.md", "data.csv"][..], "train: data.csv"),
            (&["train.jsonl", "test.jsonl", ".gitattributes"], "train: train.jsonl; test: test.jsonl"),
            (
                &[
                    "data/train-00000-of-00002.parquet",
                    "data/train-00001-of-00002.parquet",
                    "data/test_sft-00000-of-00001.parquet",
                ],
                "train: data/train-00000-of-00002.parquet data/train-00001-of-00002.parquet; test_sft: \
                 data/test_sft-00000-of-00001.parquet",
            ),
            (
                &["data/train-00000-of-00001-0123abcd.parquet", "data/validation-00000-of-00001-0123abcd.parquet"],
                "train: data/train-00000-of-00001-0123abcd.parquet; validation: data/validation-00000-of-00001-0123abcd.parquet",
            ),
            (&["a/train/1.json", "a/dev/2.json", "a/other/3.json"], "train: a/train/1.json; validation: a/dev/2.json"),
            (&["my-train-1.csv", "my.eval.csv", "constrain.csv"], "train: my-train-1.csv; test: my.eval.csv"),
            (
                &["harmless/train.jsonl.gz", "helpful/test.jsonl.gz"],
                "train: harmless/train.jsonl.gz; test: helpful/test.jsonl.gz",
            ),
            (&["training_part2.jsonl"], "train: training_part2.jsonl"),
            (&["test2/y.csv", "train_data/x.csv"], "train: train_data/x.csv; test: test2/y.csv"),
            (&["data/dev/a.csv", "data/x.csv"], "validation: data/dev/a.csv"),
            (&["latest.csv", "pretrain.csv"], "train: latest.csv pretrain.csv"),
            (&["val.csv", "validate.csv"], "validation: val.csv"),
            (&["a.jsonl", "b.jsonl", "b.csv"], "train: a.jsonl b.jsonl"),
            (&["a.parquet", "a.json", "dataset_infos.json"], "train: a.parquet"),
            (&["data.arrow", "state.json", "data-2.arrow"], "Format(\"2 .arrow, 1 .json\")"),
            (&["README.md", "load.py"], "Format(\"no files of data\")"),
            (&["__cache__/a.json", ".hidden/a.json", "c.json"], "train: c.json"),
        ] {
            assert_eq!(by_layout(files), want, "{files:?}");
        }
    }

    #[test]
    fn a_card_goes_before_the_layout() {
        let configs = card::configs(
            "---\nconfigs:\n- config_name: en\n  data_files:\n  - {split: train, path: 'en/*.jsonl'}\n  - {split: hard, path: \
             'en/**/deep-*.jsonl'}\n- config_name: de\n  default: true\n  data_dir: de\n- config_name: none\n  data_files: \
             'x/*.csv'\n---\n",
        )
        .unwrap();
        let files =
            ["en/a.jsonl", "en/b.jsonl", "en/x/y/deep-1.jsonl", "de/train/1.csv", "de/test/2.csv", "train/not.csv"];
        let of = |config| find(&files, &configs, config).map(|found| (found.config.clone(), shown(&found.splits)));
        let en = ("en".to_owned(), "train: en/a.jsonl en/b.jsonl; hard: en/x/y/deep-1.jsonl".to_owned());
        assert_eq!(of(Some("en")), Ok(en));
        assert_eq!(of(None), Ok(("de".to_owned(), "train: de/train/1.csv; test: de/test/2.csv".to_owned())));
        let all = ["en", "de", "none"].map(str::to_owned).to_vec();
        assert_eq!(of(Some("fr")), Err(Missing::Config(all)));
        assert_eq!(of(Some("none")), Err(Missing::Pattern("`x/*.csv` matches no file".into())));
        let two = [configs[0].clone(), configs[2].clone()];
        let unsure = find(&files, &two, None).unwrap_err();
        assert_eq!(unsure, Missing::NoDefault(["en", "none"].map(str::to_owned).to_vec()));
        // A lone one needs no name.
        assert_eq!(find(&files, &configs[..1], None).unwrap().config, "en");
    }
}
