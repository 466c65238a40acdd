//! Mirrors: where else a node gets some sources from.
//!
//! The origin says what a source is (names, sizes, version, digests), a mirror only gives bytes, and only of files whose
//! digest the origin says: those of the Hugging Face Hub, files by URL with `sha256`, results that MLOC published. Of a
//! git repository another repository is the mirror: the origin says which commit a revision is, and that commit, whose
//! name is a digest, comes from there with its large files.
//! So the pin is the origin's whoever gave the bytes, a later attempt on a node without the mirror finds the same, and a
//! mirror that holds something else is found out. Files without a digest, and all of them where the mirror lacks
//! them or is down, come from the origin.
//!
//! With `only: true` the origin is never asked, and the mirror's own versions count. A pin of such a pull names the
//! mirror: a node that has it from elsewhere cannot compare, says so, and leaves it to the nodes that can.

mod beside;

use mloc_core::task::spec::{HubRepo, Location, Pin};

pub(crate) use self::beside::Beside;
use crate::{Store, error::StoreError, git::Git, kinds, place::Source, remote::Remote};

/// Signs of a pattern in a path.
const PATTERN: [char; 3] = ['*', '?', '['];

/// Where else some sources can be had.
#[derive(Clone, Debug)]
pub struct Mirror {
    /// Which: a type (`huggingface`), or a URL with all below it (`hf://owner/name`, `s3://bucket/models`,
    /// `https://host/data`).
    pub from: String,
    /// Where: what follows `from` in a source's URL is looked for below it.
    pub to: Location,
    /// Whether the origin is never asked.
    pub only: bool,
}

impl Mirror {
    /// Where it has a source, when it is for it.
    fn of(&self, source: &Location) -> Option<Location> {
        let address = address(source)?;
        let rest = if self.from.contains("://") {
            let rest = address.strip_prefix(self.from.trim_end_matches('/'))?;
            rest.is_empty().then_some("").or_else(|| rest.strip_prefix('/'))?
        } else {
            if self.from != source.scheme() {
                return None;
            }
            address.split_once("://")?.1
        };
        match (&self.to, source) {
            (Location::Http { url, .. }, Location::Http { sha256, .. }) => {
                let url = format!("{}/{rest}", url.trim_end_matches('/'));
                Some(Location::Http { url: url.trim_end_matches('/').to_owned(), sha256: sha256.clone() })
            }
            (Location::Git { url, .. }, Location::Git { revision, path, .. }) => {
                let url = format!("{}/{rest}", url.trim_end_matches('/')).trim_end_matches('/').to_owned();
                Some(Location::Git { url, revision: revision.clone(), path: path.clone() })
            }
            // A file by its URL has none below it, and a repository's files lie in packs.
            (Location::Http { .. } | Location::Git { .. }, _) | (_, Location::Git { .. }) => None,
            (to, _) => Some(to.below((!rest.is_empty()).then_some(rest))),
        }
    }

    /// What pins begin with that are this mirror's own.
    fn mark(&self) -> String {
        let to = address(&self.to).unwrap_or_else(|| match &self.to {
            Location::Local { path } => path.clone(),
            other => other.scheme().to_owned(),
        });
        format!("{to} instead of {}: ", self.from)
    }
}

/// A source as a URL that mirrors go by; `None` for what they are not for: places of a mesh's own, and object stores that
/// the task names an endpoint or an account for, of which a bucket's name says nothing.
fn address(source: &Location) -> Option<String> {
    match source {
        Location::S3 { bucket, path, endpoint: None, .. } => Some(format!("s3://{bucket}/{path}")),
        Location::Gcs { bucket, path, endpoint: None } => Some(format!("gs://{bucket}/{path}")),
        Location::Azblob { container, path, endpoint: None, account: None } => Some(format!("az://{container}/{path}")),
        Location::Http { url, .. } => Some(url.clone()),
        Location::HuggingFace { identifier, revision, repo, path, .. } => {
            // As errors and the Hub's own tools write it, but for the revision, which is a folder.
            let repo = match repo {
                HubRepo::Model => "",
                HubRepo::Dataset => "datasets/",
            };
            // What a pattern matches is named from the top.
            let path = path.as_ref().filter(|path| !path.contains(PATTERN));
            let below = path.map(|path| format!("/{path}")).unwrap_or_default();
            Some(format!("hf://{repo}{identifier}/{revision}{below}"))
        }
        Location::Git { url, .. } => url.contains("://").then(|| url.clone()),
        Location::S3 { .. }
        | Location::Gcs { .. }
        | Location::Azblob { .. }
        | Location::Local { .. }
        | Location::Task { .. }
        | Location::Submitted { .. }
        | Location::Kept { .. } => None,
    }
}

