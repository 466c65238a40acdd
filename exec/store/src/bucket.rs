//! S3-compatible buckets, through opendal. All requests leave from here; all answers are turned into
//! [`StoreError`]s here.

use std::{fmt, path::Path};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use mloc_core::task::spec::Pin;
use opendal::{
    ErrorKind, HttpTransporter, Metadata, OperationContext, Operator,
    layers::{RetryEvent, RetryLayer},
    services::S3,
};
use opendal_http_transport_reqwest::ReqwestTransport;
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;

use mloc_exec::failpoint;

use crate::{
    answer::{Answer, root_cause, unsigned},
    config::{Patience, Secret, StoreConfig},
    disk::Stamp,
    error::StoreError,
    meter::Meter,
    remote::{Body, Listing, Object, Remote},
};

/// One part of a multipart upload: S3 takes no smaller ones than 5 MiB, and 10,000 parts at most.
const PART: u64 = 8 << 20;
const PARTS_MAX: u64 = 9_000;
/// Parts on their way at once.
const PARTS_AT_ONCE: usize = 4;

/// The HTTP client of a node, shared by all its transfers.
#[derive(Clone)]
pub(crate) struct Client {
    /// Follows redirects. For sources with requests of their own.
    pub http: reqwest::Client,
    transport: HttpTransporter,
    /// Why `https://` cannot be spoken, when it cannot.
    no_tls: Option<String>,
}

impl Client {
    /// Makes the client. TLS is ring's, whatever else is in the tree; a machine without root certificates still
    /// speaks to `http://` endpoints.
    pub fn new(patience: &Patience) -> Result<Self, StoreError> {
        // Main has done this already; a test may not have. Installed twice, the first one stays.
        drop(rustls::crypto::ring::default_provider().install_default());
        let client = || {
            reqwest::Client::builder()
                .connect_timeout(patience.connect)
                .read_timeout(patience.silence)
                .user_agent(concat!("mloc/", env!("CARGO_PKG_VERSION")))
        };
        let unready = |e: reqwest::Error| StoreError::Unready {
            found: root_cause(&e),
            hint: "the HTTP client could not be made: check proxy variables",
        };
        let (http, no_tls) = match client().build() {
            Ok(client) => (client, None),
            Err(e) => (client().tls_certs_only([]).build().map_err(unready)?, Some(root_cause(&e))),
        };
        Ok(Self { transport: HttpTransporter::new(ReqwestTransport::new(http.clone())), http, no_tls })
    }

    /// Whether this node can speak to an endpoint at all: `https://` needs root certificates.
    pub fn speaks(&self, endpoint: &str) -> Result<(), StoreError> {
        match &self.no_tls {
            Some(found) if !endpoint.starts_with("http://") => Err(StoreError::Unready {
                found: found.clone(),
                hint: "https needs root certificates on this node: install ca-certificates, or set SSL_CERT_FILE",
            }),
            _ => Ok(()),
        }
    }
}

/// A key or prefix of a bucket.
#[derive(Clone)]
pub(crate) struct Bucket {
    /// Tries once: transfers have their own way of going on after a break.
    once: Operator,
    /// Tries again by itself.
    patient: Operator,
    patience: Patience,
    bucket: String,
    prefix: String,
    endpoint: String,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.url(""), self.endpoint)
    }
}

