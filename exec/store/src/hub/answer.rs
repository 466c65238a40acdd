//! What the Hub says when it does not give what was asked, as errors a user can act on.

use std::time::Duration;

use reqwest::header::HeaderMap;
use serde::Deserialize;

use crate::{error::StoreError, hub::repo::Repo};

/// An answer that is no success.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The Hub's own code, such as `RepoNotFound`.
    pub code: Option<String>,
    /// Its words.
    pub words: String,
    /// When to come again.
    pub wait: Option<Duration>,
}

#[derive(Deserialize)]
struct Body {
    error: serde_json::Value,
}

impl Answer {
    /// From the parts of a response.
    pub fn of(status: u16, headers: &HeaderMap, body: &[u8]) -> Self {
        let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let said = serde_json::from_slice::<Body>(body).ok().map(|body| match body.error {
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        });
        let words = header("x-error-message").or(said).unwrap_or_default();
        let wait = header("retry-after").and_then(|v| v.trim().parse().ok()).or_else(|| reset(&header("ratelimit")?));
        Self { status, code: header("x-error-code"), words, wait: wait.map(Duration::from_secs) }
    }

    fn is(&self, code: &str) -> bool {
        self.code.as_deref() == Some(code)
    }

    /// Whether it says that the repository has no such revision.
    pub fn no_revision(&self) -> bool {
        self.is("RevisionNotFound")
    }

    /// Whether it says that the revision has no such file.
    pub fn no_entry(&self) -> bool {
        self.is("EntryNotFound")
    }

    /// Whether it may mean that the repository is not there. The Hub says so of private ones too.
    pub fn no_repo(&self) -> bool {
        self.is("RepoNotFound") || (self.code.is_none() && matches!(self.status, 401 | 404) && !self.bad_token())
    }

    /// Whether the token itself is at fault.
    fn bad_token(&self) -> bool {
        let words = self.words.to_ascii_lowercase();
        self.status == 401
            && (words.contains("invalid credentials") || words.contains("token") && words.contains("expired"))
    }

    /// As text.
    fn found(&self) -> String {
        if self.words.is_empty() {
            format!("HTTP {}", self.status)
        } else {
            format!("HTTP {}: {}", self.status, self.words)
        }
    }

    /// As an error.
    pub fn error(&self, asked: &Asked<'_>) -> StoreError {
        let Asked { place, repo, endpoint, has_token, writes } = asked;
        let place = (*place).to_owned();
        let declined =
            |found: String, hint: String, here: bool| StoreError::Hub { place: place.clone(), found, hint, here };
        let (kind, id, page) = (repo.called(), &repo.id, format!("{}/{}{}", endpoint, repo.prefix(), repo.id));
        if self.status == 429 {
            let hint = match has_token {
                true => "the task will be tried again",
                false => {
                    "give the worker a token (HF_TOKEN), for limits are higher with one; the task will be tried again"
                }
            };
            return StoreError::Busy { place, found: self.found(), hint, wait: self.wait };
        }
        if self.status == 408 || self.status >= 500 {
            let found = self.found();
            return StoreError::Unreachable { place, endpoint: (*endpoint).to_owned(), tries: 1, found };
        }
        if self.bad_token() {
            return declined(
                format!("{endpoint} does not know this node's token: {}", self.words),
                "the token has expired, was revoked or is mistyped: give the worker another one, as HF_TOKEN or \
                 store.huggingface.tokenFile in node.yaml"
                    .into(),
                true,
            );
        }
        if self.is("GatedRepo") {
            let hint = if *has_token {
                format!("ask for access at {page} with the account that this node's token belongs to")
            } else {
                format!("ask for access at {page}, and give the worker that account's token (HF_TOKEN)")
            };
            return declined(format!("the {kind} is gated: {}", self.found()), hint, true);
        }
        if self.no_revision() {
            return StoreError::NotFound { place, found: "no such revision".into(), hint: format!("see {page}/refs") };
        }
        if self.no_entry() {
            let found = "no such file in this revision".into();
            return StoreError::NotFound { place, found, hint: format!("see {page}/tree/main") };
        }
        if self.no_repo() {
            let seen = if *has_token { "the account of this node's token" } else { "this node, which has no token," };
            return declined(
                format!("{endpoint} has no {kind} `{id}`, or it is private and {seen} may not see it"),
                format!(
                    "check the name (models and data sets have name spaces of their own); for a private one, give the \
                     worker a token that may {} it, as HF_TOKEN or store.huggingface.tokenFile in node.yaml",
                    if *writes { "write to" } else { "read" }
                ),
                !*has_token,
            );
        }
        if matches!(self.status, 401 | 403) {
            let may = if *writes { "write to" } else { "read" };
            return declined(
                format!("access denied: {}", self.found()),
                format!("this node's token needs the right to {may} {page}"),
                true,
            );
        }
        declined(format!("refused: {}", self.found()), format!("look at {page}"), false)
    }
}

