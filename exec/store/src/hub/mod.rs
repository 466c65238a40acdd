//! Repositories of the Hugging Face Hub, models and data sets, over its plain HTTP.
//!
//! ```text
//! repo     what a location names: a repository, a revision, a part of it
//! api      requests: redirects, patience, who gets the token      answer   the Hub's words as errors
//! source   a repository at one commit, to be pulled
//!   model    which files of a model training needs
//!   dataset  which files are those of a configuration and a split      card   what README.md says of that
//! upload   a result as one commit     large   files that go ahead of it, to the Hub's store
//! ```
//! What a source was is pinned as a commit: a branch or tag that moves on takes no task with it.
//!
//! Files that the Hub keeps in Xet storage need no client of their own: its bridge serves them at the same address, as
//! one redirect to the whole file, and what is uploaded by the Git LFS calls used here is moved to Xet storage by the
//! Hub itself. Chunks that two versions share are fetched twice; that is the price.
//!
//! Deliberately absent: spaces, pull requests, and data sets that are made by a script.

mod answer;
mod api;
mod card;
mod dataset;
mod model;
mod repo;
mod source;
mod upload;

pub(crate) use self::{source::source, upload::area};