impl Bucket {
    /// Opens a prefix. No request is sent.
    pub fn open(
        config: &StoreConfig,
        client: &Client,
        bucket: &str,
        path: &str,
        endpoint: Option<&str>,
        region: Option<&str>,
    ) -> Result<Self, StoreError> {
        let s3 = &config.s3;
        let env = |names: &[&str]| names.iter().find_map(|n| std::env::var(n).ok().filter(|v| !v.is_empty()));
        let endpoint = endpoint
            .map(str::to_owned)
            .or_else(|| s3.endpoint.clone())
            .or_else(|| env(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]));
        let region = region
            .map(str::to_owned)
            .or_else(|| s3.region.clone())
            .or_else(|| env(&["AWS_REGION", "AWS_DEFAULT_REGION"]))
            .unwrap_or_else(|| "us-east-1".into());
        let mut builder = S3::default().bucket(bucket).region(&region);
        let prefix = path.trim_matches('/').to_owned();
        let place = format!("s3://{bucket}/{prefix}");
        if let Some(endpoint) = &endpoint {
            check_endpoint(&place, endpoint)?;
            // An endpoint of one's own is no EC2: asking its metadata service would only cost a timeout.
            builder = builder.endpoint(endpoint).disable_ec2_metadata();
        }
        if let (Some(tls), false) = (&client.no_tls, endpoint.as_deref().is_some_and(|e| e.starts_with("http://"))) {
            return Err(StoreError::Unready {
                found: tls.clone(),
                hint: "https needs root certificates on this node: install ca-certificates, or set SSL_CERT_FILE",
            });
        }
        let reveal = |secret: &Option<Secret>| secret.as_ref().map(|s| s.reveal().to_owned());
        if s3.anonymous {
            builder = builder.skip_signature();
        } else if let (Some(id), Some(key)) = (reveal(&s3.access_key_id), reveal(&s3.secret_access_key)) {
            builder = builder.access_key_id(&id).secret_access_key(&key);
            if let Some(token) = reveal(&s3.session_token) {
                builder = builder.session_token(&token);
            }
        }
        let endpoint = endpoint.unwrap_or_else(|| format!("AWS {region}"));
        let context = OperationContext::new().with_http_transport(client.transport.clone());
        let once = Operator::new(builder)
            .map_err(|e| StoreError::Refused { place, found: e.message().to_owned() })?
            .with_context(context);
        let patience = config.patience;
        let retries = RetryLayer::new()
            .with_min_delay(patience.first_wait)
            .with_max_delay(patience.longest_wait)
            .with_max_times(patience.tries.saturating_sub(1) as usize)
            .with_jitter()
            .with_notify(|event: RetryEvent<'_>| {
                tracing::debug!(op = ?event.op, wait = ?event.retry_after, error = event.err.message(), "s3 again");
            });
        let patient = once.clone().layer(retries);
        Ok(Self { once, patient, patience, bucket: bucket.to_owned(), prefix, endpoint })
    }

    /// `s3://bucket/key`.
    pub fn url(&self, name: &str) -> String {
        format!("s3://{}/{}", self.bucket, self.key(name))
    }

    /// A prefix below this one.
    pub fn join(&self, name: &str) -> Self {
        Self { prefix: self.key(name), ..self.clone() }
    }

    fn key(&self, name: &str) -> String {
        match (self.prefix.as_str(), name) {
            ("", name) => name.to_owned(),
            (prefix, "") => prefix.to_owned(),
            (prefix, name) => format!("{prefix}/{name}"),
        }
    }

    fn folder_key(&self) -> String {
        if self.prefix.is_empty() { "/".into() } else { format!("{}/", self.prefix) }
    }

    /// Names of what lies right below the prefix and has something below itself, sorted.
    pub async fn folders(&self) -> Result<Vec<String>, StoreError> {
        let folder = self.folder_key();
        let listed = self.patient.list(&folder).await.map_err(|e| self.error("", self.patience.tries, &e))?;
        let mut names: Vec<_> = listed
            .iter()
            .filter(|e| e.metadata().is_dir())
            .filter_map(|e| e.path().strip_prefix(&folder)?.strip_suffix('/').map(str::to_owned))
            .filter(|name| !name.is_empty())
            .collect();
        names.sort();
        Ok(names)
    }

    /// A small object, whole; `None` when there is none.
    pub async fn get(&self, name: &str, bytes_max: u64) -> Result<Option<Bytes>, StoreError> {
        let key = self.key(name);
        let read = async {
            let mut stream = self.patient.reader(&key).await?.into_stream(..).await?;
            let mut bytes = Vec::new();
            while let Some(block) = stream.try_next().await? {
                bytes.extend_from_slice(&block.to_bytes());
                if bytes.len() as u64 > bytes_max {
                    break;
                }
            }
            Ok::<_, opendal::Error>(bytes)
        };
        match read.await {
            Ok(bytes) if bytes.len() as u64 > bytes_max => {
                let found = format!("larger than {bytes_max} bytes");
                Err(StoreError::Damaged { place: self.url(name), found })
            }
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.error(name, self.patience.tries, &e)),
        }
    }

    /// Sends a file, in parts when it is large. Returns the stamp of the bytes that were sent.
    pub async fn put(&self, name: &str, from: &Path, meter: &Meter) -> Result<Stamp, StoreError> {
        let failed = |e: &opendal::Error| self.error(name, self.patience.tries, e);
        let unread = |e| StoreError::disk("read", from, e);
        let mut file = tokio::fs::File::open(from).await.map_err(unread)?;
        let size = file.metadata().await.map_err(unread)?.len();
        let part = PART.max(size.div_ceil(PARTS_MAX)) as usize;
        let key = self.key(name);
        let writer = self.patient.writer_with(&key).chunk(part).concurrent(PARTS_AT_ONCE);
        let mut writer = writer.await.map_err(|e| failed(&e))?;
        let (mut hasher, mut bytes) = (Sha256::new(), 0);
        let sent = async {
            loop {
                let mut block = Vec::with_capacity(part.min(1 << 20));
                let n = (&mut file).take(1 << 20).read_to_end(&mut block).await.map_err(unread)?;
                if n == 0 {
                    break;
                }
                hasher.update(&block);
                writer.write(block).await.map_err(|e| failed(&e))?;
                failpoint::reached("store.upload.part");
                bytes += n as u64;
                meter.moved(n as u64);
            }
            writer.close().await.map_err(|e| failed(&e))
        }
        .await;
        if let Err(e) = sent {
            // Parts that nobody completes would be paid for until somebody clears them away.
            if let Err(left) = writer.abort().await {
                tracing::debug!(place = self.url(name), error = left.message(), "parts of an upload stay behind");
            }
            return Err(e);
        }
        failpoint::reached("store.upload.done");
        Ok(Stamp { bytes, sha256: hex::encode(hasher.finalize()) })
    }

    /// Puts a new small object; `false` when the key is taken (If-None-Match: *).
    pub async fn put_new(&self, name: &str, bytes: Vec<u8>) -> Result<bool, StoreError> {
        match self.patient.write_with(&self.key(name), bytes).if_not_exists(true).await {
            Ok(_) => {
                failpoint::reached("store.manifest.placed");
                Ok(true)
            }
            Err(e) if matches!(e.kind(), ErrorKind::ConditionNotMatch | ErrorKind::AlreadyExists) => Ok(false),
            Err(e) => Err(self.error(name, self.patience.tries, &e)),
        }
    }

    /// Puts a small object, over whatever has the key.
    pub async fn put_bytes(&self, name: &str, bytes: Vec<u8>) -> Result<(), StoreError> {
        let put = self.patient.write(&self.key(name), bytes).await;
        put.map(drop).map_err(|e| self.error(name, self.patience.tries, &e))
    }

    /// Removes an object; not there is fine.
    pub async fn remove(&self, name: &str) -> Result<(), StoreError> {
        self.patient.delete(&self.key(name)).await.map_err(|e| self.error(name, self.patience.tries, &e))
    }

    /// Removes all below the prefix.
    pub async fn remove_all(&self) -> Result<(), StoreError> {
        let removed = self.patient.delete_with(&self.folder_key()).recursive(true).await;
        removed.map_err(|e| self.error("", self.patience.tries, &e))
    }

    fn key_error(&self, key: &str, tries: u32, error: &opendal::Error) -> StoreError {
        Self { prefix: key.to_owned(), ..self.clone() }.error("", tries, error)
    }

    /// The line broke.
    fn broken(&self, key: &str, tries: u32, found: String) -> StoreError {
        let place = format!("s3://{}/{key}", self.bucket);
        StoreError::Unreachable { place, endpoint: self.endpoint.clone(), tries, found }
    }

    /// What the other side said, as one of ours.
    fn error(&self, name: &str, tries: u32, error: &opendal::Error) -> StoreError {
        let place = self.url(name);
        let answer = Answer::of(error);
        let found = answer.text();
        if unsigned(error) {
            let hint = "this node has no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for the worker, or s3 in node.yaml (s3.anonymous for public buckets)";
            return StoreError::Denied { place, found, hint, here: true };
        }
        match error.kind() {
            ErrorKind::NotFound => StoreError::NotFound {
                place,
                found: "no such object, and nothing below it".into(),
                hint: format!("check bucket and path; they were looked for at {}", self.endpoint),
            },
            ErrorKind::ConfigInvalid if answer.code.as_deref() == Some("NoSuchBucket") => StoreError::NotFound {
                place,
                found: format!("there is no bucket `{}`", self.bucket),
                hint: format!("check its name; it was looked for at {}", self.endpoint),
            },
            ErrorKind::PermissionDenied => {
                StoreError::Denied { place, found, hint: answer.hint(), here: answer.blames_node() }
            }
            ErrorKind::ConditionNotMatch | ErrorKind::RangeNotSatisfied => StoreError::Changed { place },
            ErrorKind::RateLimited | ErrorKind::Conflict => {
                StoreError::Unreachable { place, endpoint: self.endpoint.clone(), tries, found }
            }
            ErrorKind::Unexpected if answer.code.is_none() || error.is_temporary() || error.is_persistent() => {
                StoreError::Unreachable { place, endpoint: self.endpoint.clone(), tries, found }
            }
            _ => StoreError::Refused { place, found },
        }
    }
}

