//! `store` in node.yaml: this node's accounts at places, and how it gets there. Secrets are in files of their own.

use std::{
    num::NonZeroU64,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use mloc_core::{quantity, task::spec::Location};
use mloc_store::{GitAccount, HttpAccount, Mirror, Secret, StoreConfig};
use serde::{Deserialize, Serialize};

/// Places and the way there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Places {
    /// Google Cloud Storage.
    pub gcs: Gcs,
    /// Azure Blob Storage.
    pub azblob: Azblob,
    /// The Hugging Face Hub.
    pub huggingface: HuggingFace,
    /// Accounts at web servers, each for its own host.
    pub http: Vec<Http>,
    /// Accounts at git servers, each for its own host.
    pub git: Vec<GitServer>,
    /// Most that may come and go, all transfers together: `50MiB/s`.
    pub rate_limit: Option<String>,
    /// Whether nobody outside the mesh is asked: what the cache holds and volumes are all there is.
    pub offline: bool,
    /// Where else sources can be had; the first that fits is asked first.
    pub mirrors: Vec<MirrorOf>,
}

/// Google Cloud Storage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Gcs {
    /// Endpoint URL; Google's own when absent.
    pub endpoint: Option<String>,
    /// File with credentials as Google makes them; `GOOGLE_APPLICATION_CREDENTIALS` when absent.
    pub credential_file: Option<PathBuf>,
    /// File with an access token, which nobody renews.
    pub token_file: Option<PathBuf>,
    /// Whether requests go unsigned: public buckets, without credentials.
    pub anonymous: bool,
}

/// Azure Blob Storage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Azblob {
    /// Endpoint URL; the account's own when absent.
    pub endpoint: Option<String>,
    /// Storage account; `AZURE_STORAGE_ACCOUNT_NAME` when absent.
    pub account: Option<String>,
    /// File with its key; `AZURE_STORAGE_ACCOUNT_KEY` when absent.
    pub account_key_file: Option<PathBuf>,
    /// File with a shared access signature; `AZURE_STORAGE_SAS_TOKEN` when absent.
    pub sas_token_file: Option<PathBuf>,
    /// Whether requests go unsigned: public containers, without credentials.
    pub anonymous: bool,
}

/// The Hugging Face Hub.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct HuggingFace {
    /// URL of the Hub or of a mirror that speaks as it does; `HF_ENDPOINT`, or the Hub itself, when absent.
    pub endpoint: Option<String>,
    /// File with a user access token; `HF_TOKEN` when absent.
    pub token_file: Option<PathBuf>,
    /// Whether the repository of a destination is made, private, where it is missing.
    pub create_repos: bool,
}

/// An account at a web server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Http {
    /// `host` or `host:port`, spoken to by https; `http://host:port` where the token may go in the clear.
    pub host: String,
    /// File with the token.
    pub token_file: PathBuf,
    /// Header that holds the token; `Authorization: Bearer …` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
}

/// An account at a git server: for its repositories and their large files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct GitServer {
    /// `host` or `host:port`, spoken to by https; `http://host:port` where the token may go in the clear.
    pub host: String,
    /// User name; most servers go by the token alone and take any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// File with the token.
    pub token_file: PathBuf,
}

/// Where else sources can be had.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct MirrorOf {
    /// A type of source, or a URL with all below it.
    pub from: String,
    /// Where what follows is looked for: a place as in a task.
    pub to: Location,
    /// Whether the origin is never asked.
    #[serde(default)]
    pub only: bool,
}

impl Places {
    /// Files with credentials.
    pub fn secret_files(&self) -> impl Iterator<Item = &PathBuf> {
        let own = [
            &self.gcs.credential_file,
            &self.gcs.token_file,
            &self.azblob.account_key_file,
            &self.azblob.sas_token_file,
            &self.huggingface.token_file,
        ];
        let http = self.http.iter().map(|account| &account.token_file);
        own.into_iter().flatten().chain(http).chain(self.git.iter().map(|server| &server.token_file))
    }

