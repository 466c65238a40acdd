//! Which commit a revision means, among the names a server tells. Plain decisions.

use gix_hash::ObjectId;

/// Shortest part of a commit's name that is taken for one.
const SHORT_MIN: usize = 4;
/// Names shown when the asked one is not there.
const SHOWN: usize = 5;

/// A name of the server and the object it leads to, tags followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tip {
    /// `HEAD`, `refs/heads/main`, `refs/tags/v1`.
    pub name: String,
    /// The object.
    pub object: ObjectId,
    /// What it is asked for by: the tag's own object where there is one. Servers of old know no other.
    pub want: ObjectId,
}

/// Whether a revision is a whole commit's name.
pub(super) fn full(revision: &str) -> Option<ObjectId> {
    ObjectId::from_hex(revision.as_bytes()).ok()
}

/// Whether it may be the beginning of one.
pub(super) fn may_be_short(revision: &str) -> bool {
    (SHORT_MIN..40).contains(&revision.len()) && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The full names that a revision may mean, the first one that exists is meant. As `git clone --branch` has it, a
/// branch goes before a tag.
pub(super) fn names(revision: Option<&str>) -> Vec<String> {
    match revision {
        None | Some("HEAD") => vec!["HEAD".into()],
        Some(full) if full.starts_with("refs/") => vec![full.to_owned()],
        Some(name) => vec![format!("refs/heads/{name}"), format!("refs/tags/{name}"), format!("refs/{name}")],
    }
}

/// What is meant, among these tips.
pub(super) fn pick(tips: &[Tip], revision: Option<&str>) -> Option<ObjectId> {
    names(revision).iter().find_map(|name| tips.iter().find(|tip| tip.name == *name)).map(|tip| tip.object)
}

/// The names that are nearest to one that is not there; else some that are.
pub(super) fn near(tips: &[Tip], revision: &str) -> Vec<String> {
    let asked = short(revision);
    let mut scored: Vec<_> = tips
        .iter()
        .filter(|tip| tip.name.starts_with("refs/heads/") || tip.name.starts_with("refs/tags/"))
        .map(|tip| (strsim::jaro_winkler(short(&tip.name), asked), short(&tip.name).to_owned()))
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    scored.dedup_by(|a, b| a.1 == b.1);
    let close = scored.iter().filter(|(score, _)| *score > 0.75).count();
    let shown = if close > 0 { close.min(SHOWN) } else { SHOWN };
    scored.into_iter().take(shown).map(|(_, name)| name).collect()
}

fn short(name: &str) -> &str {
    let bare = |prefix| name.strip_prefix(prefix);
    bare("refs/heads/").or_else(|| bare("refs/tags/")).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tips() -> Vec<Tip> {
        let names =
            ["HEAD", "refs/heads/main", "refs/heads/both", "refs/tags/both", "refs/tags/v1.10.2", "refs/pull/3"];
        let tip = |(n, name): (usize, &&str)| {
            let object = ObjectId::from_bytes_or_panic(&[n as u8; 20]);
            Tip { name: (*name).to_owned(), object, want: object }
        };
        names.iter().enumerate().map(tip).collect()
    }

    #[test]
    fn a_branch_goes_before_a_tag() {
        let tips = tips();
        let n = |revision| pick(&tips, revision).map(|id| id.as_bytes()[0]);
        assert_eq!(n(None), Some(0));
        assert_eq!((n(Some("HEAD")), n(Some("main")), n(Some("both"))), (Some(0), Some(1), Some(2)));
        assert_eq!((n(Some("refs/tags/both")), n(Some("v1.10.2")), n(Some("pull/3"))), (Some(3), Some(4), Some(5)));
        assert_eq!((n(Some("mian")), n(Some("refs/heads/v1.10.2"))), (None, None));
    }

    #[test]
    fn the_nearest_names_are_shown() {
        assert_eq!(near(&tips(), "mian"), ["main"]);
        assert_eq!(near(&tips(), "v1.10.3"), ["v1.10.2"]);
        assert_eq!(near(&tips(), "zzz"), ["both", "main", "v1.10.2"]);
        assert!(near(&[], "main").is_empty());
    }

    #[test]
    fn what_may_be_a_commit() {
        assert!(full(&"a".repeat(40)).is_some() && full("abcd").is_none() && full(&"g".repeat(40)).is_none());
        assert!(may_be_short("abcd") && may_be_short("DEADBEEF"));
        assert!(!may_be_short("abc") && !may_be_short("main1") && !may_be_short(&"a".repeat(40)));
    }
}