#[async_trait]
impl Remote for Bucket {
    fn url(&self, name: &str) -> String {
        Bucket::url(self, name)
    }

    fn patience(&self) -> Patience {
        self.patience
    }

    /// All objects below the prefix, sorted; or the one object whose key it is.
    async fn list(&self, _: Option<&Pin>) -> Result<Listing, StoreError> {
        let folder = self.folder_key();
        let listed = self.patient.list_with(&folder).recursive(true).await;
        let mut objects = Vec::new();
        for entry in listed.map_err(|e| self.error("", self.patience.tries, &e))? {
            let (key, meta) = (entry.path().to_owned(), entry.metadata());
            if meta.is_file() && !key.ends_with('/') {
                let name = key.strip_prefix(&folder).unwrap_or(&key).to_owned();
                objects.push(object(name, key, meta));
            }
        }
        objects.sort_by(|a, b| a.name.cmp(&b.name));
        let one = objects.is_empty() && !self.prefix.is_empty();
        if one {
            let meta = self.patient.stat(&self.prefix).await;
            let meta = meta.map_err(|e| self.error("", self.patience.tries, &e))?;
            let name = self.prefix.rsplit('/').next().unwrap_or(&self.prefix).to_owned();
            objects.push(object(name, self.prefix.clone(), &meta));
        }
        Ok(Listing { objects, one, version: None })
    }

