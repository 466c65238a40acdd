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
    /// Makes something to read from it. Touches the local disk, never the network.
    pub source: Open<Source>,
    /// Makes something to write to it, where it can be written.
    pub area: Option<Open<Box<dyn Area>>>,
    /// Whether other members have it: an offline node is still one of them.
    pub in_mesh: bool,
}

impl Kind {
    /// One that lies outside the mesh, or on this node's own disks.
    const fn of(name: &'static str, source: Open<Source>, area: Option<Open<Box<dyn Area>>>) -> Self {
        Self { name, source, area, in_mesh: false }
    }

    /// One that other members have.
    const fn in_mesh(name: &'static str, source: Open<Source>) -> Self {
        Self { name, source, area: None, in_mesh: true }
    }
}

/// All kinds.
pub(crate) const KINDS: &[Kind] = &[
    Kind::of("local", Folder::source, Some(Folder::area)),
    Kind::of("s3", s3::source, Some(s3::area)),
    Kind::of("gcs", gcs::source, Some(gcs::area)),
    Kind::in_mesh("submitted", Peer::source),
    // What it comes to where the task had no destination.
    Kind::in_mesh("task", Peer::source),
    Kind::of("azblob", azblob::source, Some(azblob::area)),
    Kind::of("huggingface", hub::source, Some(hub::area)),
    Kind::of("http", http::source, None),
    Kind::of("git", git::source, None),
];

/// What of a kind tasks ask for: `source:KIND`, `destination:KIND`.
pub(crate) fn features() -> impl Iterator<Item = String> {
    KINDS.iter().flat_map(|kind| {
        let area = kind.area.map(|_| format!("destination:{}", kind.name));
        [format!("source:{}", kind.name)].into_iter().chain(area)
    })
}

/// Something to read from.
pub(crate) fn source(store: &Store, location: &Location) -> Result<Source, StoreError> {
    let kind = of(location).ok_or_else(|| StoreError::unsupported(location))?;
    (kind.source)(store, location)
}

/// Something to write to.
pub(crate) fn area(store: &Store, location: &Location) -> Result<Box<dyn Area>, StoreError> {
    let open = of(location).and_then(|kind| kind.area).ok_or_else(|| StoreError::unsupported(location))?;
    open(store, location)
}

/// Whether other members have it.
pub(crate) fn in_mesh(location: &Location) -> bool {
    of(location).is_some_and(|kind| kind.in_mesh)
}

fn of(location: &Location) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.name == location.scheme())
}
