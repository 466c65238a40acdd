//! Git LFS: the small file that stands for a large one, and the repository's word on where those are. Plain decisions.

/// Pointers are smaller.
pub(super) const POINTER_BYTES_MAX: u64 = 1024;

/// A large file: what it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pointer {
    /// SHA-256 of its bytes, hex.
    pub oid: String,
    /// Its size.
    pub bytes: u64,
}

impl Pointer {
    /// Reads one; `None` when the file is no pointer.
    pub fn read(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let mut lines = text.lines();
        let version = lines.next()?.strip_prefix("version ")?;
        if !matches!(version, "https://git-lfs.github.com/spec/v1" | "https://hawser.github.com/spec/v1") {
            return None;
        }
        let (mut oid, mut bytes) = (None, None);
        for line in lines {
            let (key, value) = line.split_once(' ')?;
            match key {
                "oid" => oid = Some(value.strip_prefix("sha256:")?),
                "size" => bytes = Some(value.parse().ok()?),
                _ => {}
            }
        }
        let oid = oid.filter(|oid| oid.len() == 64 && oid.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))?;
        Some(Self { oid: oid.to_owned(), bytes: bytes? })
    }
}

/// `lfs.url` of a repository's `.lfsconfig`.
pub(super) fn lfs_url(config: &str) -> Option<String> {
    let mut inside = false;
    let mut found = None;
    for line in config.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            inside = section.trim_end_matches(']').trim().eq_ignore_ascii_case("lfs");
        } else if let Some((key, value)) = line.split_once('=').filter(|_| inside)
            && key.trim().eq_ignore_ascii_case("url")
        {
            found = Some(value.trim().trim_matches('"').trim_end_matches('/').to_owned());
        }
    }
    found.filter(|url| !url.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_are_told_from_files() {
        let oid = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393";
        let text = format!("version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 12345\n");
        assert_eq!(Pointer::read(text.as_bytes()), Some(Pointer { oid: oid.into(), bytes: 12345 }));
        for bad in [
            text.replace("spec/v1", "spec/v9"),
            text.replace("sha256", "md5"),
            text.replace("4d7a", "4D7A"),
            text.replace("12345", "-1"),
            text.replace("size", "length"),
            format!("{{}}\n{text}"),
            "version".into(),
            String::new(),
        ] {
            assert_eq!(Pointer::read(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn the_repositorys_word() {
        assert_eq!(lfs_url("[lfs]\n\turl = https://h.org/lfs/\n"), Some("https://h.org/lfs".into()));
        assert_eq!(lfs_url("[remote \"origin\"]\n\turl = x\n[lfs]\nlocksverify = true\n"), None);
        assert_eq!(lfs_url("[LFS]\nURL=\"https://h.org/a\"\n[other]\nurl = b"), Some("https://h.org/a".into()));
        assert_eq!(lfs_url("[lfs \"https://h.org\"]\nurl = x\n[lfs]\nurl =\n"), None);
    }
}
