//! Buckets of object stores, through opendal: S3 and what speaks like it, Google Cloud Storage, Azure Blob Storage. All
//! requests leave from here; all answers are turned into [`StoreError`]s here. What differs between them is
//! [`Service`]'s.

mod upload;

use std::{fmt, path::Path};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use mloc_core::{ledger::entry::Artifact, task::spec::Pin};
use opendal::{
    Builder, ErrorKind, Metadata, OperationContext, Operator,
    layers::{RetryEvent, RetryLayer},
};

use mloc_exec::failpoint;

use crate::{
    Store,
    answer::{Answer, root_cause, unsigned},
    disk::Stamp,
    error::StoreError,
    meter::Meter,
    patience::Patience,
    place::Area,
    remote::{Body, Listing, Object, Remote},
    service::Service,
    transfer,
};

/// A key or prefix of a bucket.
#[derive(Clone)]
pub(crate) struct Bucket {
    /// Tries once: transfers have their own way of going on after a break.
    once: Operator,
    /// Tries again by itself.
    patient: Operator,
    patience: Patience,
    service: &'static Service,
    bucket: String,
    prefix: String,
    endpoint: String,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.url_of(&self.prefix), self.endpoint)
    }
}

impl Bucket {
    /// What opendal's builder for it makes, at a prefix. No request is sent.
    pub fn open(
        store: &Store,
        service: &'static Service,
        (bucket, path): (&str, &str),
        endpoint: &str,
        builder: impl Builder,
    ) -> Result<Self, StoreError> {
        let prefix = path.trim_matches('/').to_owned();
        let place = format!("{}://{bucket}/{prefix}", service.scheme);
        check_endpoint(&place, endpoint)?;
        store.client.speaks(endpoint)?;
        let context = OperationContext::new().with_http_transport(store.client.transport.clone());
        let once = Operator::new(builder)
            .map_err(|e| StoreError::Refused { place, found: e.message().to_owned() })?
            .with_context(context);
        let patience = store.config.patience;
        let retries = RetryLayer::new()
            .with_min_delay(patience.first_wait)
            .with_max_delay(patience.longest_wait)
            .with_max_times(patience.tries.saturating_sub(1) as usize)
            .with_jitter()
            .with_notify(|event: RetryEvent<'_>| {
                tracing::debug!(op = ?event.op, wait = ?event.retry_after, error = event.err.message(), "again");
            });
        let patient = once.clone().layer(retries);
        let endpoint = endpoint.to_owned();
        Ok(Self { once, patient, patience, service, bucket: bucket.to_owned(), prefix, endpoint })
    }

    /// `s3://bucket/key`.
    fn url_of(&self, key: &str) -> String {
        format!("{}://{}/{key}", self.service.scheme, self.bucket)
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

    /// The line broke.
    fn broken(&self, key: &str, tries: u32, found: String) -> StoreError {
        StoreError::Unreachable { place: self.url_of(key), endpoint: self.endpoint.clone(), tries, found }
    }

    /// What the other side said of a key, as one of ours.
    fn error(&self, key: &str, tries: u32, error: &opendal::Error) -> StoreError {
        let place = self.url_of(key);
        let answer = Answer::of(error);
        let found = answer.text();
        if unsigned(error) {
            return StoreError::Denied { place, found, hint: self.service.unsigned, here: true };
        }
        if self.service.lacks_bucket(&answer) {
            return StoreError::NotFound {
                place,
                found: format!("there is no {} `{}`", self.service.bucket, self.bucket),
                hint: format!("check its name; it was looked for at {}", self.endpoint),
            };
        }
        match error.kind() {
            ErrorKind::NotFound => StoreError::NotFound {
                place,
                found: "no such object, and nothing below it".into(),
                hint: format!("check {} and path; they were looked for at {}", self.service.bucket, self.endpoint),
            },
            ErrorKind::PermissionDenied => self.denied(place, &answer),
            ErrorKind::ConditionNotMatch | ErrorKind::RangeNotSatisfied => StoreError::Changed { place },
            ErrorKind::RateLimited | ErrorKind::Conflict => self.broken(key, tries, found),
            _ if self.service.denies(&answer) => self.denied(place, &answer),
            ErrorKind::Unexpected if answer.code.is_none() || error.is_temporary() || error.is_persistent() => {
                self.broken(key, tries, found)
            }
            _ => StoreError::Refused { place, found },
        }
    }

    fn denied(&self, place: String, answer: &Answer) -> StoreError {
        let (here, hint) = self.service.denial(answer);
        StoreError::Denied { place, found: answer.text(), hint, here }
    }

    fn object(&self, name: String, key: String, meta: &Metadata) -> Object {
        Object { name, key, bytes: meta.content_length(), etag: self.service.version.of(meta), digest: None }
    }
}

#[async_trait]
impl Area for Bucket {
    fn url(&self) -> String {
        self.url_of(&self.prefix)
    }

    fn join(&self, name: &str) -> Box<dyn Area> {
        Box::new(Self { prefix: self.key(name), ..self.clone() })
    }

    async fn folders(&self) -> Result<Vec<String>, StoreError> {
        let folder = self.folder_key();
        let listed = self.patient.list(&folder).await.map_err(|e| self.error(&self.prefix, self.patience.tries, &e))?;
        let mut names: Vec<_> = listed
            .iter()
            .filter(|e| e.metadata().is_dir())
            .filter_map(|e| e.path().strip_prefix(&folder)?.strip_suffix('/').map(str::to_owned))
            .filter(|name| !name.is_empty())
            .collect();
        names.sort();
        Ok(names)
    }

