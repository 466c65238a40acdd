//! Sources and destinations: which keys each type takes, and what they may hold.

use super::{
    fields::Typed,
    names,
    problem::{Problem, Problems, nearest},
    raw::{RawLocation, Text},
    spec::Location,
};

/// Whether bytes are read or written there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// A source.
    Source,
    /// A destination.
    Destination,
}

/// The types of location, and whether a destination can have them.
const TYPES: [(&str, bool); 8] = [
    ("local", true),
    ("s3", true),
    ("huggingface", true),
    ("task", false),
    ("gcs", true),
    ("azblob", true),
    ("http", false),
    ("git", false),
];

/// What a raw location means; `None` when that was told to `problems`.
pub fn location(raw: &RawLocation, used: Use, problems: &mut Problems) -> Option<Location> {
    let kind = raw.kind.as_ref()?;
    let known = TYPES.iter().find(|(name, _)| *name == kind.value);
    let Some((name, as_destination)) = known else {
        let names = TYPES.iter().filter(|(_, d)| *d || used == Use::Source).map(|(name, _)| *name);
        let list = names.clone().collect::<Vec<_>>().join(", ");
        let problem = kind.problem(format!("one of {list}"));
        problems.push(match alias(&kind.value).or_else(|| nearest(&kind.value, names)) {
            Some(name) => problem.hint(format!("did you mean `{name}`?")),
            None => problem,
        });
        return None;
    };
    if used == Use::Destination && !as_destination {
        problems.push(kind.problem("a place that can be written to: local, s3 or huggingface"));
        return None;
    }
    let mut place = Place { raw, problems, failed: false };
    let location = match *name {
        "local" => place.local(),
        "s3" => place.s3(),
        "huggingface" => place.hugging_face(),
        "task" => place.task(),
        scheme => place.other(scheme),
    };
    if place.failed { None } else { location }
}

/// Other names people give these types.
fn alias(typed: &str) -> Option<&'static str> {
    match typed.to_ascii_lowercase().as_str() {
        "hf" | "hub" | "huggingface_hub" | "hugging_face" => Some("huggingface"),
        "file" | "filesystem" | "fs" | "volume" | "path" => Some("local"),
        "minio" | "aws" => Some("s3"),
        "gs" | "google" => Some("gcs"),
        "azure" | "az" => Some("azblob"),
        "https" | "url" => Some("http"),
        _ => None,
    }
}

struct Place<'a, 'p> {
    raw: &'a RawLocation,
    problems: &'p mut Problems,
    failed: bool,
}

impl Place<'_, '_> {
    fn fail(&mut self, problem: Problem) {
        self.problems.push(problem);
        self.failed = true;
    }

    fn kept<T>(&mut self, result: Result<T, Problem>) -> Option<T> {
        result.map_err(|problem| self.fail(problem)).ok()
    }

    fn missing(&mut self, key: &str, expected: &str) {
        self.fail(Problem::new(format!("{}.{key}", self.raw.path), self.raw.at, "nothing", expected));
    }

    /// Refuses keys that other types have and this one has not.
    fn only(&mut self, keys: &[&str]) {
        let raw = self.raw;
        let all: [(&str, &Text); 6] = [
            ("identifier", &raw.identifier),
            ("path", &raw.location_path),
            ("bucket", &raw.bucket),
            ("endpoint", &raw.endpoint),
            ("region", &raw.region),
            ("revision", &raw.revision),
        ];
        for (name, text) in all {
            if let Some(text) = text
                && !keys.contains(&name)
            {
                let kind = raw.kind.as_ref().map_or("", |k| k.value.as_str());
                self.fail(text.problem(format!("no `{name}` with type {kind}, which takes {}", keys.join(", "))));
            }
        }
    }

    /// `identifier` or `path`, whichever was written.
    fn either(&mut self, expected: &str) -> Option<Typed<String>> {
        let raw = self.raw;
        match (&raw.identifier, &raw.location_path) {
            (Some(identifier), Some(_)) => {
                self.fail(identifier.problem("either `identifier` or `path`, for both name the same"));
                None
            }
            (Some(text), None) | (None, Some(text)) => Some(text.clone()),
            (None, None) => {
                self.missing("path", expected);
                None
            }
        }
    }

