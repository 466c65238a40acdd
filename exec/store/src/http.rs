//! One file by its URL, from any web server.
//!
//! A server that gives ranges is read as everything else is. From one that gives none the file comes in one stream, which
//! begins again when the line breaks: nothing of such an answer can be asked for twice. Redirects are followed hop by hop,
//! because an account is for its own host and is shown to no other. opendal has a service for HTTP, and it can do neither,
//! nor a file of unknown length.
//!
//! The version of a file is the digest that the task names, else its ETag, else when it was modified last.

mod answer;
mod name;

use std::{
    fmt,
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};
use mloc_core::task::spec::{Location, Pin};
use reqwest::{
    Response, StatusCode, Url,
    header::{ACCEPT_ENCODING, AUTHORIZATION, ETAG, HeaderMap, HeaderValue, IF_RANGE, LAST_MODIFIED, RANGE},
};

use crate::{
    Store,
    client::{self, Client},
    config::HttpAccount,
    error::StoreError,
    patience::{Patience, patiently},
    place::Source,
    remote::{Body, Digest, Listing, Object, Remote},
};

/// Before a version that is not an ETag, of which no server makes such ones.
const BY_DIGEST: &str = "sha256:";
const BY_TIME: &str = "modified ";

/// A file by its URL.
pub(crate) struct Http {
    url: Url,
    /// What its bytes must come to.
    sha256: Option<String>,
    client: Client,
    accounts: Vec<HttpAccount>,
    patience: Patience,
    /// Whether the server gives no ranges, as its first answer has shown.
    one_stream: AtomicBool,
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.url.as_str())
    }
}

/// An `http` source.
pub(crate) fn source(store: &Store, location: &Location) -> Result<Source, StoreError> {
    let Location::Http { url, sha256 } = location else { return Err(StoreError::unsupported(location)) };
    store.client.speaks(url)?;
    let url = Url::parse(url)
        .map_err(|e| StoreError::Refused { place: url.clone(), found: format!("the URL cannot be read: {e}") })?;
    Ok(Source::Remote(Box::new(Http {
        url,
        sha256: sha256.clone(),
        client: store.client.clone(),
        accounts: store.config.http.clone(),
        patience: store.config.patience,
        one_stream: AtomicBool::new(false),
    })))
}

impl Http {
    /// One request, through redirects. Each hop gets the account of its own host, or none.
    async fn get(&self, range: Option<Range<u64>>, held: Option<&HeaderValue>) -> Result<Response, StoreError> {
        let fill = |client: &reqwest::Client, url: &Url| {
            let mut request = client.get(url.clone()).header(ACCEPT_ENCODING, "identity");
            if let Some(range) = &range {
                request = request.header(RANGE, format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
            }
            if let Some(held) = held {
                request = request.header(IF_RANGE, held);
            }
            match self.accounts.iter().find(|account| account.is_for(url)) {
                Some(account) => Ok(request.headers(self.shown(account)?)),
                None => Ok(request),
            }
        };
        Ok(self.client.send(self.url.as_str(), &self.url, &fill).await?.1)
    }

    fn shown(&self, account: &HttpAccount) -> Result<HeaderMap, StoreError> {
        let (name, value) = account.header();
        let mut value = HeaderValue::from_str(&value).map_err(|_| StoreError::Unready {
            found: format!(
                "the account for {} in node.yaml (store.http) holds signs that no header can have",
                account.host
            ),
            hint: "a token is one line of plain letters, digits and signs",
        })?;
        value.set_sensitive(true);
        let name = name.map_or(Ok(AUTHORIZATION), |name| name.parse()).map_err(|_| StoreError::Unready {
            found: format!("the account for {} in node.yaml (store.http) names a header that cannot be", account.host),
            hint: "a header's name is letters, digits and `-`",
        })?;
        Ok(HeaderMap::from_iter([(name, value)]))
    }

    /// What is there now, by its first byte: not every server that gives a file answers HEAD for it.
    async fn look(&self) -> Result<Object, StoreError> {
        let answer = self.get(Some(0..1), None).await?;
        let headers = answer.headers();
        let total = answer::total(headers);
        let (bytes, ranges) = match answer.status() {
            StatusCode::PARTIAL_CONTENT => (total, total.is_some()),
            StatusCode::RANGE_NOT_SATISFIABLE if total == Some(0) => (total, true),
            StatusCode::OK => (answer.content_length(), false),
            _ => return Err(self.failed(&answer)),
        };
        let known = self.one_stream.swap(!ranges, Ordering::Relaxed);
        if !ranges && !known {
            tracing::info!(url = %self.url, "the server gives no ranges: the file comes in one stream");
        }
        let name = name::of(headers, &self.url);
        let etag = self.version(headers);
        Ok(Object {
            name,
            key: self.url.to_string(),
            bytes: bytes.unwrap_or(0),
            etag,
            digest: self.sha256.clone().map(Digest::Sha256),
        })
    }

    fn version(&self, headers: &HeaderMap) -> Option<String> {
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).map(str::to_owned);
        let by_digest = self.sha256.as_ref().map(|sha256| format!("{BY_DIGEST}{sha256}"));
        by_digest.or_else(|| text(ETAG)).or_else(|| text(LAST_MODIFIED).map(|time| format!("{BY_TIME}{time}")))
    }

