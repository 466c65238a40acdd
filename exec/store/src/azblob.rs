//! Azure Blob Storage: whose account, which endpoint, and what its refusals mean.

use mloc_core::task::spec::Location;
use opendal::services;

use crate::{
    Store,
    bucket::Bucket,
    error::StoreError,
    place::{Area, Source},
    service::{Service, Version},
};

/// What Azure Blob Storage says and how.
pub(crate) const AZBLOB: Service = Service {
    scheme: "az",
    bucket: "container",
    version: Version::Etag,
    no_bucket: &["ContainerNotFound"],
    own_fault: &[
        (
            "AuthenticationFailed",
            "the signature does not hold: check account and key (AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or store.azblob in node.yaml), whether the SAS token has expired, and this node's clock",
        ),
        (
            "AuthorizationFailure",
            "check account, key or SAS token (AZURE_STORAGE_* variables, or store.azblob in node.yaml), and whether the account's network rules let this node in",
        ),
        ("InvalidAuthenticationInfo", UNSIGNED),
        ("NoAuthenticationInformation", UNSIGNED),
    ],
    may_not: "the worker's credentials (AZURE_STORAGE_* variables or store.azblob in node.yaml) need list, read and, for destinations, create, write and delete on this container",
    unsigned: UNSIGNED,
};

const UNSIGNED: &str = "this node has no credentials for Azure Blob Storage: set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY (or AZURE_STORAGE_SAS_TOKEN) for the worker, or store.azblob in node.yaml (store.azblob.anonymous for public containers)";

/// A source.
pub(crate) fn source(store: &Store, location: &Location) -> Result<Source, StoreError> {
    Ok(Source::Remote(Box::new(open(store, location)?)))
}

/// A destination.
pub(crate) fn area(store: &Store, location: &Location) -> Result<Box<dyn Area>, StoreError> {
    Ok(Box::new(open(store, location)?))
}

/// The task's account and endpoint go before the node's, and those before the environment's.
fn open(store: &Store, location: &Location) -> Result<Bucket, StoreError> {
    let Location::Azblob { container, path, account, endpoint } = location else {
        return Err(StoreError::unsupported(location));
    };
    let azblob = &store.config.azblob;
    let env = |names: &[&str]| names.iter().find_map(|n| std::env::var(n).ok().filter(|v| !v.is_empty()));
    let account = account
        .clone()
        .or_else(|| azblob.account.clone())
        .or_else(|| env(&["AZURE_STORAGE_ACCOUNT_NAME", "AZBLOB_ACCOUNT_NAME"]));
    let of_account = || account.as_ref().map(|name| format!("https://{name}.blob.core.windows.net"));
    let endpoint = endpoint
        .clone()
        .or_else(|| azblob.endpoint.clone())
        .or_else(|| env(&["AZURE_STORAGE_ENDPOINT"]))
        .or_else(of_account)
        .ok_or_else(|| StoreError::Refused {
            place: format!("az://{container}/{path}"),
            found: "no storage account is named: in the task (`account`), as store.azblob.account in node.yaml, or as AZURE_STORAGE_ACCOUNT_NAME".into(),
        })?;
    let mut builder = services::Azblob::default().container(container).endpoint(&endpoint);
    if let Some(account) = &account {
        builder = builder.account_name(account);
    }
    if azblob.anonymous {
        builder = builder.skip_signature();
    } else if let Some(sas) = &azblob.sas_token {
        builder = builder.sas_token(sas.reveal().trim_start_matches('?'));
    } else if let Some(key) = &azblob.account_key {
        builder = builder.account_key(key.reveal());
    }
    Bucket::open(store, &AZBLOB, (container, path), &endpoint, builder)
}
