//! A repository at one commit, to be pulled.

use std::{
    collections::BTreeMap,
    fmt,
    ops::Range,
    sync::{Mutex, PoisonError},
};

use async_trait::async_trait;
use futures::StreamExt;
use glob::{MatchOptions, Pattern};
use mloc_core::task::{
    spec::{HubRepo, Location, Pin},
    split,
};
use reqwest::{Method, StatusCode, Url, header::RANGE};

use crate::{
    Store,
    answer::root_cause,
    error::StoreError,
    hub::{
        api::File,
        card,
        dataset::{self, Found, Missing},
        model,
        repo::Place,
    },
    patience::Patience,
    place::Source,
    remote::{Body, Digest, Listing, Object, Remote},
};

/// The revision that the Hub keeps of every public data set, as Parquet: `CONFIG/SPLIT/0000.parquet`.
const CONVERTED: &str = "refs/convert/parquet";
/// Larger cards are none.
const CARD_MAX: u64 = 8 << 20;
/// Signed addresses that are asked for in a row, before what the store forbids is believed to be forbidden.
const FRESH_MAX: u32 = 3;

/// A source on the Hub.
pub(super) struct Hub {
    place: Place,
    /// Where the Hub has sent us on to, by the address that was asked: signed for a while, so one request serves many
    /// chunks, and counts but once against what the Hub lets a node ask.
    signed: Mutex<BTreeMap<String, Url>>,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.place.fmt(f)
    }
}

/// A `huggingface` source.
pub(crate) fn source(store: &Store, location: &Location) -> Result<Source, StoreError> {
    let place = Place::of(store, location)?;
    Ok(Source::Remote(Box::new(Hub::of(place))))
}

/// A file that is wanted, and what it is called here.
struct Wanted {
    name: String,
    file: File,
}

impl Hub {
    /// The way to a repository.
    pub fn of(place: Place) -> Self {
        Self { place, signed: Mutex::default() }
    }

    /// The commit a task began with, or the one its revision is now; and whether it is of the converted Parquet.
    async fn commit(&self, pin: Option<&Pin>) -> Result<(String, bool), StoreError> {
        match pin {
            None => Ok((self.place.api.commit(&self.place.revision).await?, false)),
            Some(pin) => {
                let converted = pin.version.strip_prefix(CONVERTED).and_then(|rest| rest.strip_prefix('@'));
                let commit = converted.unwrap_or(&pin.version);
                match self.place.api.find_commit(commit).await? {
                    Some(_) => Ok((commit.to_owned(), converted.is_some())),
                    None => Err(StoreError::NotFound {
                        place: self.place.url(""),
                        found: format!("commit {commit}, which this task began with, is not there any more"),
                        hint: "submit the task again to run on what is there now".into(),
                    }),
                }
            }
        }
    }

    /// What is wanted of a model: what `path` names, else one copy of the weights with what goes with them.
    fn of_model(&self, files: Vec<File>) -> Result<(Vec<Wanted>, bool), StoreError> {
        if let Some(path) = &self.place.path {
            return self.of_path(files, path);
        }
        let (needed, left) = model::needed(files).map_err(|several| StoreError::NotFound {
            place: self.place.url(""),
            found: format!("there are several GGUF files, and which one is meant is not said: {}", several.join(", ")),
            hint: "name one with `path`".into(),
        })?;
        if left.files > 0 {
            let (place, names) = (self.place.url(""), left.names.join(", "));
            tracing::info!(
                place,
                files = left.files,
                bytes = left.bytes,
                names,
                "left out: other copies of the weights"
            );
        }
        Ok((needed.into_iter().map(|file| Wanted { name: file.path.clone(), file }).collect(), false))
    }

    /// What `path` names: a file, what lies below a folder, or what a pattern matches; and whether it is the one file.
    fn of_path(&self, files: Vec<File>, path: &str) -> Result<(Vec<Wanted>, bool), StoreError> {
        if let Some(file) = files.iter().find(|file| file.path == path) {
            let name = path.rsplit('/').next().unwrap_or(path).to_owned();
            return Ok((vec![Wanted { name, file: file.clone() }], true));
        }
        let below = |file: &File| file.path.strip_prefix(path)?.strip_prefix('/').map(str::to_owned);
        let named = |file: &File| Some(Wanted { name: below(file)?, file: file.clone() });
        let mut wanted: Vec<Wanted> = files.iter().filter_map(named).collect();
        if wanted.is_empty() && path.contains(['*', '?', '[']) {
            let options = MatchOptions { require_literal_separator: true, ..MatchOptions::default() };
            let pattern = Pattern::new(path).map_err(|e| StoreError::NotFound {
                place: self.place.url(""),
                found: format!("its path is no pattern: {e}"),
                hint: "`*` is any part of a name, `**` any folders".into(),
            })?;
            let fits = files.iter().filter(|file| pattern.matches_with(&file.path, options));
            wanted = fits.map(|file| Wanted { name: file.path.clone(), file: file.clone() }).collect();
        }
        if wanted.is_empty() {
            let mut there: Vec<&str> = files.iter().filter_map(|file| file.path.split('/').next()).collect();
            there.dedup();
            let more = there.len().saturating_sub(12);
            there.truncate(12);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            return Err(StoreError::NotFound {
                place: self.place.url(""),
                found: "no such file or folder, and nothing that matches it as a pattern".into(),
                hint: format!("there are {}{more}", there.join(", ")),
            });
        }
        Ok((wanted, false))
    }