    fn broken(&self, found: String) -> StoreError {
        let endpoint = self.url.origin().ascii_serialization();
        StoreError::Unreachable { place: self.url.to_string(), endpoint, tries: 1, found }
    }

    /// An answer that is not the file.
    fn failed(&self, answer: &Response) -> StoreError {
        let account = self.accounts.iter().any(|account| account.is_for(answer.url()));
        answer::failed(answer.status(), &self.url, account)
    }
}

#[async_trait]
impl Remote for Http {
    fn url(&self, _: &str) -> String {
        self.url.to_string()
    }

    fn patience(&self) -> Patience {
        self.patience
    }

    async fn list(&self, _: Option<&Pin>) -> Result<Listing, StoreError> {
        Ok(Listing { objects: vec![patiently(self.patience, || self.look()).await?], one: true, version: None })
    }

    async fn read(&self, object: &Object, range: Range<u64>) -> Result<Body, StoreError> {
        let stream = self.one_stream();
        // Weak ETags do not tell bytes apart, and the digest is looked at in the end.
        let held = object.etag.as_deref().and_then(answer::held);
        let answer = self.get((!stream).then(|| range.clone()), held.as_ref().filter(|_| !stream)).await?;
        let came = answer::start(answer.headers());
        match answer.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT if self.version(answer.headers()) != object.etag => {
                return Err(StoreError::Changed { place: self.url.to_string() });
            }
            StatusCode::OK if stream => {}
            StatusCode::PARTIAL_CONTENT if !stream && came == Some(range.start) => {}
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => {
                let from = came.map_or("the first byte on".into(), |start| format!("byte {start} on"));
                let found = format!("asked for bytes {} to {}, it sends from {from}", range.start, range.end);
                return Err(self.broken(found));
            }
            StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::PRECONDITION_FAILED => {
                return Err(StoreError::Changed { place: self.url.to_string() });
            }
            _ => return Err(self.failed(&answer)),
        }
        let (url, place) = (self.url.clone(), self.url.to_string());
        Ok(answer.bytes_stream().map_err(move |e| client::broken(&place, &url, &e)).boxed())
    }

    async fn again(&self, object: &Object) -> Result<Object, StoreError> {
        Ok(Object { name: object.name.clone(), ..patiently(self.patience, || self.look()).await? })
    }

    fn one_stream(&self) -> bool {
        self.one_stream.load(Ordering::Relaxed)
    }

    fn cut_short(&self, object: &Object, at: u64) -> StoreError {
        self.broken(format!("the answer ended at byte {at} of {}", object.bytes))
    }
}