    async fn read(&self, object: &Object, range: std::ops::Range<u64>) -> Result<Body, StoreError> {
        let mut reader = self.once.reader_with(&object.key);
        if let Some(etag) = &object.etag {
            reader = reader.if_match(etag);
        }
        let here = self.clone();
        let key = object.key.clone();
        let reader = reader.await.map_err(|e| self.key_error(&object.key, 1, &e))?;
        let stream = reader.into_bytes_stream(range).await.map_err(|e| self.key_error(&object.key, 1, &e))?;
        let stream = stream.map_err(move |e| match e.get_ref().and_then(|e| e.downcast_ref::<opendal::Error>()) {
            Some(inner) => here.key_error(&key, 1, inner),
            None => here.broken(&key, 1, root_cause(&e)),
        });
        Ok(stream.boxed())
    }

    async fn again(&self, object: &Object) -> Result<Object, StoreError> {
        let meta = self.patient.stat(&object.key).await;
        let meta = meta.map_err(|e| self.key_error(&object.key, self.patience.tries, &e))?;
        Ok(self::object(object.name.clone(), object.key.clone(), &meta))
    }

    fn cut_short(&self, object: &Object, at: u64) -> StoreError {
        self.broken(&object.key, 1, format!("the answer ended at byte {at} of {}", object.bytes))
    }
}

fn object(name: String, key: String, meta: &Metadata) -> Object {
    Object { name, key, bytes: meta.content_length(), etag: meta.etag().map(Into::into), sha256: None }
}

fn check_endpoint(place: &str, endpoint: &str) -> Result<(), StoreError> {
    let refused = |found: &str| Err(StoreError::Refused { place: place.to_owned(), found: found.to_owned() });
    match endpoint.split_once("://") {
        Some(("http" | "https", rest)) if rest.contains('@') => {
            refused("the endpoint URL holds credentials; those belong in the worker's environment")
        }
        Some(("http" | "https", rest)) if !rest.is_empty() => Ok(()),
        _ => refused(&format!("endpoint `{endpoint}` is no http:// or https:// URL")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(config: &StoreConfig, endpoint: &str) -> Result<Bucket, StoreError> {
        let client = Client::new(&config.patience).unwrap();
        Bucket::open(config, &client, "b", "/some/path/", Some(endpoint), None)
    }

    #[test]
    fn a_bucket_shows_no_credentials() {
        let mut config = StoreConfig::default();
        config.s3.access_key_id = Some(Secret::new("AKIAHUNTER"));
        config.s3.secret_access_key = Some(Secret::new("hunter2"));
        config.s3.session_token = Some(Secret::new("hunter3"));
        let bucket = open(&config, "http://127.0.0.1:1").unwrap();
        let shown = format!("{bucket:?} {:?} {:?}", bucket.once, bucket.patient);
        assert!(!shown.to_lowercase().contains("hunter"), "{shown}");
        assert_eq!(bucket.url("x"), "s3://b/some/path/x");
    }

    #[test]
    fn an_endpoint_is_a_plain_url() {
        let config = StoreConfig::default();
        for bad in ["minio:9000", "ftp://x", "http://", "http://user:hunter2@minio"] {
            let error = open(&config, bad).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
