//! What differs from one object store to the next: names, versions, and the words of its refusals. All else is
//! [`crate::bucket`]'s.

use opendal::{Metadata, options::ReaderOptions};

use crate::answer::Answer;

/// A kind of object store.
#[derive(Debug)]
pub(crate) struct Service {
    /// Before `://` in a place's URL.
    pub scheme: &'static str,
    /// What it calls a bucket.
    pub bucket: &'static str,
    /// What holds the version of an object's bytes.
    pub version: Version,
    /// Codes that say that the bucket itself is missing.
    pub no_bucket: &'static [&'static str],
    /// Codes of a denial that blame this node's own credentials or clock, with what would work.
    pub own_fault: &'static [(&'static str, &'static str)],
    /// What would work after any other denial: this node is known, and may not.
    pub may_not: &'static str,
    /// What would work where there is nothing to sign a request with.
    pub unsigned: &'static str,
}

/// What tells one version of an object from the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// Its ETag, held with If-Match.
    Etag,
    /// Its generation, held with ifGenerationMatch: Google's ETags change with the metadata too.
    Generation,
}

impl Version {
    /// The version in what a listing or a look said.
    pub fn of(self, meta: &Metadata) -> Option<String> {
        match self {
            Version::Etag => meta.etag().map(str::to_owned),
            Version::Generation => meta.version().map(str::to_owned),
        }
    }

    /// Reads that version or nothing.
    pub fn held(self, version: Option<&str>) -> ReaderOptions {
        let version = version.map(str::to_owned);
        match self {
            Version::Etag => ReaderOptions { if_match: version, ..ReaderOptions::default() },
            Version::Generation => ReaderOptions { if_version_match: version, ..ReaderOptions::default() },
        }
    }
}

impl Service {
    /// Whether access was denied for this node's own credentials or clock, not for what they may not do; and what would
    /// work.
    pub fn denial(&self, answer: &Answer) -> (bool, &'static str) {
        let own = self.own_fault.iter().find(|(code, _)| answer.is(code));
        own.map_or((false, self.may_not), |(_, hint)| (true, hint))
    }

    /// Whether an answer that opendal has no kind for is a denial.
    pub fn denies(&self, answer: &Answer) -> bool {
        answer.status == Some(401) || self.own_fault.iter().any(|(code, _)| answer.is(code))
    }

    /// Whether the bucket itself is missing.
    pub fn lacks_bucket(&self, answer: &Answer) -> bool {
        self.no_bucket.iter().any(|code| answer.is(code))
    }
}
