//! A large file to the Hub's store, by the calls of Git LFS: whole, or in parts where the Hub wants them. Nobody sees it
//! there before a commit names it.

use std::path::{Path, PathBuf};

use futures::{StreamExt, TryStreamExt, stream};
use mloc_exec::failpoint;
use reqwest::{
    Method, RequestBuilder, Url,
    header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use super::Branch;
use crate::{disk::Stamp, error::StoreError, meter::Meter, patience::patiently};

/// What git-lfs servers take and give.
const LFS: &str = "application/vnd.git-lfs+json";
/// A part of a file on its way.
const BLOCK: usize = 256 << 10;

#[derive(Deserialize)]
struct Batch {
    objects: Vec<BatchObject>,
}

#[derive(Deserialize)]
struct BatchObject {
    /// Absent: the store has these bytes already.
    #[serde(default)]
    actions: Option<Actions>,
    error: Option<BatchError>,
}

#[derive(Deserialize)]
struct BatchError {
    code: u16,
    message: String,
}

#[derive(Deserialize)]
struct Actions {
    upload: Option<Action>,
    verify: Option<Action>,
}

#[derive(Deserialize)]
struct Action {
    href: String,
    #[serde(default)]
    header: serde_json::Map<String, Value>,
}

impl Branch {
    /// Sends a file's bytes to the Hub's store, unless they are there; again with new addresses when it breaks off.
    pub(super) async fn send(&self, path: &str, from: &Path, stamp: &Stamp, meter: &Meter) -> Result<(), StoreError> {
        let api = &self.place.api;
        let place = api.repo.url(&self.place.revision, path);
        let (place, patience) = (&place, api.patience);
        patiently(patience, || async {
            let meter = meter.of_one_file();
            self.send_once(place, from, stamp, &meter).await.inspect_err(|_| meter.start_over())
        })
        .await
    }

    async fn send_once(&self, place: &str, from: &Path, stamp: &Stamp, meter: &Meter) -> Result<(), StoreError> {
        let api = &self.place.api;
        let repo = format!("{}.git", api.repo.id);
        let kind = api.repo.prefix().trim_end_matches('/');
        let parts = [kind].into_iter().filter(|kind| !kind.is_empty()).chain(repo.split('/'));
        let body = json!({
            "operation": "upload", "transfers": ["basic", "multipart"], "hash_algo": "sha256",
            "ref": {"name": self.place.revision}, "objects": [{"oid": stamp.sha256, "size": stamp.bytes}]
        })
        .to_string();
        let fill = |request: RequestBuilder| request.header("accept", LFS).header(CONTENT_TYPE, LFS).body(body.clone());
        let url = api.at(parts.chain(["info", "lfs", "objects", "batch"]));
        let batch = api.tell::<Batch>(place, &url, &fill).await.map_err(|failed| failed.into_error(api, place))?;
        let object = batch.objects.into_iter().next();
        let object = object.ok_or_else(|| api.broken(place, "its answer names no object".into()))?;
        if let Some(BatchError { code, message }) = object.error {
            return Err(StoreError::Hub {
                place: place.to_owned(),
                found: format!("the Hub's store takes no such file: {code}: {message}"),
                hint: format!("look at {}/{}{}", api.endpoint(), api.repo.prefix(), api.repo.id),
                here: false,
            });
        }
        let actions = object.actions.unwrap_or(Actions { upload: None, verify: None });
        let Some(upload) = actions.upload else {
            meter.found(stamp.bytes);
            return Ok(());
        };
        match upload.header.get("chunk_size").map(number) {
            None => {
                let headers =
                    upload.header.iter().filter_map(|(k, v)| Some((k.as_str(), v.as_str()?))).collect::<Vec<_>>();
                self.put_part(place, &upload.href, from, 0..stamp.bytes, &headers, meter).await?;
            }
            Some(chunk) => self.put_parts(place, &upload, chunk, from, stamp, meter).await?,
        }
        if let Some(verify) = actions.verify {
            let url = self.address(place, &verify.href)?;
            let body = json!({"oid": stamp.sha256, "size": stamp.bytes});
            let verified = api.ask(place, Method::POST, &url, &|request| request.json(&body)).await;
            verified.map(drop).map_err(|failed| failed.into_error(api, place))?;
        }
        failpoint::reached("store.upload.done");
        Ok(())
    }

    /// A file in parts: the header names their addresses by number.
    async fn put_parts(
        &self,
        place: &str,
        upload: &Action,
        chunk: Option<u64>,
        from: &Path,
        stamp: &Stamp,
        meter: &Meter,
    ) -> Result<(), StoreError> {
        let api = &self.place.api;
        let mut parts: Vec<(u64, &str)> =
            upload.header.iter().filter_map(|(key, href)| Some((key.parse().ok()?, href.as_str()?))).collect();
        parts.sort_unstable();
        let chunk = chunk.filter(|chunk| *chunk > 0 && stamp.bytes.div_ceil(*chunk) == parts.len() as u64);
        let Some(chunk) = chunk else {
            return Err(api.broken(place, "its parts do not make up the file".into()));
        };
        let mut etags = Vec::with_capacity(parts.len());
        for (index, (number, href)) in parts.into_iter().enumerate() {
            let start = index as u64 * chunk;
            let range = start..(start + chunk).min(stamp.bytes);
            let etag = self.put_part(place, href, from, range, &[], meter).await?;
            let etag = etag.ok_or_else(|| api.broken(place, format!("its store gave part {number} no ETag")))?;
            etags.push(json!({"partNumber": number, "etag": etag}));
            failpoint::reached("store.upload.part");
        }
        let body = json!({"oid": stamp.sha256, "parts": etags}).to_string();
        let fill = |request: RequestBuilder| request.header("accept", LFS).header(CONTENT_TYPE, LFS).body(body.clone());
        let url = self.address(place, &upload.href)?;
        let done = api.ask(place, Method::POST, &url, &fill).await;
        done.map(drop).map_err(|failed| failed.into_error(api, place))
    }

    /// Puts a part of a file to a signed address, once; its ETag.
    async fn put_part(
        &self,
        place: &str,
        href: &str,
        from: &Path,
        range: std::ops::Range<u64>,
        headers: &[(&str, &str)],
        meter: &Meter,
    ) -> Result<Option<String>, StoreError> {
        let api = &self.place.api;
        let url = self.address(place, href)?;
        let fill = |request: RequestBuilder| {
            let request = request.header(CONTENT_LENGTH, range.end - range.start);
            let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
            request.body(body(from.to_owned(), range.clone(), meter.clone()))
        };
        let (_, response) = api.once(place, &Method::PUT, &url, &fill).await?;
        if response.status().is_success() {
            return Ok(response.headers().get(ETAG).and_then(|v| v.to_str().ok()).map(str::to_owned));
        }
        // A signed address that is over, a store that is busy: the next try asks for a new one.
        let status = response.status().as_u16();
        let answer = api.refusal(response).await;
        Err(api.broken(place, format!("its store answers HTTP {status}: {}", answer.words)))
    }

    /// An address the Hub gives. Behind a mirror it may name the Hub itself.
    fn address(&self, place: &str, href: &str) -> Result<Url, StoreError> {
        let api = &self.place.api;
        let mirrored = href.strip_prefix("https://huggingface.co/").map(|rest| format!("{}/{rest}", api.endpoint()));
        Url::parse(mirrored.as_deref().unwrap_or(href)).map_err(|e| api.broken(place, format!("`{href}`: {e}")))
    }
}

fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

/// A part of a file as the body of a request.
fn body(path: PathBuf, range: std::ops::Range<u64>, meter: Meter) -> reqwest::Body {
    let opened = async move {
        let mut file = tokio::fs::File::open(&path).await?;
        file.seek(std::io::SeekFrom::Start(range.start)).await?;
        Ok::<_, std::io::Error>(ReaderStream::with_capacity(file.take(range.end - range.start), BLOCK))
    };
    let blocks = stream::once(opened).try_flatten().and_then(move |block| {
        let meter = meter.clone();
        async move {
            meter.pass(block.len() as u64).await;
            meter.moved(block.len() as u64);
            Ok(block)
        }
    });
    reqwest::Body::wrap_stream(blocks.boxed())
}