    fn local(&mut self) -> Option<Location> {
        self.only(&["identifier", "path"]);
        let text = self.either("a path under a volume that a node declares, such as `datasets/train.jsonl`")?;
        let path = self.kept(names::path(&text, true))?;
        Some(Location::Local { path })
    }

    fn s3(&mut self) -> Option<Location> {
        self.only(&["identifier", "path", "bucket", "endpoint", "region"]);
        let raw = self.raw;
        let (bucket, path) = match (&raw.identifier, &raw.bucket, &raw.location_path) {
            (Some(identifier), None, None) => {
                let whole = identifier.value.strip_prefix("s3://").unwrap_or(&identifier.value);
                let Some((bucket, path)) = whole.split_once('/') else {
                    self.fail(identifier.problem("`bucket/path`, or the keys `bucket` and `path`"));
                    return None;
                };
                (identifier.with(bucket.to_owned()), identifier.with(path.to_owned()))
            }
            (Some(identifier), ..) => {
                self.fail(identifier.problem("either `identifier`, or `bucket` and `path`"));
                return None;
            }
            (None, Some(bucket), Some(path)) => (bucket.clone(), path.clone()),
            (None, bucket, path) => {
                if bucket.is_none() {
                    self.missing("bucket", "a bucket's name");
                }
                if path.is_none() {
                    self.missing("path", "a key or prefix in the bucket");
                }
                return None;
            }
        };
        let bucket_name = self.kept(bucket_name(&bucket));
        let path = self.kept(names::path(&path, false));
        let endpoint = match &raw.endpoint {
            Some(endpoint) => self.kept(url(endpoint)),
            None => None,
        };
        let region = match &raw.region {
            Some(region) => self.kept(names::name(region, "", 64)),
            None => None,
        };
        Some(Location::S3 { bucket: bucket_name?, path: path?, endpoint, region })
    }

    fn hugging_face(&mut self) -> Option<Location> {
        self.only(&["identifier", "revision"]);
        let raw = self.raw;
        let revision = match &raw.revision {
            Some(revision) => self.kept(revision_name(revision)),
            None => Some("main".to_owned()),
        };
        let Some(identifier) = &raw.identifier else {
            self.missing("identifier", "a repository, `owner/name`");
            return None;
        };
        let parts: Vec<&str> = identifier.value.split('/').collect();
        let named = |part: &&str| names::name(&identifier.with((*part).to_owned()), "", 96).is_ok();
        if parts.len() > 2 || !parts.iter().all(named) {
            let problem = identifier.problem("a repository of the hub, `owner/name`");
            let bare = identifier.value.strip_prefix("https://huggingface.co/").map(|s| s.replace("datasets/", ""));
            self.fail(match bare {
                Some(bare) => problem.hint(format!("write {bare}")),
                None => problem,
            });
        }
        Some(Location::HuggingFace { identifier: identifier.value.clone(), revision: revision? })
    }

    fn task(&mut self) -> Option<Location> {
        self.only(&["identifier", "path"]);
        let raw = self.raw;
        let path = match &raw.location_path {
            Some(path) => Some(self.kept(names::path(path, false))?),
            None => None,
        };
        let Some(identifier) = &raw.identifier else {
            self.missing("identifier", "a task's id or name");
            return None;
        };
        let identifier = self.kept(names::name(identifier, "", 63))?;
        Some(Location::Task { identifier, path })
    }

    fn other(&mut self, scheme: &str) -> Option<Location> {
        self.only(&["identifier", "path", "bucket", "endpoint", "region", "revision"]);
        let raw = self.raw;
        let given: Vec<&Typed<String>> = match scheme {
            "gcs" | "azblob" => [&raw.bucket, &raw.identifier, &raw.location_path].into_iter().flatten().collect(),
            _ => [&raw.identifier, &raw.location_path].into_iter().flatten().collect(),
        };
        if given.is_empty() {
            self.missing("identifier", "what to get: a URL, a repository, or `bucket/path`");
            return None;
        }
        for text in &given {
            if let Some(found) = credentials(&text.value) {
                self.fail(with_credentials(text, found));
                continue;
            }
            if text.value.contains(|c: char| c.is_control()) || text.value.split('/').any(|part| part == "..") {
                self.fail(text.problem("a place without `..` and control characters"));
            }
        }
        let identifier = given.iter().map(|t| t.value.as_str()).collect::<Vec<_>>().join("/");
        Some(Location::Other { scheme: scheme.to_owned(), identifier })
    }
}