    /// What serde cannot see.
    ///
    /// # Errors
    /// The first thing that can't be meant.
    pub fn check(&self) -> anyhow::Result<()> {
        self.bytes_per_s()?;
        let gcs = &self.gcs;
        if gcs.anonymous && (gcs.credential_file.is_some() || gcs.token_file.is_some()) {
            bail!("store.gcs: {ANONYMOUS}");
        }
        let azblob = &self.azblob;
        if azblob.anonymous && (azblob.account_key_file.is_some() || azblob.sas_token_file.is_some()) {
            bail!("store.azblob: {ANONYMOUS}");
        }
        for account in &self.http {
            if account.host.contains('@') || account.host.trim_start_matches("http://").contains(['/', ' ']) {
                bail!("store.http: `{}` is no host: write data.example.org, or data.example.org:8443", account.host);
            }
        }
        for server in &self.git {
            let host = server.host.strip_prefix("http://").unwrap_or(&server.host);
            if host.is_empty() || host.contains(['/', '@', ' ']) {
                bail!("store.git: `{}` is no host: write host, host:port, or http://host:port", server.host);
            }
        }
        for mirror in &self.mirrors {
            mirror.check().with_context(|| format!("store.mirrors: from `{}`", mirror.from))?;
        }
        Ok(())
    }

    /// `50MiB/s` in bytes.
    fn bytes_per_s(&self) -> anyhow::Result<Option<NonZeroU64>> {
        let Some(text) = &self.rate_limit else { return Ok(None) };
        let bytes = text.strip_suffix("/s").and_then(|amount| quantity::bytes(amount.trim()).ok());
        match bytes.and_then(NonZeroU64::new) {
            Some(bytes) => Ok(Some(bytes)),
            None => bail!("store.rateLimit: `{text}`: expected bytes a second, such as 50MiB/s"),
        }
    }

    /// Puts it into the store's configuration; reads the files. `secret` reads one of them.
    ///
    /// # Errors
    /// When a file can't be read.
    pub fn settle(
        &self,
        store: &mut StoreConfig,
        secret: impl Fn(&Path) -> anyhow::Result<String>,
    ) -> anyhow::Result<()> {
        let read = |file: &Option<PathBuf>| file.as_deref().map(&secret).transpose().map(|s| s.map(Secret::new));
        store.gcs.endpoint.clone_from(&self.gcs.endpoint);
        store.gcs.credential_file.clone_from(&self.gcs.credential_file);
        store.gcs.token = read(&self.gcs.token_file)?;
        store.gcs.anonymous = self.gcs.anonymous;
        store.azblob.endpoint.clone_from(&self.azblob.endpoint);
        store.azblob.account.clone_from(&self.azblob.account);
        store.azblob.account_key = read(&self.azblob.account_key_file)?;
        store.azblob.sas_token = read(&self.azblob.sas_token_file)?;
        store.azblob.anonymous = self.azblob.anonymous;
        store.hugging_face.endpoint.clone_from(&self.huggingface.endpoint);
        store.hugging_face.token = read(&self.huggingface.token_file)?;
        store.hugging_face.create_repos = self.huggingface.create_repos;
        for account in &self.http {
            let token = Secret::new(secret(&account.token_file)?);
            store.http.push(HttpAccount { host: account.host.clone(), header: account.header.clone(), token });
        }
        for server in &self.git {
            let token = Secret::new(secret(&server.token_file)?);
            store.git.push(GitAccount { host: server.host.clone(), username: server.username.clone(), token });
        }
        store.rate_limit = self.bytes_per_s()?;
        store.offline = self.offline;
        let mirror = |m: &MirrorOf| Mirror { from: m.from.clone(), to: m.to.clone(), only: m.only };
        store.mirrors = self.mirrors.iter().map(mirror).collect();
        Ok(())
    }
}

const ANONYMOUS: &str =
    "anonymous requests are not signed, and there are files with credentials: leave one of them out";

