//! What a node's owner says about places: volumes, accounts, mirrors, limits, patience.

use std::{collections::BTreeMap, fmt, num::NonZeroU64, path::PathBuf};

use reqwest::Url;

use crate::{cache::CacheConfig, mirror::Mirror, patience::Patience};

/// A node's places, as whoever reads its configuration fills them in. Credentials that are absent come from the
/// environment.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Declared volumes: name → folder. Nothing else of this machine's disk can be a source or a destination.
    pub volumes: BTreeMap<String, PathBuf>,
    /// The S3 account of this node.
    pub s3: S3Config,
    /// Its account at Google Cloud Storage.
    pub gcs: GcsConfig,
    /// Its account at Azure Blob Storage.
    pub azblob: AzblobConfig,
    /// Its account at the Hugging Face Hub.
    pub hugging_face: HubConfig,
    /// Its accounts at web servers; a host without one is asked without credentials.
    pub http: Vec<HttpAccount>,
    /// Bytes a second that may come and go, all transfers of this node together; as many as the line takes when absent.
    pub rate_limit: Option<NonZeroU64>,
    /// Asks nobody outside the mesh: what the cache holds, declared volumes and mirrors in them are all there is.
    pub offline: bool,
    /// Where else some sources can be had, the first that fits.
    pub mirrors: Vec<Mirror>,
    /// Its accounts at git servers; a server without one is asked without credentials.
    pub git: Vec<GitAccount>,
    /// How the `ssh` program is started for repositories that are spoken to through it: a shell's words.
    pub ssh: String,
    /// How long a transfer bears with a bad line.
    pub patience: Patience,
    /// Where pulled sources are kept.
    pub cache: CacheConfig,
    /// Bytes a pull leaves free on the disk it fills.
    pub reserve_bytes: u64,
}

impl Default for StoreConfig {
    /// No volumes, the environment's S3 account, and 256 MiB left free: the mesh's own journal lives on that disk too,
    /// and a worker stops attempts when less is left than half of that.
    fn default() -> Self {
        Self {
            volumes: BTreeMap::new(),
            s3: S3Config::default(),
            gcs: GcsConfig::default(),
            azblob: AzblobConfig::default(),
            hugging_face: HubConfig::default(),
            http: Vec::new(),
            rate_limit: None,
            offline: false,
            mirrors: Vec::new(),
            git: Vec::new(),
            // Nobody is there to be asked for a password, and a dead line is noticed after a minute.
            ssh: "ssh -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=15 -o ServerAliveCountMax=4".into(),
            patience: Patience::default(),
            cache: CacheConfig::default(),
            reserve_bytes: 256 << 20,
        }
    }
}

/// An S3 account. What is absent comes from the usual `AWS_*` variables, a profile, or the cloud's metadata service.
#[derive(Clone, Debug, Default)]
pub struct S3Config {
    /// Endpoint URL, `http://` or `https://`; a task's own endpoint goes before it.
    pub endpoint: Option<String>,
    /// Region; `us-east-1` when nobody says one (S3-compatible servers mostly don't care).
    pub region: Option<String>,
    /// Access key id.
    pub access_key_id: Option<Secret>,
    /// Secret access key.
    pub secret_access_key: Option<Secret>,
    /// Token of temporary credentials.
    pub session_token: Option<Secret>,
    /// Sends unsigned requests: public buckets without credentials.
    pub anonymous: bool,
}

/// An account at a git server: for its repositories and their large files, and for no other host.
#[derive(Clone, Debug)]
pub struct GitAccount {
    /// `host` or `host:port`, spoken to by https; `http://host:port` where the token may go in the clear.
    pub host: String,
    /// User name; `git` when absent, which servers that go by the token alone don't look at.
    pub username: Option<String>,
    /// Token, or password.
    pub token: Secret,
}

impl GitAccount {
    /// Whether it is shown to a URL.
    pub(crate) fn is_for(&self, url: &str) -> bool {
        Url::parse(url).is_ok_and(|url| is_at(&self.host, &url))
    }

    /// The user's name.
    pub(crate) fn username(&self) -> &str {
        self.username.as_deref().unwrap_or("git")
    }

    /// For the one who signs requests.
    pub(crate) fn identity(&self) -> gix_sec::identity::Account {
        let (username, password) = (self.username().to_owned(), self.token.reveal().to_owned());
        gix_sec::identity::Account { username, password, oauth_refresh_token: None }
    }
}

