//! What a location names on the Hub.

use mloc_core::task::spec::{HubRepo, Location};

use crate::{Store, error::StoreError, hub::api::Api};

/// Where the Hub is, unless somebody says otherwise.
const ENDPOINT: &str = "https://huggingface.co";

/// A repository of the Hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Repo {
    /// Models and data sets have name spaces of their own.
    pub kind: HubRepo,
    /// `owner/name`.
    pub id: String,
}

impl Repo {
    /// As it begins in addresses of the API.
    pub fn api(&self) -> &'static str {
        match self.kind {
            HubRepo::Model => "models",
            HubRepo::Dataset => "datasets",
        }
    }

    /// What stands before the id in other addresses.
    pub fn prefix(&self) -> &'static str {
        match self.kind {
            HubRepo::Model => "",
            HubRepo::Dataset => "datasets/",
        }
    }

    /// For people.
    pub fn called(&self) -> &'static str {
        match self.kind {
            HubRepo::Model => "model",
            HubRepo::Dataset => "data set",
        }
    }

    /// `hf://owner/name@revision/path`, as the Hub's own tools write it.
    pub fn url(&self, revision: &str, path: &str) -> String {
        let at = if revision == "main" { String::new() } else { format!("@{revision}") };
        let path = if path.is_empty() { String::new() } else { format!("/{path}") };
        format!("hf://{}{}{at}{path}", self.prefix(), self.id)
    }
}

/// A part of a repository in a revision, and the way to it.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// The way.
    pub api: Api,
    /// Branch, tag or commit.
    pub revision: String,
    /// A file, a folder or a pattern.
    pub path: Option<String>,
    /// Configuration of a data set.
    pub config: Option<String>,
    /// Splits of a data set, slices included.
    pub split: Option<String>,
}

impl Place {
    /// What a location names. Sends nothing.
    pub fn of(store: &Store, location: &Location) -> Result<Self, StoreError> {
        let Location::HuggingFace { identifier, revision, repo, path, config, split } = location else {
            return Err(StoreError::Unsupported { scheme: location.scheme() });
        };
        let repo = Repo { kind: *repo, id: identifier.clone() };
        let ours = &store.config.hugging_face;
        let env = |names: &[&str]| names.iter().find_map(|n| std::env::var(n).ok().filter(|v| !v.is_empty()));
        let endpoint = ours.endpoint.clone().or_else(|| env(&["HF_ENDPOINT"])).unwrap_or_else(|| ENDPOINT.to_owned());
        let token = ours.token.clone();
        let token = token.or_else(|| env(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]).map(crate::Secret::new));
        Ok(Self {
            api: Api::new(store, repo, &endpoint, token)?,
            revision: revision.clone(),
            path: path.clone(),
            config: config.clone(),
            split: split.clone(),
        })
    }

    /// For people: the place, or a file below it.
    pub fn url(&self, name: &str) -> String {
        let path = match (self.path.as_deref(), name) {
            (None, name) => name.to_owned(),
            (Some(path), "") => path.to_owned(),
            (Some(path), name) => format!("{path}/{name}"),
        };
        self.api.repo.url(&self.revision, &path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_written_as_the_hubs_own_tools_write_them() {
        let model = Repo { kind: HubRepo::Model, id: "a/b".into() };
        let data = Repo { kind: HubRepo::Dataset, id: "a/b".into() };
        assert_eq!(model.url("main", ""), "hf://a/b");
        assert_eq!(model.url("v1", "x/y.json"), "hf://a/b@v1/x/y.json");
        assert_eq!(data.url("main", "train.jsonl"), "hf://datasets/a/b/train.jsonl");
    }
}
