//! Which bytes of a file a request asks for (RFC 9110, one range of bytes).

use std::ops::Range;

use axum::http::{HeaderMap, header};

/// What is wanted of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// All of it.
    Whole,
    /// These bytes.
    Part(Range<u64>),
    /// Bytes it does not have.
    Beyond,
}

/// What the headers say. Several ranges, other units and nonsense count as not said, as the RFC allows; so does a range
/// of another version of the file (`If-Range`).
pub(crate) fn wanted(headers: &HeaderMap, etag: &str, total: u64) -> Wanted {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(range) = text(header::RANGE).and_then(|range| range.trim().strip_prefix("bytes=")) else {
        return Wanted::Whole;
    };
    if text(header::IF_RANGE).is_some_and(|version| version != etag) {
        return Wanted::Whole;
    }
    let Some((from, to)) = range.split_once('-') else { return Wanted::Whole };
    let number = |text: &str| text.trim().parse::<u64>();
    let part = match (number(from), number(to)) {
        (Ok(from), Ok(to)) if from <= to => from..to.saturating_add(1).min(total),
        (Ok(from), Err(_)) if to.trim().is_empty() => from..total,
        (Err(_), Ok(last)) if from.trim().is_empty() => total.saturating_sub(last)..total,
        _ => return Wanted::Whole,
    };
    if part.start < part.end { Wanted::Part(part) } else { Wanted::Beyond }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(range: &str, if_range: Option<&str>) -> Wanted {
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, range.parse().unwrap());
        if let Some(version) = if_range {
            headers.insert(header::IF_RANGE, version.parse().unwrap());
        }
        wanted(&headers, "\"v1\"", 100)
    }

    #[test]
    fn one_range_of_bytes_is_understood_and_nothing_else() {
        assert_eq!(wanted(&HeaderMap::new(), "", 100), Wanted::Whole);
        for (range, part) in [
            ("bytes=0-", 0..100),
            ("bytes=40-", 40..100),
            ("bytes=40-49", 40..50),
            ("bytes=40-4000", 40..100),
            ("bytes=-7", 93..100),
            ("bytes=-700", 0..100),
        ] {
            assert_eq!(of(range, None), Wanted::Part(part), "{range}");
        }
        for whole in ["bytes=1-2,4-5", "lines=1-2", "bytes=x-", "bytes=5-4", "bytes=", "bytes=-", "bytes=5-x"] {
            assert_eq!(of(whole, None), Wanted::Whole, "{whole}");
        }
        for beyond in ["bytes=100-", "bytes=100-200", "bytes=-0"] {
            assert_eq!(of(beyond, None), Wanted::Beyond, "{beyond}");
        }
        assert_eq!(of("bytes=1-1", Some("\"v1\"")), Wanted::Part(1..2));
        assert_eq!(of("bytes=1-1", Some("\"v2\"")), Wanted::Whole);
    }
}