impl MirrorOf {
    fn check(&self) -> anyhow::Result<()> {
        let scheme = self.from.split_once("://").map_or(self.from.as_str(), |(scheme, _)| scheme);
        let known = match self.from.contains("://") {
            true => ["s3", "gs", "az", "http", "https", "hf", "ssh", "git"].contains(&scheme),
            false => ["s3", "gcs", "azblob", "http", "huggingface", "git"].contains(&scheme),
        };
        if !known {
            bail!(
                "expected a type of source (huggingface, s3, gcs, azblob, http, git) or a URL (hf://OWNER/NAME, hf://datasets/OWNER/NAME, s3://BUCKET/PATH, gs://…, az://…, https://…, ssh://…, git://…)"
            );
        }
        let of_git = ["git", "ssh"].contains(&scheme);
        // Repositories and plain files are both named by such URLs.
        let by_http = self.from.starts_with("http://") || self.from.starts_with("https://");
        match &self.to {
            Location::Git { revision: None, path: None, .. } if of_git || by_http => Ok(()),
            Location::Git { revision: None, path: None, .. } => bail!("a repository can only stand for others"),
            Location::Git { .. } => bail!("a repository stands for another whole: leave out revision and path"),
            to if of_git => bail!("a place of type {} cannot stand for a repository: expected git", to.scheme()),
            Location::Local { .. } | Location::S3 { .. } | Location::Gcs { .. } | Location::Azblob { .. } => Ok(()),
            Location::Http { .. } if scheme.starts_with("http") => Ok(()),
            to => bail!("a place of type {} cannot stand for it: expected local, s3, gcs or azblob", to.scheme()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> anyhow::Result<Places> {
        let places: Places = serde_yaml::from_str(text)?;
        places.check().map(|()| places)
    }

    #[test]
    fn what_is_said_reaches_the_store() {
        let text = "
gcs: {credentialFile: /etc/mloc/gcs.json}
azblob: {account: lab, accountKeyFile: /etc/mloc/azure}
huggingface: {endpoint: \"https://hub.example.org\", tokenFile: /etc/mloc/hf, createRepos: true}
http: [{host: data.example.org, tokenFile: /etc/mloc/data}, {host: \"http://10.0.0.1:80\", tokenFile: /t, header: private-token}]
git: [{host: example.org, tokenFile: /etc/mloc/git}, {host: \"http://inside:3000\", username: me, tokenFile: /u}]
rateLimit: 50MiB/s
mirrors:
  - {from: huggingface, to: {type: local, path: nas/hub}, only: true}
  - {from: \"s3://lab/models\", to: {type: s3, bucket: near, path: models, endpoint: \"http://minio:9000\"}}
  - {from: \"https://forge.example/org\", to: {type: git, url: \"https://near.example/mirror\"}}
";
        let mut store = StoreConfig::default();
        parse(text).unwrap().settle(&mut store, |path| Ok(format!("in {}", path.display()))).unwrap();
        assert_eq!(store.rate_limit.unwrap().get(), 50 << 20);
        assert_eq!(store.azblob.account_key, Some(Secret::new("in /etc/mloc/azure")));
        assert_eq!(store.hugging_face.token, Some(Secret::new("in /etc/mloc/hf")));
        let hub = &store.hugging_face;
        assert_eq!((hub.endpoint.as_deref(), hub.create_repos), (Some("https://hub.example.org"), true));
        assert_eq!((store.http.len(), store.http[1].header.as_deref()), (2, Some("private-token")));
        assert_eq!((store.git[0].username.as_deref(), store.git[1].username.as_deref()), (None, Some("me")));
        assert_eq!(store.git[0].token, Secret::new("in /etc/mloc/git"));
        assert_eq!((store.mirrors.len(), store.mirrors[0].only), (3, true));
        assert!(!format!("{store:?}").contains("in /etc"), "a secret shows");
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (bad, expected) in [
            ("rateLimit: fast", "such as 50MiB/s"),
            ("rateLimit: 50MiB", "such as 50MiB/s"),
            ("rateLimit: 0B/s", "such as 50MiB/s"),
            ("gcs: {anonymous: true, tokenFile: /t}", "store.gcs: anonymous"),
            ("azblob: {anonymous: true, sasTokenFile: /t}", "store.azblob: anonymous"),
            ("http: [{host: \"user@host\", tokenFile: /t}]", "is no host"),
            ("http: [{host: \"host/path\", tokenFile: /t}]", "is no host"),
            ("git: [{host: \"https://example.org\", tokenFile: /t}]", "store.git: `https://example.org` is no host"),
            ("mirrors: [{from: ftp, to: {type: local, path: a}}]", "expected a type of source"),
            ("mirrors: [{from: \"huggingface://models/a/b\", to: {type: local, path: a}}]", "hf://OWNER/NAME"),
            ("mirrors: [{from: huggingface, to: {type: http, url: \"https://x\"}}]", "cannot stand for it"),
            ("mirrors: [{from: git, to: {type: local, path: a}}]", "cannot stand for a repository"),
            ("mirrors: [{from: s3, to: {type: git, url: \"https://x/y\"}}]", "can only stand for others"),
            ("mirrors: [{from: git, to: {type: git, url: \"https://x/y\", path: z}}]", "leave out revision and path"),
        ] {
            let error = format!("{:#}", parse(bad).unwrap_err());
            assert!(error.contains(expected), "{bad}: {error}");
        }
    }
}
