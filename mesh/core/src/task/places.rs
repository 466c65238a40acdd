//! Sources and destinations: which keys each type takes, and what they may hold.

use super::{
    fields::Typed,
    names,
    problem::{Problem, Problems, nearest},
    raw::{RawLocation, Text},
    spec::{HubRepo, Location},
};

/// Whether bytes are read or written there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// The source of a model, an adapter or a program.
    Model,
    /// The source of data.
    Data,
    /// A destination.
    Destination,
}

/// A type of location.
struct Kind {
    name: &'static str,
    /// Whether a destination can have it.
    written: bool,
    read: fn(&mut Place<'_, '_>, Use) -> Option<Location>,
}

const fn kind(name: &'static str, written: bool, read: fn(&mut Place<'_, '_>, Use) -> Option<Location>) -> Kind {
    Kind { name, written, read }
}

/// All of them.
const KINDS: [Kind; 8] = [
    kind("local", true, |place, _| place.local()),
    kind("s3", true, |place, _| place.s3()),
    kind("huggingface", true, |place, used| place.hugging_face(used)),
    kind("task", false, |place, _| place.task()),
    kind("gcs", true, |place, _| place.gcs()),
    kind("azblob", true, |place, _| place.azblob()),
    kind("http", false, |place, _| place.http()),
    kind("git", false, |place, _| place.git()),
];

/// Names of those that can be used so.
fn names_for(used: Use) -> impl Iterator<Item = &'static str> {
    KINDS.iter().filter(move |kind| kind.written || used != Use::Destination).map(|kind| kind.name)
}

/// What a raw location means; `None` when that was told to `problems`.
pub fn location(raw: &RawLocation, used: Use, problems: &mut Problems) -> Option<Location> {
    let kind = raw.kind.as_ref()?;
    let Some(known) = KINDS.iter().find(|known| known.name == kind.value) else {
        let problem = kind.problem(format!("one of {}", names_for(used).collect::<Vec<_>>().join(", ")));
        problems.push(match alias(&kind.value).or_else(|| nearest(&kind.value, names_for(used))) {
            Some(name) => problem.hint(format!("did you mean `{name}`?")),
            None => problem,
        });
        return None;
    };
    if used == Use::Destination && !known.written {
        let names = names_for(used).collect::<Vec<_>>().join(", ");
        problems.push(kind.problem(format!("a place that can be written to: {names}")));
        return None;
    }
    let mut place = Place { raw, problems, failed: false };
    let location = (known.read)(&mut place, used);
    if place.failed { None } else { location }
}

