//! What is left of a disk: whoever writes much to it asks before.

use std::{io, path::Path};

use nix::sys::statvfs::statvfs;

/// Bytes this process may still write below a folder, which need not exist yet. Blocks.
///
/// # Errors
/// The system's, of a file system that does not answer.
pub fn free_bytes(folder: &Path) -> io::Result<u64> {
    let there = folder.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let stats = statvfs(there)?;
    Ok(stats.blocks_available() * stats.fragment_size())
}