    /// What is wanted of a data set's repository: the files of its configuration, in a folder for each split.
    async fn of_data(&self, commit: &str, files: Vec<File>) -> Result<(Vec<Wanted>, bool), NotFound> {
        if let Some(path) = &self.place.path {
            let (wanted, one) = self.of_path(files, path)?;
            if one {
                return Ok((wanted, true));
            }
            let names: Vec<&str> = wanted.iter().map(|wanted| wanted.file.path.as_str()).collect();
            let splits = dataset::of_path(&names).map_err(NotFound::Files)?;
            let files = wanted.into_iter().map(|wanted| wanted.file).collect();
            return Ok((self.of_splits(&Found { config: "path".into(), splits }, files)?, false));
        }
        let card = match files.iter().any(|file| file.path == "README.md") {
            true => self.place.api.get(commit, "README.md", CARD_MAX).await?.unwrap_or_default(),
            false => Default::default(),
        };
        let configs = card::configs(&String::from_utf8_lossy(&card)).map_err(|problem| StoreError::Hub {
            place: self.place.url("README.md"),
            found: format!("the data set's card cannot be read: {problem}"),
            hint: "name the files with `path`".into(),
            here: false,
        })?;
        let names: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
        let found = dataset::find(&names, &configs, self.place.config.as_deref()).map_err(NotFound::Files)?;
        Ok((self.of_splits(&found, files)?, false))
    }

    /// What is wanted of the converted Parquet.
    fn of_converted(&self, files: Vec<File>) -> Result<Vec<Wanted>, StoreError> {
        let mut configs: BTreeMap<String, BTreeMap<String, Vec<String>>> = BTreeMap::new();
        for file in files.iter().filter(|file| file.path.ends_with(".parquet")) {
            if let [config, split, _] = file.path.split('/').collect::<Vec<_>>()[..] {
                let splits = configs.entry(config.to_owned()).or_default();
                splits.entry(split.to_owned()).or_default().push(file.path.clone());
            }
        }
        let names = || configs.keys().cloned().collect::<Vec<_>>();
        let config = match &self.place.config {
            Some(config) if configs.contains_key(config) => config.clone(),
            Some(_) => return Err(self.missing(Missing::Config(names()))),
            None if configs.len() == 1 || configs.contains_key("default") => {
                let default = configs.contains_key("default").then(|| "default".to_owned());
                default.or_else(|| names().pop()).unwrap_or_default()
            }
            None => return Err(self.missing(Missing::NoDefault(names()))),
        };
        let splits = configs.remove(&config).unwrap_or_default().into_iter().collect();
        self.of_splits(&Found { config, splits }, files)
    }

    /// The files of the splits that are wanted, each in the folder of its split.
    fn of_splits(&self, found: &Found, files: Vec<File>) -> Result<Vec<Wanted>, StoreError> {
        let place = self.place.url("");
        let there = || found.splits.iter().map(|(split, _)| split.as_str()).collect::<Vec<_>>().join(", ");
        let mut names: Vec<String> = match &self.place.split {
            None => found.splits.iter().map(|(split, _)| split.clone()).collect(),
            Some(text) => match split::parse(text) {
                Ok(parts) => parts.into_iter().map(|part| part.name).collect(),
                Err(found) => return Err(StoreError::NotFound { place, found, hint: "as in train[:10%]".into() }),
            },
        };
        names.sort();
        names.dedup();
        let known: BTreeMap<&str, &File> = files.iter().map(|file| (file.path.as_str(), file)).collect();
        let mut wanted = Vec::new();
        for name in names {
            let Some((_, paths)) = found.splits.iter().find(|(split, _)| *split == name) else {
                return Err(StoreError::NotFound {
                    place,
                    found: format!("its configuration `{}` has no split `{name}`", found.config),
                    hint: format!("there are {}", there()),
                });
            };
            let file = |path: &String| {
                let name = format!("{name}/{path}");
                known.get(path.as_str()).map(|file| Wanted { name, file: (*file).clone() })
            };
            wanted.extend(paths.iter().filter_map(file));
        }
        if self.place.split.is_none() && found.splits.len() > 1 {
            tracing::info!(place, splits = there(), "no split is named: all of them are taken");
        }
        Ok(wanted)
    }