/// The path of a `local` place that is written as it should be.
pub fn local(raw: &RawLocation) -> Option<&Typed<String>> {
    let others = [&raw.bucket, &raw.endpoint, &raw.region, &raw.revision, &raw.account, &raw.sha256, &raw.config];
    let plain = raw.kind.as_ref()?.value == "local" && others.iter().all(|key| key.is_none()) && raw.split.is_none();
    match (&raw.identifier, &raw.location_path) {
        (Some(text), None) | (None, Some(text)) if plain => Some(text),
        _ => None,
    }
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
        let all: [(&str, &Text); 10] = [
            ("identifier", &raw.identifier),
            ("path", &raw.location_path),
            ("bucket", &raw.bucket),
            ("endpoint", &raw.endpoint),
            ("region", &raw.region),
            ("revision", &raw.revision),
            ("account", &raw.account),
            ("sha256", &raw.sha256),
            ("config", &raw.config),
            ("split", &raw.split),
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
        let (bucket, path) = self.bucket_and_path("s3://")?;
        let bucket_name = self.kept(bucket_name(&bucket));
        let path = self.kept(names::path(&path, false));
        let endpoint = self.endpoint();
        let region = match &raw.region {
            Some(region) => self.kept(names::name(region, "", 64)),
            None => None,
        };
        Some(Location::S3 { bucket: bucket_name?, path: path?, endpoint: endpoint?, region })
    }

    fn hugging_face(&mut self, used: Use) -> Option<Location> {
        self.only(match used {
            Use::Data => &["identifier", "revision", "path", "config", "split"],
            Use::Model => &["identifier", "revision", "path"],
            Use::Destination => &["identifier", "revision", "path"],
        });
        let raw = self.raw;
        let revision = match &raw.revision {
            Some(revision) => self.kept(revision_name(revision)),
            None => Some("main".to_owned()),
        };
        let path = self.path_inside();
        let config = match &raw.config {
            Some(config) => self.kept(names::name(config, "", 128)),
            None => None,
        };
        let split = match &raw.split {
            Some(split) => self.kept(names::split(split)),
            None => None,
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
        let repo = if used == Use::Data { HubRepo::Dataset } else { HubRepo::Model };
        let identifier = identifier.value.clone();
        Some(Location::HuggingFace { identifier, revision: revision?, repo, path: path?, config, split })
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

    fn gcs(&mut self) -> Option<Location> {
        self.only(&["identifier", "path", "bucket", "endpoint"]);
        let (bucket, path) = self.bucket_and_path("gs://")?;
        let bucket = self.kept(gcs_bucket_name(&bucket));
        let path = self.kept(names::path(&path, false));
        let endpoint = self.endpoint()?;
        Some(Location::Gcs { bucket: bucket?, path: path?, endpoint })
    }

    fn azblob(&mut self) -> Option<Location> {
        self.only(&["identifier", "path", "bucket", "account", "endpoint"]);
        let (container, path) = self.bucket_and_path("az://")?;
        let container = self.kept(container_name(&container));
        let path = self.kept(names::path(&path, false));
        let account = match &self.raw.account {
            Some(account) => Some(self.kept(account_name(account))?),
            None => None,
        };
        let endpoint = self.endpoint()?;
        Some(Location::Azblob { container: container?, path: path?, account, endpoint })
    }

    fn http(&mut self) -> Option<Location> {
        self.only(&["identifier", "sha256"]);
        let raw = self.raw;
        let sha256 = match &raw.sha256 {
            Some(digest) => Some(self.kept(sha256(digest))?),
            None => None,
        };
        let Some(identifier) = &raw.identifier else {
            self.missing("identifier", "the URL of a file");
            return None;
        };
        let url = self.kept(url(identifier))?;
        Some(Location::Http { url, sha256 })
    }

    fn git(&mut self) -> Option<Location> {
        self.only(&["identifier", "revision", "path"]);
        let raw = self.raw;
        let revision = match &raw.revision {
            Some(revision) => Some(self.kept(revision_name(revision))?),
            None => None,
        };
        let path = self.path_inside()?;
        let Some(identifier) = &raw.identifier else {
            self.missing("identifier", "a repository's URL");
            return None;
        };
        let url = self.kept(git_url(identifier))?;
        Some(Location::Git { url, revision, path })
    }

    /// `path` where it is optional; `None` when it is wrong.
    fn path_inside(&mut self) -> Option<Option<String>> {
        match &self.raw.location_path {
            Some(path) => Some(Some(self.kept(names::path(path, false))?)),
            None => Some(None),
        }
    }

    /// `endpoint` where it is optional; `None` when it is wrong.
    fn endpoint(&mut self) -> Option<Option<String>> {
        match &self.raw.endpoint {
            Some(endpoint) => Some(Some(self.kept(url(endpoint))?)),
            None => Some(None),
        }
    }

    /// `identifier: bucket/path`, or `bucket` and `path`.
    fn bucket_and_path(&mut self, scheme: &str) -> Option<(Typed<String>, Typed<String>)> {
        let raw = self.raw;
        let tokens: Vec<_> = [&raw.identifier, &raw.bucket, &raw.location_path]
            .into_iter()
            .flatten()
            .filter_map(|text| credentials(&text.value).map(|found| with_credentials(text, found)))
            .collect();
        if !tokens.is_empty() {
            tokens.into_iter().for_each(|problem| self.fail(problem));
            return None;
        }
        match (&raw.identifier, &raw.bucket, &raw.location_path) {
            (Some(identifier), None, None) => {
                let whole = identifier.value.strip_prefix(scheme).unwrap_or(&identifier.value);
                let Some((bucket, path)) = whole.split_once('/') else {
                    self.fail(identifier.problem("`bucket/path`, or the keys `bucket` and `path`"));
                    return None;
                };
                Some((identifier.with(bucket.to_owned()), identifier.with(path.to_owned())))
            }
            (Some(identifier), ..) => {
                self.fail(identifier.problem("either `identifier`, or `bucket` and `path`"));
                None
            }
            (None, Some(bucket), Some(path)) => Some((bucket.clone(), path.clone())),
            (None, bucket, path) => {
                if bucket.is_none() {
                    self.missing("bucket", "a bucket's name");
                }
                if path.is_none() {
                    self.missing("path", "a key or prefix in the bucket");
                }
                None
            }
        }
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
pub fn credentials(text: &str) -> Option<&'static str> {
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
        let name = parameter.split('=').next().unwrap_or_default();
        (names_a_secret(name) && parameter.len() > name.len() + 1).then_some("a query with a signature or a token")
    })
}

/// Whether what stands under a name, of a query or of a map, most likely is a secret.
pub fn names_a_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace('-', "_");
    SECRET_NAMES.contains(&name.as_str()) || SECRET_ENDS.iter().any(|end| name.ends_with(end))
}

