//! Google Cloud Storage: whose account, which endpoint, and what its refusals mean.

use mloc_core::task::spec::Location;
use opendal::services;

use crate::{
    Store,
    bucket::Bucket,
    error::StoreError,
    place::{Area, Source},
    service::{Service, Version},
};

/// What Google Cloud Storage says and how.
pub(crate) const GCS: Service = Service {
    scheme: "gs",
    bucket: "bucket",
    version: Version::Generation,
    // It says `notFound` of a missing bucket and of a missing object alike.
    no_bucket: &[],
    own_fault: &[
        (
            "authError",
            "the worker's token is not valid, or not any more: check GOOGLE_APPLICATION_CREDENTIALS, or store.gcs.credentialFile or tokenFile in node.yaml, and this node's clock",
        ),
        ("required", UNSIGNED),
    ],
    may_not: "the worker's credentials (GOOGLE_APPLICATION_CREDENTIALS or store.gcs in node.yaml) need storage.objects.list, .get and, for destinations, .create and .delete on this bucket",
    unsigned: UNSIGNED,
};

const UNSIGNED: &str = "this node has no credentials for Google Cloud Storage: set GOOGLE_APPLICATION_CREDENTIALS for the worker, or store.gcs in node.yaml (store.gcs.anonymous for public buckets)";

/// A source.
pub(crate) fn source(store: &Store, location: &Location) -> Result<Source, StoreError> {
    Ok(Source::Remote(Box::new(open(store, location)?)))
}

/// A destination.
pub(crate) fn area(store: &Store, location: &Location) -> Result<Box<dyn Area>, StoreError> {
    Ok(Box::new(open(store, location)?))
}

/// The task's endpoint goes before the node's, and that before Google's own.
fn open(store: &Store, location: &Location) -> Result<Bucket, StoreError> {
    let Location::Gcs { bucket, path, endpoint } = location else {
        return Err(StoreError::unsupported(location));
    };
    let gcs = &store.config.gcs;
    let own = endpoint.clone().or_else(|| gcs.endpoint.clone());
    let endpoint = own.clone().unwrap_or_else(|| "https://storage.googleapis.com".into());
    let endpoint = endpoint.trim_end_matches('/');
    let mut builder = services::Gcs::default().bucket(bucket).endpoint(endpoint);
    if own.is_some() {
        // An endpoint of one's own is no cloud of Google's: asking its metadata service would only cost a timeout.
        builder = builder.disable_vm_metadata();
    }
    if gcs.anonymous {
        builder = builder.skip_signature();
    } else if let Some(token) = &gcs.token {
        builder = builder.token(token.reveal().to_owned());
    } else if let Some(file) = &gcs.credential_file {
        builder = builder.credential_path(&file.display().to_string());
    }
    Bucket::open(store, &GCS, (bucket, path), endpoint, builder)
}