    /// Why nothing was found, as an error.
    fn missing(&self, missing: Missing) -> StoreError {
        let place = self.place.url("");
        let (found, hint) = match missing {
            Missing::Config(there) => {
                let wanted = self.place.config.as_deref().unwrap_or("default");
                (format!("it has no configuration `{wanted}`"), format!("there are {}", or_none(&there)))
            }
            Missing::NoDefault(there) => (
                format!("it has {} configurations, and which one is meant is not said", there.len()),
                format!("name one with `config`: there are {}", or_none(&there)),
            ),
            Missing::Format(there) => (
                format!("its files are of no format that is read: {there}"),
                format!(
                    "JSON lines, JSON, CSV and Parquet are read; the Hub keeps no converted Parquet of revision `{}`",
                    self.place.revision
                ),
            ),
            Missing::Pattern(problem) => {
                (format!("the data set's card is wrong: {problem}"), "name the files with `path`".into())
            }
        };
        StoreError::NotFound { place, found, hint }
    }

    async fn list_data(&self, commit: String, converted: bool) -> Result<Listing, StoreError> {
        if converted {
            let files = self.place.api.tree(&commit).await?;
            return Ok(self.listing(&commit, true, self.of_converted(files)?, false));
        }
        let files = self.place.api.tree(&commit).await?;
        let missing = match self.of_data(&commit, files).await {
            Ok((wanted, one)) => return Ok(self.listing(&commit, false, wanted, one)),
            Err(NotFound::Said(error)) => return Err(error),
            Err(NotFound::Files(missing)) => missing,
        };
        // The Hub converts what lies in `main`, and knows configurations that only a script names.
        let convertible = matches!(missing, Missing::Format(_) | Missing::Config(_));
        if !convertible || self.place.path.is_some() || self.place.revision != "main" {
            return Err(self.missing(missing));
        }
        let Some(commit) = self.place.api.find_commit(CONVERTED).await? else { return Err(self.missing(missing)) };
        let files = self.place.api.tree(&commit).await?;
        let wanted = self.of_converted(files).map_err(|converted| match missing {
            // The card's own names are what a user can choose from.
            Missing::Config(ref there) if !there.is_empty() => self.missing(missing.clone()),
            _ => converted,
        })?;
        tracing::info!(place = self.place.url(""), "its files are taken as the Hub has converted them, to Parquet");
        Ok(self.listing(&commit, true, wanted, false))
    }

    fn listing(&self, commit: &str, converted: bool, wanted: Vec<Wanted>, one: bool) -> Listing {
        let object = |wanted: Wanted| Object {
            key: self.place.api.resolve(commit, &wanted.file.path).to_string(),
            name: wanted.name,
            bytes: wanted.file.bytes,
            // Large files have their SHA-256 in the listing; the name of a small one in git is a digest of its bytes.
            etag: Some(wanted.file.sha256.clone().unwrap_or_else(|| wanted.file.oid.clone())),
            digest: match wanted.file {
                File { sha256: Some(sha256), .. } => Some(Digest::Sha256(sha256)),
                File { oid, .. } => (oid.len() == 40).then_some(Digest::GitBlob(oid)),
            },
        };
        let mut objects: Vec<_> = wanted.into_iter().map(object).collect();
        objects.sort_by(|a, b| a.name.cmp(&b.name));
        let version = if converted { format!("{CONVERTED}@{commit}") } else { commit.to_owned() };
        Listing { objects, one, version: Some(version) }
    }