/// How names end that sign or let in: `X-Amz-Signature`, `access_token`, `OPENAI_API_KEY`.
const SECRET_ENDS: [&str; 10] = [
    "signature",
    "token",
    "credential",
    "secret",
    "password",
    "passwd",
    "api_key",
    "access_key",
    "secret_key",
    "private_key",
];
/// Names that do so whole. `sig` is Azure's, the ids are of signed URLs of older kinds.
const SECRET_NAMES: [&str; 9] =
    ["sig", "key", "apikey", "accesskey", "awsaccesskeyid", "googleaccessid", "auth", "authorization", "jwt"];

/// Google's rules: 3 to 222 lower-case letters, digits, `.`, `_` and `-`.
fn gcs_bucket_name(typed: &Typed<String>) -> Result<String, Problem> {
    let text = typed.value.as_str();
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let good = (3..=222).contains(&text.len())
        && text.chars().all(|c| edge(c) || "._-".contains(c))
        && text.starts_with(edge)
        && text.ends_with(edge)
        && !text.contains("..");
    if good {
        return Ok(text.to_owned());
    }
    Err(typed.problem("a bucket's name: 3 to 222 lower-case letters, digits, `.`, `_` and `-`"))
}

/// Azure's rules: 3 to 63 lower-case letters, digits and single `-`.
fn container_name(typed: &Typed<String>) -> Result<String, Problem> {
    let text = typed.value.as_str();
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let good = (3..=63).contains(&text.len())
        && text.chars().all(|c| edge(c) || c == '-')
        && text.starts_with(edge)
        && text.ends_with(edge)
        && !text.contains("--");
    if good {
        return Ok(text.to_owned());
    }
    Err(typed.problem("a container's name: 3 to 63 lower-case letters, digits and single `-`"))
}

/// Azure's rules: 3 to 24 lower-case letters and digits.
fn account_name(typed: &Typed<String>) -> Result<String, Problem> {
    let text = typed.value.as_str();
    let good = (3..=24).contains(&text.len()) && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    if good {
        Ok(text.to_owned())
    } else {
        Err(typed.problem("a storage account: 3 to 24 lower-case letters and digits"))
    }
}

/// A digest, 64 hex digits; `sha256:` before them is fine.
fn sha256(typed: &Typed<String>) -> Result<String, Problem> {
    let text = typed.value.strip_prefix("sha256:").unwrap_or(&typed.value).to_ascii_lowercase();
    let good = text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    if good { Ok(text) } else { Err(typed.problem("a SHA-256: 64 hex digits")) }
}

/// A URL that git takes: `https://…`, `ssh://…`, `git://…`, or `user@host:path`.
fn git_url(typed: &Typed<String>) -> Result<String, Problem> {
    let text = typed.value.as_str();
    if let Some(found) = credentials(text) {
        return Err(with_credentials(typed, found));
    }
    let schemes = ["https://", "http://", "ssh://", "git://"];
    let by_scheme = schemes.iter().find_map(|scheme| text.strip_prefix(scheme));
    let by_host = || text.split_once(':').is_some_and(|(host, path)| host.contains('@') && !path.is_empty());
    let good = by_scheme.map_or_else(by_host, |rest| rest.split_once('/').is_some_and(|(host, _)| !host.is_empty()))
        // A program's option, where ssh or git would read one.
        && !text.starts_with('-')
        && !text.contains("://-")
        && !text.contains(|c: char| c.is_whitespace() || c.is_control());
    if good {
        return Ok(text.to_owned());
    }
    let problem = typed.problem("a repository's URL: https://…, ssh://… or git@host:path");
    let bare = text.split('/').count() == 2 && !text.contains([':', ' ']);
    Err(if bare { problem.hint(format!("write https://github.com/{text}")) } else { problem })
}

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
    if text.split('/').any(|part| part == "..") {
        return Err(typed.problem("a URL without `..`"));
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