/// What was asked, for the words of the error.
#[derive(Clone, Debug)]
pub(super) struct Asked<'a> {
    /// The place.
    pub place: &'a str,
    /// The repository.
    pub repo: &'a Repo,
    /// The Hub.
    pub endpoint: &'a str,
    /// Whether this node has a token.
    pub has_token: bool,
    /// Whether something is to be written.
    pub writes: bool,
}

/// Seconds until the window is over: `"api";r=0;t=55`.
fn reset(header: &str) -> Option<u64> {
    header.split(';').find_map(|part| part.trim().strip_prefix("t=")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use mloc_core::{ledger::entry::FailureClass, task::spec::HubRepo};
    use reqwest::header::{HeaderName, HeaderValue};

    use super::*;

    fn answer(status: u16, headers: &[(&'static str, &'static str)], body: &str) -> Answer {
        let headers = headers.iter().map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v)));
        Answer::of(status, &headers.collect(), body.as_bytes())
    }

    #[test]
    fn each_refusal_says_what_would_work() {
        let repo = Repo { kind: HubRepo::Dataset, id: "org/data".into() };
        let token = "Invalid credentials in Authorization header";
        let cases = [
            ("missing or private, no token", answer(401, &[], "{\"error\":\"Invalid username or password.\"}"), false),
            ("missing or private, token", answer(404, &[("x-error-code", "RepoNotFound")], "{\"error\":\"x\"}"), true),
            ("gated", answer(403, &[("x-error-code", "GatedRepo"), ("x-error-message", "Ask for it.")], ""), true),
            ("no revision", answer(404, &[("x-error-code", "RevisionNotFound")], ""), true),
            ("no file", answer(404, &[("x-error-code", "EntryNotFound")], ""), true),
            ("expired token", answer(401, &[("x-error-message", token)], ""), true),
            ("may not read", answer(403, &[], "{\"error\":\"Forbidden\"}"), true),
            ("busy", answer(429, &[("retry-after", "55")], "{\"error\":\"slow down\"}"), false),
            ("busy by the other header, with a token", answer(429, &[("ratelimit", "\"api\";r=0;t=7")], ""), true),
            ("down", answer(503, &[], "<html>"), false),
            ("else", answer(400, &[], "{\"error\":\"Bad\"}"), true),
        ];
        let mut said = String::new();
        for (what, answer, has_token) in cases {
            let asked = Asked {
                place: "hf://datasets/org/data",
                repo: &repo,
                endpoint: "https://hub",
                has_token,
                writes: false,
            };
            let error = answer.error(&asked);
            let class = if error.class() == FailureClass::Retryable { "retryable" } else { "fatal" };
            said.push_str(&format!("# {what} ({class})\n{error}\n"));
        }
        insta::assert_snapshot!(said);
        assert_eq!(answer(429, &[("ratelimit", "\"api\";r=0;t=7")], "").wait, Some(Duration::from_secs(7)));
    }
}
