//! Objects out of received packs. Blocks.

use std::path::{Path, PathBuf};

use gix_hash::{ObjectId, oid};
use gix_object::{CommitRefIter, Kind, TagRef, TreeRefIter};
use gix_pack::{Bundle, cache::lru::MemoryCappedHashmap, data};

use crate::error::StoreError;

/// What is kept of objects that others are deltas of.
const CACHE_BYTES: usize = 64 << 20;
/// How many tags of tags are followed.
const TAGS_MAX: usize = 8;

/// The objects of some packs.
pub(super) struct Objects {
    packs: Vec<Bundle>,
    inflate: gix_zlib::Inflate,
    cache: MemoryCappedHashmap,
    place: String,
}

impl Objects {
    /// Opens packs by their indices; `place` is for messages.
    pub fn open(indices: &[PathBuf], place: &str) -> Result<Self, StoreError> {
        let open = |(id, path): (usize, &PathBuf)| {
            let mut pack = Bundle::at(path, gix_hash::Kind::Sha1).map_err(|e| damaged(place, &e))?;
            // The cache tells packs apart by it.
            pack.pack.id = id as u32;
            Ok(pack)
        };
        let packs = indices.iter().enumerate().map(open).collect::<Result<_, StoreError>>()?;
        let (inflate, cache) = (gix_zlib::Inflate::default(), MemoryCappedHashmap::new(CACHE_BYTES));
        Ok(Self { packs, inflate, cache, place: place.to_owned() })
    }

    /// Whether it is here.
    pub fn has(&self, id: &oid) -> bool {
        self.packs.iter().any(|pack| pack.index.lookup(id).is_some())
    }

    /// An object's kind, and its bytes in `into`.
    pub fn get(&mut self, id: &oid, into: &mut Vec<u8>) -> Result<Kind, StoreError> {
        for pack in &self.packs {
            let found =
                pack.find(id, into, &mut self.inflate, &mut self.cache).map_err(|e| damaged(&self.place, &e))?;
            if let Some((object, _)) = found {
                return Ok(object.kind);
            }
        }
        Err(self.absent(id))
    }

    /// Its size, mostly without unpacking it.
    pub fn size(&mut self, id: &oid) -> Result<u64, StoreError> {
        for pack in &self.packs {
            let Some(at) = pack.index.lookup(id) else { continue };
            let entry = |at| pack.pack.entry(pack.index.pack_offset_at_index(at));
            let base = |id: &oid| {
                pack.index.lookup(id).map(|at| entry(at).map(data::decode::header::ResolvedBase::InPack)).transpose()
            };
            let header = entry(at).and_then(|entry| pack.pack.decode_header(entry, &mut self.inflate, &base));
            return header.map(|header| header.object_size).map_err(|e| damaged(&self.place, &e));
        }
        Err(self.absent(id))
    }

    /// The commit that an object is, or a tag leads to.
    pub fn commit(&mut self, id: ObjectId) -> Result<ObjectId, StoreError> {
        let (mut at, mut bytes) = (id, Vec::new());
        for _ in 0..TAGS_MAX {
            match self.get(&at, &mut bytes)? {
                Kind::Commit => return Ok(at),
                Kind::Tag => {
                    let tag = TagRef::from_bytes(&bytes, at.kind()).map_err(|e| damaged(&self.place, &e))?;
                    at = tag.target();
                }
                Kind::Tree | Kind::Blob => break,
            }
        }
        Err(StoreError::NotFound {
            place: self.place.clone(),
            found: format!("{id} is no commit"),
            hint: "name a branch, a tag or a commit".into(),
        })
    }

    /// The tree of a commit.
    pub fn tree_of(&mut self, commit: &oid) -> Result<ObjectId, StoreError> {
        let mut bytes = Vec::new();
        self.get(commit, &mut bytes)?;
        let tree = CommitRefIter::from_bytes(&bytes, commit.kind()).tree_id();
        tree.map_err(|e| damaged(&self.place, &e))
    }

    /// The entries of a tree: name, mode, object.
    pub fn entries(&mut self, tree: &oid) -> Result<Vec<Entry>, StoreError> {
        let mut bytes = Vec::new();
        if self.get(tree, &mut bytes)? != Kind::Tree {
            let found = format!("{tree} is no tree");
            return Err(StoreError::Damaged { place: self.place.clone(), found });
        }
        let entry = |entry: gix_error::Result<gix_object::tree::EntryRef<'_>>| {
            let entry = entry.map_err(|e| damaged(&self.place, &e))?;
            let name = std::str::from_utf8(entry.filename)
                .map_err(|_| StoreError::BadName { place: self.place.clone(), name: entry.filename.to_string() })?;
            Ok(Entry { name: name.to_owned(), kind: entry.mode.kind(), id: entry.oid.to_owned() })
        };
        TreeRefIter::from_bytes(&bytes, tree.kind()).map(entry).collect()
    }

    /// Commits whose name begins so.
    pub fn commits_named(&mut self, short: &str) -> Result<Vec<ObjectId>, StoreError> {
        let ids = |pack: &Bundle| pack.index.iter().map(|entry| entry.oid).collect::<Vec<_>>();
        let mut found: Vec<_> = self.packs.iter().flat_map(ids).collect();
        let short = short.to_ascii_lowercase();
        found.retain(|id| id.to_hex().to_string().starts_with(&short));
        found.sort();
        found.dedup();
        let mut commits = Vec::new();
        let mut bytes = Vec::new();
        for id in found {
            if self.get(&id, &mut bytes)? == Kind::Commit {
                commits.push(id);
            }
        }
        Ok(commits)
    }

    fn absent(&self, id: &oid) -> StoreError {
        StoreError::Damaged { place: self.place.clone(), found: format!("object {id} did not come with the others") }
    }
}

/// An entry of a tree.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Its name in the tree.
    pub name: String,
    /// What it is.
    pub kind: gix_object::tree::EntryKind,
    /// Its object.
    pub id: ObjectId,
}

fn damaged(place: &str, error: &gix_error::Error) -> StoreError {
    StoreError::Damaged { place: place.to_owned(), found: super::trouble::Told::of(error).words }
}

/// Makes a received pack durable: what says that it is whole is written after this.
pub(super) fn sync(index: &Path) -> Result<(), StoreError> {
    for path in [index.to_owned(), index.with_extension("pack")] {
        std::fs::File::open(&path).and_then(|f| f.sync_all()).map_err(|e| StoreError::disk("sync", &path, e))?;
    }
    Ok(())
}
