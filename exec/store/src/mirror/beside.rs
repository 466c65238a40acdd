//! An origin with mirrors beside it.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use futures::TryStreamExt;
use mloc_core::task::spec::Pin;

use crate::{
    error::StoreError,
    manifest::{MANIFEST, MANIFEST_BYTES_MAX, Manifest},
    patience::Patience,
    remote::{Body, Digest, Listing, Object, Remote},
};

/// An origin with mirrors beside it: what it is, the origin says; bytes come from the first mirror that has them.
#[derive(Debug)]
pub(crate) struct Beside {
    origin: Box<dyn Remote>,
    mirrors: Vec<Box<dyn Remote>>,
    /// Which mirror has which files, and what it calls them; none once it has failed.
    has: Mutex<Option<(usize, BTreeMap<String, Object>)>>,
    /// Whether any bytes were a mirror's.
    used: AtomicBool,
}

impl Beside {
    pub fn new(origin: Box<dyn Remote>, mirrors: Vec<Box<dyn Remote>>) -> Self {
        Self { origin, mirrors, has: Mutex::new(None), used: AtomicBool::new(false) }
    }

    /// Leaves the mirrors alone from now on, and says so. Whether bytes came from one of them until now.
    pub fn leave_mirrors(&self, why: &StoreError) -> bool {
        if let Some((mirror, _)) = self.has().take() {
            tracing::warn!(mirror = self.mirrors[mirror].url(""), %why, "the mirror fails: from here on the origin");
        }
        self.used.load(Ordering::SeqCst)
    }

    /// The origin alone.
    pub fn into_origin(self) -> Box<dyn Remote> {
        self.origin
    }

    fn has(&self) -> MutexGuard<'_, Option<(usize, BTreeMap<String, Object>)>> {
        self.has.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first mirror that answers, with what it has of these.
    async fn ask_mirrors(&self, wanted: &Listing) -> Option<(usize, BTreeMap<String, Object>)> {
        for (number, mirror) in self.mirrors.iter().enumerate() {
            if mirror.one_stream() && !self.origin.one_stream() {
                // It answers with all of a file, whichever part is asked for.
                tracing::info!(mirror = mirror.url(""), "the mirror gives no parts of files: passed over");
                continue;
            }
            match mirror.list(None).await {
                Ok(listing) => {
                    let has = pairs(wanted, &listing, |object| self.origin.at_mirror(object));
                    tracing::info!(
                        mirror = mirror.url(""),
                        files = has.len(),
                        of = wanted.objects.len(),
                        "from a mirror"
                    );
                    return Some((number, has));
                }
                Err(error) => tracing::warn!(mirror = mirror.url(""), %error, "the mirror does not give it"),
            }
        }
        None
    }

    /// What a result of ours says of its files: the bytes of its manifest are the origin's. A digest that a mirror's
    /// bytes are held to is the origin's, or its manifest's.
    async fn read_manifest(&self, listing: &mut Listing) -> Result<(), StoreError> {
        let Some(object) = listing.objects.iter().find(|o| o.name == MANIFEST && o.bytes <= MANIFEST_BYTES_MAX) else {
            return Ok(());
        };
        let blocks: Vec<_> = self.origin.read(object, 0..object.bytes).await?.try_collect().await?;
        let manifest = Manifest::read(&self.origin.url(MANIFEST), &blocks.concat())?;
        let digests: BTreeMap<_, _> = manifest.files.into_iter().map(|f| (f.path, f.sha256)).collect();
        for object in listing.objects.iter_mut().filter(|o| o.digest.is_none()) {
            object.digest = digests.get(&object.name).cloned().map(Digest::Sha256);
        }
        Ok(())
    }
}

/// Files of a mirror that may be those of the origin: named alike and of that size, and the origin says their digest.
fn pairs<'o>(
    wanted: &'o Listing,
    mirror: &Listing,
    called: impl Fn(&'o Object) -> &'o str,
) -> BTreeMap<String, Object> {
    let alone = wanted.one && mirror.one;
    let same = |object: &'o Object| {
        let name = called(object);
        mirror.objects.iter().find(|o| (alone || o.name == name) && o.bytes == object.bytes)
    };
    let known = wanted.objects.iter().filter(|object| object.digest.is_some());
    known.filter_map(|object| Some((object.name.clone(), same(object)?.clone()))).collect()
}

#[async_trait]
impl Remote for Beside {
    fn url(&self, name: &str) -> String {
        self.origin.url(name)
    }

    fn patience(&self) -> Patience {
        self.origin.patience()
    }

    async fn list(&self, pin: Option<&Pin>) -> Result<Listing, StoreError> {
        let mut listing = self.origin.list(pin).await?;
        if let Err(error) = self.read_manifest(&mut listing).await {
            tracing::debug!(place = self.url(MANIFEST), %error, "no digests from here");
        }
        if listing.objects.iter().any(|object| object.digest.is_some()) {
            let has = self.ask_mirrors(&listing).await;
            *self.has() = has;
        } else {
            tracing::info!(
                place = self.url(""),
                "says no digests, which a mirror's bytes could be held to: from the origin"
            );
        }
        Ok(listing)
    }

    async fn read(&self, object: &Object, range: Range<u64>) -> Result<Body, StoreError> {
        let from = {
            let has = self.has();
            has.as_ref().and_then(|(mirror, files)| Some((*mirror, files.get(&object.name)?.clone())))
        };
        if let Some((mirror, of_mirror)) = from {
            match self.mirrors[mirror].read(&of_mirror, range.clone()).await {
                Ok(body) => {
                    self.used.store(true, Ordering::SeqCst);
                    return Ok(body);
                }
                Err(error) => drop(self.leave_mirrors(&error)),
            }
        }
        self.origin.read(object, range).await
    }

    async fn again(&self, object: &Object) -> Result<Object, StoreError> {
        self.origin.again(object).await
    }

    fn one_stream(&self) -> bool {
        self.origin.one_stream()
    }

    fn cut_short(&self, object: &Object, at: u64) -> StoreError {
        self.origin.cut_short(object, at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(files: &[(&str, u64, Option<&str>)], one: bool) -> Listing {
        let object = |(name, bytes, sha256): &(&str, u64, Option<&str>)| Object {
            name: (*name).into(),
            key: format!("k/{name}"),
            bytes: *bytes,
            etag: None,
            digest: sha256.map(|sha256| Digest::Sha256(sha256.into())),
        };
        Listing { objects: files.iter().map(object).collect(), one, version: None }
    }

    #[test]
    fn only_what_can_be_held_to_a_digest_comes_from_a_mirror() {
        let origin =
            listing(&[("a", 1, Some("00")), ("b", 2, None), ("c", 3, Some("01")), ("d", 4, Some("02"))], false);
        let mirror = listing(&[("a", 1, None), ("b", 2, None), ("c", 9, None)], false);
        assert_eq!(pairs(&origin, &mirror, |o| &o.name).into_keys().collect::<Vec<_>>(), ["a"]);
        // One file is one file, whatever a header or a key calls it.
        let (one, other) = (listing(&[("x.bin", 1, Some("00"))], true), listing(&[("y", 1, None)], true));
        let pairs = pairs(&one, &other, |o| &o.name);
        assert_eq!(pairs["x.bin"].key, "k/y");
    }
}
