//! S3 and what speaks like it: whose account, which endpoint, and what its refusals mean.

use mloc_core::task::spec::Location;
use opendal::services;

use crate::{
    Secret, Store,
    bucket::Bucket,
    error::StoreError,
    place::{Area, Source},
    service::{Service, Version},
};

/// What S3 says and how.
pub(crate) const S3: Service = Service {
    scheme: "s3",
    bucket: "bucket",
    version: Version::Etag,
    no_bucket: &["NoSuchBucket"],
    own_fault: &[
        ("RequestTimeTooSkewed", "set this node's clock"),
        (
            "InvalidAccessKeyId",
            "this endpoint does not know the access key id: check the worker's AWS_ACCESS_KEY_ID or s3.accessKeyIdFile in node.yaml",
        ),
        (
            "SignatureDoesNotMatch",
            "the secret does not belong to the access key id: check the worker's AWS_SECRET_ACCESS_KEY or s3.secretAccessKeyFile in node.yaml",
        ),
        ("ExpiredToken", FRESH),
        ("InvalidToken", FRESH),
        ("TokenRefreshRequired", FRESH),
    ],
    may_not: "the worker's credentials (AWS_* variables or s3 in node.yaml) need list, read and, for destinations, write on this path",
    unsigned: "this node has no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for the worker, or s3 in node.yaml (s3.anonymous for public buckets)",
};

const FRESH: &str = "give the worker fresh credentials: AWS_SESSION_TOKEN, or s3.sessionTokenFile in node.yaml";

/// A source.
pub(crate) fn source(store: &Store, location: &Location) -> Result<Source, StoreError> {
    Ok(Source::Remote(Box::new(open(store, location)?)))
}

/// A destination.
pub(crate) fn area(store: &Store, location: &Location) -> Result<Box<dyn Area>, StoreError> {
    Ok(Box::new(open(store, location)?))
}

/// The task's endpoint and region go before the node's, and those before the environment's.
pub(crate) fn open(store: &Store, location: &Location) -> Result<Bucket, StoreError> {
    let Location::S3 { bucket, path, endpoint, region } = location else {
        return Err(StoreError::unsupported(location));
    };
    let s3 = &store.config.s3;
    let env = |names: &[&str]| names.iter().find_map(|n| std::env::var(n).ok().filter(|v| !v.is_empty()));
    let endpoint =
        endpoint.clone().or_else(|| s3.endpoint.clone()).or_else(|| env(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]));
    let region = region
        .clone()
        .or_else(|| s3.region.clone())
        .or_else(|| env(&["AWS_REGION", "AWS_DEFAULT_REGION"]))
        .unwrap_or_else(|| "us-east-1".into());
    let mut builder = services::S3::default().bucket(bucket).region(&region);
    if let Some(endpoint) = &endpoint {
        // An endpoint of one's own is no EC2: asking its metadata service would only cost a timeout.
        builder = builder.endpoint(endpoint).disable_ec2_metadata();
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
    let endpoint = endpoint.unwrap_or_else(|| format!("https://s3.{region}.amazonaws.com"));
    Bucket::open(store, &S3, (bucket, path), &endpoint, builder)
}
