//! What a file from the web is called here. Its format is told by its name, so the server's word for it goes first.

use reqwest::{
    Url,
    header::{CONTENT_DISPOSITION, HeaderMap},
};

use crate::disk;

/// What it is called when nobody has a word for it.
const NAMELESS: &str = "file";
/// Longer names no file system takes.
const BYTES_MAX: usize = 200;

/// The name in `Content-Disposition`, or the last part of the URL's path.
pub(super) fn of(headers: &HeaderMap, url: &Url) -> String {
    let said = headers.get(CONTENT_DISPOSITION).and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
    let last = url.path_segments().and_then(|mut parts| parts.next_back()).map(decoded);
    let named = said.and_then(disposition).and_then(|name| plain(&name));
    named.or_else(|| plain(&last?)).unwrap_or_else(|| NAMELESS.into())
}

/// `filename*=UTF-8''…` goes before `filename="…"`.
fn disposition(header: &str) -> Option<String> {
    let parameter = |wanted: &str| {
        header.split(';').skip(1).find_map(|part| {
            let (name, value) = part.split_once('=')?;
            name.trim().eq_ignore_ascii_case(wanted).then(|| value.trim())
        })
    };
    let extended = parameter("filename*").and_then(|value| value.split_once("''").map(|(_, name)| decoded(name)));
    extended.or_else(|| parameter("filename").map(|value| value.trim_matches('"').to_owned()))
}

/// Without folders and signs that mean something elsewhere; `None` when nothing is left of it.
fn plain(name: &str) -> Option<String> {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let kept: String = last.chars().filter(|c| !c.is_control()).collect();
    let kept = kept.trim();
    (kept.len() <= BYTES_MAX && disk::below(kept).is_some()).then(|| kept.to_owned())
}

/// `%20` as the sign it stands for. What is no text stays as it is.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = after.get(..2).filter(|_| *first == b'%').and_then(|two| hex::decode(two).ok());
        match hex {
            Some(byte) => {
                bytes.extend(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    fn named(url: &str, said: &'static str) -> String {
        let headers = match said {
            "" => HeaderMap::new(),
            said => HeaderMap::from_iter([(CONTENT_DISPOSITION, HeaderValue::from_bytes(said.as_bytes()).unwrap())]),
        };
        of(&headers, &Url::parse(url).unwrap())
    }

    #[test]
    fn a_file_is_called_what_the_server_or_the_url_says() {
        let url = "https://host/data/train%20set.jsonl?download=1";
        assert_eq!(named(url, ""), "train set.jsonl");
        assert_eq!(named(url, "attachment; filename=\"a.parquet\""), "a.parquet");
        assert_eq!(named(url, "attachment; filename=\"x\"; filename*=UTF-8''d%C3%A9j%C3%A0.csv"), "déjà.csv");
        assert_eq!(named("https://host/", ""), "file");
        assert_eq!(named("https://host", "inline"), "file");
    }

    #[test]
    fn a_name_leads_nowhere_else() {
        let url = "https://host/a.txt";
        for trick in ["../../etc/passwd", "/etc/passwd", "..\\..\\passwd", "%2e%2e/passwd"] {
            let said: &'static str = format!("attachment; filename=\"{trick}\"").leak();
            assert_eq!(named(url, said), "passwd", "{trick}");
        }
        for trick in ["..", ".", "", ".mloc-pull", " "] {
            let said: &'static str = format!("attachment; filename=\"{trick}\"").leak();
            assert_eq!(named(url, said), "a.txt", "{trick}");
        }
        assert_eq!(named("https://host/%2e%2e", ""), "file");
        assert_eq!(named("https://host/..%2f..%2fetc%2fpasswd", ""), "passwd");
    }
}