    /// Where a file's bytes were to be had last.
    fn known(&self, key: &str) -> Option<Url> {
        self.signed.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    fn remember(&self, key: &str, url: Option<Url>) {
        let mut signed = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        match url {
            Some(url) => drop(signed.insert(key.to_owned(), url)),
            None => drop(signed.remove(key)),
        }
    }
}

/// Why the files of a data set were not found.
enum NotFound {
    /// They are not there.
    Files(Missing),
    /// It cannot be said.
    Said(StoreError),
}

impl From<StoreError> for NotFound {
    fn from(error: StoreError) -> Self {
        NotFound::Said(error)
    }
}

fn or_none(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[async_trait]
impl Remote for Hub {
    fn url(&self, name: &str) -> String {
        self.place.url(name)
    }

    fn patience(&self) -> Patience {
        self.place.api.patience
    }

    async fn list(&self, pin: Option<&Pin>) -> Result<Listing, StoreError> {
        let (commit, converted) = self.commit(pin).await?;
        match self.place.api.repo.kind {
            HubRepo::Model => {
                let files = self.place.api.tree(&commit).await?;
                let (wanted, one) = self.of_model(files)?;
                Ok(self.listing(&commit, false, wanted, one))
            }
            HubRepo::Dataset => self.list_data(commit, converted).await,
        }
    }

    async fn read(&self, object: &Object, range: Range<u64>) -> Result<Body, StoreError> {
        let api = &self.place.api;
        let place = self.place.url(&object.name);
        let asked = Url::parse(&object.key).map_err(|e| api.broken(&place, format!("{}: {e}", object.key)))?;
        let bytes = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
        let fill = |request: reqwest::RequestBuilder| request.header(RANGE, &bytes);
        let mut fresh = 0;
        loop {
            let known = self.known(&object.key);
            let (ended, response) = api.once(&place, &Method::GET, known.as_ref().unwrap_or(&asked), &fill).await?;
            let status = response.status();
            if status == StatusCode::PARTIAL_CONTENT || (status == StatusCode::OK && range.start == 0) {
                if !api.is_own(&ended) {
                    self.remember(&object.key, Some(ended));
                }
                return Ok(body(response, range.end - range.start, api.broken(&place, String::new())));
            }
            if known.is_some() {
                // A signed address is good for a while only: ask the Hub for another one.
                self.remember(&object.key, None);
                continue;
            }
            let own = api.is_own(&ended);
            fresh += 1;
            if !own && status == StatusCode::FORBIDDEN && fresh < FRESH_MAX {
                // It may have ended between the Hub's answer and the store's.
                continue;
            }
            let answer = api.refusal(response).await;
            return Err(match (own, answer.status) {
                (_, 200) => api.broken(&place, "it does not serve parts of files".into()),
                (true, 404) if answer.no_entry() => self.no_bytes(&place, object),
                (false, 403 | 404 | 410) => self.no_bytes(&place, object),
                (false, status @ 400..) if status != 429 && status < 500 => {
                    api.broken(&place, format!("the store behind the Hub answers HTTP {status}"))
                }
                _ => api.error(&place, &answer, false),
            });
        }
    }

    /// A commit does not change.
    async fn again(&self, object: &Object) -> Result<Object, StoreError> {
        Ok(object.clone())
    }

    /// The files of a data set come in a folder for each split; a mirror has them as the repository does.
    fn at_mirror<'o>(&self, object: &'o Object) -> &'o str {
        let path = match (self.place.api.repo.kind, object.name.split_once('/')) {
            (HubRepo::Dataset, Some((_, path))) => path,
            (HubRepo::Dataset, None) | (HubRepo::Model, _) => return &object.name,
        };
        let folder = self.place.path.as_deref().unwrap_or_default();
        path.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/')).unwrap_or(path)
    }

    fn cut_short(&self, object: &Object, at: u64) -> StoreError {
        let place = self.place.url(&object.name);
        self.place.api.broken(&place, format!("the answer ended at byte {at} of {}", object.bytes))
    }
}

impl Hub {
    /// The listing names the file, and there are no bytes to it.
    fn no_bytes(&self, place: &str, object: &Object) -> StoreError {
        let what = match object.sha256() {
            Some(sha256) => {
                format!("the repository names it, but its bytes (LFS object {sha256}) are not in the Hub's store")
            }
            None => "the repository names it, but the Hub does not have its bytes".to_owned(),
        };
        StoreError::NotFound {
            place: place.to_owned(),
            found: what,
            hint: "whoever uploaded it has to upload it again; or name other files with `path`".into(),
        }
    }
}

/// The bytes of a response, as many as were asked for.
fn body(response: reqwest::Response, bytes: u64, broken: StoreError) -> Body {
    let (place, endpoint) = match broken {
        StoreError::Unreachable { place, endpoint, .. } => (place, endpoint),
        _ => Default::default(),
    };
    let stream = response.bytes_stream().scan(bytes, move |left, block| {
        let block = match block {
            Ok(mut block) => {
                // A server that knows no ranges sends all of it.
                block.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= block.len() as u64;
                (!block.is_empty()).then_some(Ok(block))
            }
            Err(e) => {
                let (place, endpoint) = (place.clone(), endpoint.clone());
                Some(Err(StoreError::Unreachable { place, endpoint, tries: 1, found: root_cause(&e) }))
            }
        };
        std::future::ready(block)
    });
    stream.boxed()
}