/// S3's rules: 3 to 63 lower-case letters, digits, `.` and `-`, and no IP address.
fn bucket_name(typed: &Typed<String>) -> Result<String, Problem> {
    let text = typed.value.as_str();
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let good = (3..=63).contains(&text.len())
        && text.chars().all(|c| edge(c) || c == '.' || c == '-')
        && text.starts_with(edge)
        && text.ends_with(edge)
        && !text.contains("..")
        && text.parse::<std::net::Ipv4Addr>().is_err();
    if good {
        return Ok(text.to_owned());
    }
    let problem = typed.problem("a bucket's name: 3 to 63 lower-case letters, digits, `.` and `-`");
    Err(match text.strip_prefix("s3://") {
        Some(bare) => problem.hint(format!("write {}", bare.split('/').next().unwrap_or_default())),
        None => problem,
    })
}

/// What of a place would end up as a secret in the ledger and in listings: a user that may be a token, a signed query.
fn credentials(text: &str) -> Option<&'static str> {
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if let Some((user, _)) = authority.rsplit_once('@') {
        // A name that keys go with, as in `git@host:path`. Of any other nobody can tell a name from a token.
        let is_name = user == "git" || scheme.is_empty() || scheme.eq_ignore_ascii_case("ssh") || scheme == "git+ssh";
        if user.contains(':') {
            return Some("a password");
        } else if !is_name {
            return Some("a user, which may be a token");
        }
    }
    let (_, parameters) = rest.split_once(['?', '#'])?;
    parameters.split(['&', ';', '?', '#']).find_map(|parameter| {
        let name = parameter.split('=').next().unwrap_or_default().to_ascii_lowercase().replace('-', "_");
        let secret = SECRET_NAMES.contains(&name.as_str()) || SECRET_ENDS.iter().any(|end| name.ends_with(end));
        (secret && parameter.len() > name.len() + 1).then_some("a query with a signature or a token")
    })
}

/// How names of query parameters end that sign or let in: `X-Amz-Signature`, `access_token`.
const SECRET_ENDS: [&str; 6] = ["signature", "token", "credential", "secret", "password", "passwd"];
/// Names that do so whole. `sig` is Azure's, the ids are of signed URLs of older kinds.
const SECRET_NAMES: [&str; 11] = [
    "sig",
    "key",
    "apikey",
    "api_key",
    "accesskey",
    "access_key",
    "awsaccesskeyid",
    "googleaccessid",
    "auth",
    "authorization",
    "jwt",
];

fn with_credentials(typed: &Typed<String>, found: &str) -> Problem {
    Problem::new(&typed.path, typed.at, format!("a URL with credentials ({found})"), "a URL without credentials")
        .hint("credentials come from the worker's environment or node.yaml, never from a task")
}

/// An endpoint without credentials in it.
fn url(typed: &Typed<String>) -> Result<String, Problem> {
    let text = typed.value.as_str();
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let Some(host) = rest.map(|rest| rest.split('/').next().unwrap_or_default()) else {
        return Err(typed.problem("a URL that starts with https:// or http://"));
    };
    if let Some(found) = credentials(text).or_else(|| host.contains('@').then_some("a user")) {
        return Err(with_credentials(typed, found));
    }
    if host.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(typed.problem("a URL with a host"));
    }
    Ok(text.to_owned())
}

/// A branch, tag or commit; `refs/pr/3` too.
fn revision_name(typed: &Typed<String>) -> Result<String, Problem> {
    let text = typed.value.as_str();
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    let good = !text.is_empty()
        && text.len() <= 255
        && text.chars().all(allowed)
        && !text.contains("..")
        && !text.contains("//")
        && !text.starts_with(['/', '-'])
        && !text.ends_with('/');
    if good { Ok(text.to_owned()) } else { Err(typed.problem("a branch, tag or commit")) }
}