/// How this node gets at a source.
#[derive(Debug)]
pub(crate) enum Way {
    /// It lies in a volume.
    Folder(crate::folder::Folder),
    /// Out of a repository: from where that is, or from its mirrors.
    Git(Git),
    /// From where it is.
    Origin(Box<dyn Remote>),
    /// From where it is, with mirrors beside it.
    Beside(Beside),
    /// From a mirror instead, whose pins begin with `mark`.
    Instead {
        /// The mirror.
        remote: Box<dyn Remote>,
        /// Of its pins.
        mark: String,
    },
}

/// Finds the way. Touches the local disk, never the network.
pub(crate) fn way(store: &Store, location: &Location) -> Result<Way, StoreError> {
    let origin = match kinds::source(store, location)? {
        Source::Folder(folder) => return Ok(Way::Folder(folder)),
        Source::Git(git) if store.config.offline => return Err(StoreError::offline_source(git.place())),
        Source::Git(git) => return with_mirrors(store, location, git).map(Way::Git),
        Source::Remote(origin) => origin,
    };
    let mut beside = Vec::new();
    for mirror in &store.config.mirrors {
        let Some(to) = mirror.of(location) else { continue };
        let here = matches!(to, Location::Local { .. });
        if store.config.offline && !here {
            continue;
        }
        let remote: Box<dyn Remote> = match kinds::source(store, &to) {
            // Only repositories have such mirrors.
            Ok(Source::Git(_)) => return Err(StoreError::unsupported(&to)),
            Ok(Source::Folder(folder)) => Box::new(folder.as_remote(store.config.patience)),
            Ok(Source::Remote(remote)) => remote,
            Err(error) if mirror.only => return Err(error),
            Err(error) => {
                tracing::warn!(from = mirror.from, %error, "the mirror is left aside");
                continue;
            }
        };
        if mirror.only || store.config.offline {
            return Ok(Way::Instead { remote, mark: mirror.mark() });
        }
        beside.push(remote);
    }
    if store.config.offline && !kinds::in_mesh(location) {
        return Err(StoreError::offline_source(origin.url("")));
    }
    Ok(if beside.is_empty() { Way::Origin(origin) } else { Way::Beside(Beside::new(origin, beside)) })
}

/// A repository with its mirrors; one that is never to be asked is replaced by its mirror. Commits are the same wherever
/// they come from, so that pins need no mark.
fn with_mirrors(store: &Store, location: &Location, origin: Git) -> Result<Git, StoreError> {
    let mut mirrors = Vec::new();
    for mirror in &store.config.mirrors {
        let Some(to) = mirror.of(location) else { continue };
        match kinds::source(store, &to) {
            Ok(Source::Git(git)) if mirror.only => return Ok(git),
            Ok(Source::Git(git)) => mirrors.push(git),
            Ok(_) => return Err(StoreError::unsupported(&to)),
            Err(error) if mirror.only => return Err(error),
            Err(error) => tracing::warn!(from = mirror.from, %error, "the mirror is left aside"),
        }
    }
    Ok(origin.beside(mirrors))
}

/// A pin with the mark of the way that made it.
pub(crate) fn marked(pin: Pin, mark: &str) -> Pin {
    Pin { version: format!("{mark}{}", pin.version), ..pin }
}

