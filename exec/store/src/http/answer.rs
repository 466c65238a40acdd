//! What a web server's answers mean.

use reqwest::{
    StatusCode, Url,
    header::{CONTENT_RANGE, HeaderMap, HeaderValue},
};

use super::{BY_DIGEST, BY_TIME};
use crate::error::StoreError;

/// Bytes of the whole file, where the answer to a range says so.
pub(super) fn total(headers: &HeaderMap) -> Option<u64> {
    content_range(headers)?.rsplit_once('/')?.1.trim().parse().ok()
}

/// First byte of what came.
pub(super) fn start(headers: &HeaderMap) -> Option<u64> {
    content_range(headers)?.split_once('-')?.0.trim().parse().ok()
}

/// `0-0/1234` of `bytes 0-0/1234`.
fn content_range(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?.trim();
    let (unit, rest) = text.split_once(' ')?;
    unit.eq_ignore_ascii_case("bytes").then_some(rest)
}

/// What `If-Range` can hold a version by: a strong ETag, or a time.
pub(super) fn held(version: &str) -> Option<HeaderValue> {
    if version.starts_with(BY_DIGEST) || version.starts_with("W/") {
        return None;
    }
    HeaderValue::from_str(version.strip_prefix(BY_TIME).unwrap_or(version)).ok()
}

/// An answer that is not the file. `account`: whether one from node.yaml was shown.
pub(super) fn failed(status: StatusCode, url: &Url, account: bool) -> StoreError {
    const NO_ACCOUNT: &str = "if it is not for everybody, give the worker an account for this host: store.http in node.yaml (host and tokenFile)";
    const OLD_ACCOUNT: &str = "the account for this host in node.yaml (store.http) is not let in: has its token expired, and may it read this file?";
    let (place, found) = (url.to_string(), format!("HTTP {status}"));
    let endpoint = url.origin().ascii_serialization();
    let hint = if account { OLD_ACCOUNT } else { NO_ACCOUNT };
    match status.as_u16() {
        401 | 407 => StoreError::Denied { place, found, hint, here: true },
        403 => StoreError::Denied { place, found, hint, here: false },
        404 | 410 => StoreError::NotFound { place, found, hint: "check the URL: does it open in a browser?".into() },
        408 | 421 | 425 | 429 | 500..=599 => StoreError::Unreachable { place, endpoint, tries: 1, found },
        _ => StoreError::Refused { place, found },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        let of = |text: &'static str| HeaderMap::from_iter([(CONTENT_RANGE, HeaderValue::from_static(text))]);
        assert_eq!((total(&of("bytes 0-0/1234")), start(&of("bytes 7-9/1234"))), (Some(1234), Some(7)));
        assert_eq!((total(&of("bytes */0")), start(&of("bytes */0"))), (Some(0), None));
        assert_eq!((total(&of("bytes 0-0/*")), total(&of("lines 0-0/9"))), (None, None));
        assert_eq!(total(&HeaderMap::new()), None);
    }

    #[test]
    fn only_what_tells_bytes_apart_holds_a_version() {
        assert_eq!(held("\"abc\"").unwrap(), "\"abc\"");
        assert_eq!(held("modified Wed, 21 Oct 2026 07:28:00 GMT").unwrap(), "Wed, 21 Oct 2026 07:28:00 GMT");
        assert_eq!((held("W/\"abc\""), held("sha256:00ff")), (None, None));
    }
}