    async fn get(&self, name: &str, bytes_max: u64) -> Result<Option<Bytes>, StoreError> {
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
                Err(StoreError::Damaged { place: self.url_of(&self.key(name)), found })
            }
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.error(&self.key(name), self.patience.tries, &e)),
        }
    }

    async fn put(&self, name: &str, from: &Path, meter: &Meter) -> Result<Stamp, StoreError> {
        self.upload(self.key(name), from, meter).await
    }

    async fn put_new(&self, name: &str, bytes: Vec<u8>, _: &Meter) -> Result<bool, StoreError> {
        match self.patient.write_with(&self.key(name), bytes).if_not_exists(true).await {
            Ok(_) => {
                failpoint::reached("store.manifest.placed");
                Ok(true)
            }
            Err(e) if matches!(e.kind(), ErrorKind::ConditionNotMatch | ErrorKind::AlreadyExists) => Ok(false),
            Err(e) => Err(self.error(&self.key(name), self.patience.tries, &e)),
        }
    }

    async fn put_bytes(&self, name: &str, bytes: Vec<u8>, _: &Meter) -> Result<(), StoreError> {
        let put = self.patient.write(&self.key(name), bytes).await;
        put.map(drop).map_err(|e| self.error(&self.key(name), self.patience.tries, &e))
    }

    async fn read(&self, name: &str, range: std::ops::Range<u64>) -> Result<Body, StoreError> {
        let (name, key) = (name.to_owned(), self.key(name));
        let object = Object { name, key, bytes: range.end, etag: None, digest: None };
        Remote::read(self, &object, range).await
    }

    async fn remove(&self, name: &str) -> Result<(), StoreError> {
        self.patient.delete(&self.key(name)).await.map_err(|e| self.error(&self.key(name), self.patience.tries, &e))
    }

    async fn remove_all(&self) -> Result<(), StoreError> {
        let removed = self.patient.delete_with(&self.folder_key()).recursive(true).await;
        removed.map_err(|e| self.error(&self.prefix, self.patience.tries, &e))
    }

    async fn fetch(&self, files: &[Artifact], folder: &Path, meter: &Meter) -> Result<Vec<Stamp>, StoreError> {
        let objects = self.list(None).await?.objects;
        let wanted = |file: &Artifact| {
            let object = objects.iter().find(|o| o.name == file.path);
            object.cloned().ok_or_else(|| self.missing(&file.path))
        };
        let wanted: Vec<_> = files.iter().map(wanted).collect::<Result<_, _>>()?;
        Ok(transfer::fetch(self, &wanted, folder, meter).await?.into_iter().map(|f| f.stamp).collect())
    }
}

#[async_trait]
impl Remote for Bucket {
    fn url(&self, name: &str) -> String {
        self.url_of(&self.key(name))
    }

    fn patience(&self) -> Patience {
        self.patience
    }

    /// All objects below the prefix, sorted; or the one object whose key it is.
    async fn list(&self, _: Option<&Pin>) -> Result<Listing, StoreError> {
        let folder = self.folder_key();
        let listed = self.patient.list_with(&folder).recursive(true).await;
        let mut objects = Vec::new();
        for entry in listed.map_err(|e| self.error(&self.prefix, self.patience.tries, &e))? {
            let (key, meta) = (entry.path().to_owned(), entry.metadata());
            if meta.is_file() && !key.ends_with('/') {
                let name = key.strip_prefix(&folder).unwrap_or(&key).to_owned();
                objects.push(self.object(name, key, meta));
            }
        }
        objects.sort_by(|a, b| a.name.cmp(&b.name));
        let one = objects.is_empty() && !self.prefix.is_empty();
        if one {
            let meta = self.patient.stat(&self.prefix).await;
            let meta = meta.map_err(|e| self.error(&self.prefix, self.patience.tries, &e))?;
            let name = self.prefix.rsplit('/').next().unwrap_or(&self.prefix).to_owned();
            objects.push(self.object(name, self.prefix.clone(), &meta));
        }
        Ok(Listing { objects, one, version: None })
    }

    async fn read(&self, object: &Object, range: std::ops::Range<u64>) -> Result<Body, StoreError> {
        let (here, key) = (self.clone(), object.key.clone());
        let held = self.service.version.held(object.etag.as_deref());
        let reader = self.once.reader_options(&object.key, held).await.map_err(|e| self.error(&object.key, 1, &e))?;
        let stream = reader.into_bytes_stream(range).await.map_err(|e| self.error(&object.key, 1, &e))?;
        let stream = stream.map_err(move |e| match e.get_ref().and_then(|e| e.downcast_ref::<opendal::Error>()) {
            Some(inner) => here.error(&key, 1, inner),
            None => here.broken(&key, 1, root_cause(&e)),
        });
        Ok(stream.boxed())
    }

    async fn again(&self, object: &Object) -> Result<Object, StoreError> {
        let meta = self.patient.stat(&object.key).await;
        let meta = meta.map_err(|e| self.error(&object.key, self.patience.tries, &e))?;
        Ok(self.object(object.name.clone(), object.key.clone(), &meta))
    }

    fn cut_short(&self, object: &Object, at: u64) -> StoreError {
        self.broken(&object.key, 1, format!("the answer ended at byte {at} of {}", object.bytes))
    }
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
    use mloc_core::task::spec::Location;

    use super::*;
    use crate::{Secret, StoreConfig};

    fn open(config: &StoreConfig, endpoint: &str) -> Result<Bucket, StoreError> {
        let location = Location::S3 {
            bucket: "b".into(),
            path: "/some/path/".into(),
            endpoint: Some(endpoint.into()),
            region: None,
        };
        crate::s3::open(&Store::new(config.clone()).unwrap(), &location)
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
        assert_eq!(Remote::url(&bucket, "x"), "s3://b/some/path/x");
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