/// The pin without the mark of the way that made it; an error when it was another way than this one.
pub(crate) fn unmarked(pin: &Pin, mark: &str, place: String) -> Result<Pin, StoreError> {
    let first = pin.version.split_once(" instead of ").map_or("its origin", |(to, _)| to);
    let bare = pin.version.strip_prefix(mark).filter(|_| mark.is_empty() == (first == "its origin"));
    match bare {
        Some(version) => Ok(Pin { version: version.to_owned(), ..pin.clone() }),
        None => {
            let here = mark.split_once(" instead of ").map_or("its origin", |(to, _)| to);
            Err(StoreError::OtherWay { place, first: first.to_owned(), here: here.to_owned() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirror(from: &str, to: Location) -> Mirror {
        Mirror { from: from.into(), to, only: false }
    }

    fn s3(bucket: &str, path: &str) -> Location {
        Location::S3 { bucket: bucket.into(), path: path.into(), endpoint: None, region: None }
    }

    #[test]
    fn what_follows_is_looked_for_below() {
        let local = |path: &str| Location::Local { path: path.into() };
        let models = mirror("s3://lab/models", local("nas/models"));
        assert_eq!(models.of(&s3("lab", "models/a/b")), Some(local("nas/models/a/b")));
        assert_eq!(models.of(&s3("lab", "models")), Some(local("nas/models")));
        assert_eq!(models.of(&s3("lab", "models-other/a")), None);
        assert_eq!(models.of(&s3("other", "models/a")), None);
        let hub = Location::HuggingFace {
            identifier: "owner/name".into(),
            revision: "main".into(),
            repo: HubRepo::Model,
            path: Some("onnx".into()),
            config: None,
            split: None,
        };
        let all = mirror("huggingface", s3("hf", "mirror"));
        assert_eq!(all.of(&hub), Some(s3("hf", "mirror/owner/name/main/onnx")));
        let one = mirror("hf://owner/name", local("nas/it"));
        assert_eq!(one.of(&hub), Some(local("nas/it/main/onnx")));
        assert_eq!(mirror("hf://datasets/owner/name", local("nas/it")).of(&hub), None);
        let http = |url: &str| Location::Http { url: url.into(), sha256: Some("00".into()) };
        let web = mirror("https://far/data/", Location::Http { url: "https://near/d".into(), sha256: None });
        assert_eq!(web.of(&http("https://far/data/x.bin")), Some(http("https://near/d/x.bin")));
        assert_eq!(web.of(&hub), None);
        let git = |url: &str| Location::Git { url: url.into(), revision: Some("v1".into()), path: Some("m".into()) };
        let forge = mirror("https://far/org", git("https://near/mirror"));
        assert_eq!(forge.of(&git("https://far/org/model.git")), Some(git("https://near/mirror/model.git")));
        assert_eq!(mirror("git", git("https://near")).of(&git("ssh://git@far/a")), Some(git("https://near/git@far/a")));
        assert_eq!((forge.of(&http("https://far/org/x")), web.of(&git("https://far/data/m"))), (None, None));
        assert_eq!(mirror("git", local("nas")).of(&git("https://far/a")), None);
    }

    #[test]
    fn a_bucket_elsewhere_is_another_bucket() {
        let elsewhere = Location::S3 {
            bucket: "lab".into(),
            path: "m".into(),
            endpoint: Some("https://minio".into()),
            region: None,
        };
        assert_eq!(mirror("s3", s3("x", "y")).of(&elsewhere), None);
    }

    #[test]
    fn an_offline_node_is_still_a_member() {
        let offline = crate::StoreConfig { offline: true, ..crate::StoreConfig::default() };
        let store = Store::new(offline).unwrap();
        let brought = Location::Submitted {
            node: mloc_core::id::NodeId::new("n"),
            tree: "00".repeat(32),
            path: "code".into(),
            bytes: 1,
        };
        assert!(!matches!(way(&store, &brought), Err(StoreError::Offline { .. })));
        assert!(matches!(way(&store, &s3("lab", "m")), Err(StoreError::Offline { .. })));
    }

    #[test]
    fn pins_of_other_ways_are_told_apart() {
        let pin = |version: &str| Pin { version: version.into(), files: 1, bytes: 1 };
        let mark = mirror("huggingface", s3("hf", "m")).mark();
        assert_eq!(unmarked(&pin("abc"), "", "p".into()).unwrap().version, "abc");
        assert_eq!(unmarked(&pin(&format!("{mark}abc")), &mark, "p".into()).unwrap().version, "abc");
        for (version, mark) in
            [("abc", mark.as_str()), (&format!("{mark}abc"), ""), ("z instead of huggingface: a", &mark)]
        {
            let error = unmarked(&pin(version), mark, "p".into()).unwrap_err();
            assert!(matches!(error, StoreError::OtherWay { .. }), "{error}");
        }
    }
}
