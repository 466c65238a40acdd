//! Task modules: settings to loop to artifacts. A new one is a file here and a line in [`registry`].

mod echo;

use std::collections::BTreeSet;

use mloc_exec::Module;

pub use self::echo::Echo;

/// Every module of this build.
pub fn registry() -> &'static [&'static dyn Module] {
    &[&Echo]
}

/// What a node with this build offers: each module's name and what it adds.
pub fn features() -> BTreeSet<String> {
    registry().iter().flat_map(|m| m.features().into_iter().chain([m.name().to_owned()])).collect()
}