/// An account at Google Cloud Storage. What is absent comes from `GOOGLE_APPLICATION_CREDENTIALS`, gcloud's own file, or
/// the cloud's metadata service.
#[derive(Clone, Debug, Default)]
pub struct GcsConfig {
    /// Endpoint URL, `http://` or `https://`; a task's own endpoint goes before it, Google's after it.
    pub endpoint: Option<String>,
    /// A file with credentials, as Google makes them: a service account's key, or a workload's federation.
    pub credential_file: Option<PathBuf>,
    /// An access token. It goes before the file; nobody renews it.
    pub token: Option<Secret>,
    /// Sends unsigned requests: public buckets without credentials.
    pub anonymous: bool,
}

/// An account at Azure Blob Storage. What is absent comes from the usual `AZURE_*` variables, or the cloud's metadata
/// service.
#[derive(Clone, Debug, Default)]
pub struct AzblobConfig {
    /// Endpoint URL, `http://` or `https://`; a task's own endpoint goes before it, the account's after it.
    pub endpoint: Option<String>,
    /// Storage account; a task's own goes before it.
    pub account: Option<String>,
    /// Its key.
    pub account_key: Option<Secret>,
    /// A shared access signature. It goes before the key.
    pub sas_token: Option<Secret>,
    /// Sends unsigned requests: public containers without credentials.
    pub anonymous: bool,
}

/// An account at the Hugging Face Hub. What is absent comes from `HF_ENDPOINT` and `HF_TOKEN`.
#[derive(Clone, Debug, Default)]
pub struct HubConfig {
    /// The Hub, or a mirror of it; `https://huggingface.co` when nobody says another one.
    pub endpoint: Option<String>,
    /// A user access token: to read what is private or gated, to write, and for higher limits.
    pub token: Option<Secret>,
    /// Whether a destination's repository is made, private, where it is missing.
    pub create_repos: bool,
}

/// An account at a web server: shown to this host, and to no other that it leads to.
#[derive(Clone, Debug)]
pub struct HttpAccount {
    /// `host` or `host:port`, spoken to by https; `http://host:port` where the token may go in the clear.
    pub host: String,
    /// Name of the header that holds the token; `Authorization: Bearer TOKEN` when absent.
    pub header: Option<String>,
    /// The token, or all that the header holds.
    pub token: Secret,
}

/// Whether a URL is at an account's host, with its port and scheme. Over plain `http` only where its owner wrote
/// `http://`: a token that a task could send in the clear is one that everybody on the way can read.
fn is_at(host: &str, url: &Url) -> bool {
    let own = if host.contains("://") { host.to_owned() } else { format!("https://{host}") };
    Url::parse(&own).is_ok_and(|own| own.origin() == url.origin())
}

impl HttpAccount {
    /// Whether it is shown to a URL.
    pub(crate) fn is_for(&self, url: &Url) -> bool {
        is_at(&self.host, url)
    }

    /// What it shows: a header's name, where it has one of its own, and value.
    pub(crate) fn header(&self) -> (Option<&str>, String) {
        let token = self.token.reveal();
        match &self.header {
            Some(name) => (Some(name), token.to_owned()),
            None => (None, format!("Bearer {token}")),
        }
    }
}

/// Text that shows itself to nobody by accident: `Debug` prints dots, and it cannot be serialised.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a secret in.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself: for the one who signs requests.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_show() {
        let config = StoreConfig {
            s3: S3Config { secret_access_key: Some(Secret::new("hunter2")), ..S3Config::default() },
            ..StoreConfig::default()
        };
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn an_account_goes_to_its_host_alone() {
        let of = |host: &str| GitAccount { host: host.into(), username: None, token: Secret::new("t") };
        let accounts = [of("h.org"), of("h.org:8443"), of("http://inside:3000")];
        let host = |url: &str| accounts.iter().find(|account| account.is_for(url)).map(|a| a.host.as_str());
        assert_eq!(host("https://h.org/a/b"), Some("h.org"));
        assert_eq!(host("https://H.org:443/a"), Some("h.org"));
        assert_eq!(host("https://h.org:8443/a"), Some("h.org:8443"));
        assert_eq!(host("http://inside:3000/a"), Some("http://inside:3000"));
        for none in [
            "http://h.org/a",
            "https://evil/h.org",
            "https://h.org.evil/a",
            "https://h.org@evil/a",
            "https://inside:3000/a",
            "ssh://git@h.org/a",
            "git@h.org:a/b",
        ] {
            assert_eq!(host(none), None, "{none}");
        }
    }
}
