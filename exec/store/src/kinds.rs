//! The kinds of places this build reaches: one row each. What a node offers to tasks and what a location comes to are
//! both read from here, so a kind that is offered can be opened.

use mloc_core::task::spec::Location;

use crate::{
    Store, azblob,
    error::StoreError,
    folder::Folder,
    gcs, git, http, hub,
    peer::Peer,
    place::{Area, Source},
    s3,
};

/// How a location of some kind is opened.
type Open<T> = fn(&Store, &Location) -> Result<T, StoreError>;

/// A kind of place.
pub(crate) struct Kind {
    /// Its name: [`Location::scheme`].
    pub name: &'static str,
    /// Makes something to read from it, where it can be read. Touches the local disk, never the network.
    pub source: Option<Open<Source>>,
    /// Makes something to write to it, where it can be written.
    pub area: Option<Open<Box<dyn Area>>>,
}

/// All kinds.
pub(crate) const KINDS: &[Kind] = &[
    Kind { name: "local", source: Some(Folder::source), area: Some(Folder::area) },
    Kind { name: "s3", source: Some(s3::source), area: Some(s3::area) },
    Kind { name: "gcs", source: Some(gcs::source), area: Some(gcs::area) },
    Kind { name: "submitted", source: Some(Peer::source), area: None },
    // What it comes to where the task had no destination.
    Kind { name: "task", source: Some(Peer::source), area: None },
    Kind { name: "azblob", source: Some(azblob::source), area: Some(azblob::area) },
    Kind { name: "huggingface", source: Some(hub::source), area: Some(hub::area) },
    Kind { name: "http", source: Some(http::source), area: None },
    Kind { name: "git", source: Some(git::source), area: None },
];

/// What of a kind tasks ask for: `source:KIND`, `destination:KIND`.
pub(crate) fn features() -> impl Iterator<Item = String> {
    KINDS.iter().flat_map(|kind| {
        let source = kind.source.map(|_| format!("source:{}", kind.name));
        let area = kind.area.map(|_| format!("destination:{}", kind.name));
        source.into_iter().chain(area)
    })
}

/// Something to read from.
pub(crate) fn source(store: &Store, location: &Location) -> Result<Source, StoreError> {
    let open = of(location).and_then(|kind| kind.source).ok_or_else(|| StoreError::unsupported(location))?;
    open(store, location)
}

/// Something to write to.
pub(crate) fn area(store: &Store, location: &Location) -> Result<Box<dyn Area>, StoreError> {
    let open = of(location).and_then(|kind| kind.area).ok_or_else(|| StoreError::unsupported(location))?;
    open(store, location)
}

fn of(location: &Location) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.name == location.scheme())
}
