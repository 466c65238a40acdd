//! Archives of code: tar (plain, gzip, zstd) and zip. Nothing in one can lie outside the folder it is unpacked into, be
//! anything but a file, a folder or a link within, or be larger than what code may be.

use std::{
    fs::{self, File},
    io::{self, BufReader, Read},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Component, Path, PathBuf},
};

/// What code may be. Models and data have sources of their own.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of all files.
    pub bytes: u64,
    /// Files, folders and links.
    pub entries: u64,
}

impl Bounds {
    /// A repository with a virtual environment in it fits; a mistaken model or an archive made to burst does not.
    pub const CODE: Self = Self { bytes: 8 << 30, entries: 300_000 };
}

/// How an archive is read, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Tar,
    TarGz,
    TarZst,
    Zip,
}

impl Format {
    /// By the end of the name; `None` for a file that is code itself.
    pub fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        let ends = [
            (".tar", Format::Tar),
            (".tar.gz", Format::TarGz),
            (".tgz", Format::TarGz),
            (".tar.zst", Format::TarZst),
            (".tzst", Format::TarZst),
            (".zip", Format::Zip),
        ];
        ends.into_iter().find(|(end, _)| name.ends_with(end)).map(|(_, format)| format)
    }
}

/// Unpacks an archive into an empty folder.
///
/// # Errors
/// What is wrong with it, or with the disk.
pub fn unpack(archive: &Path, format: Format, into: &Path, bounds: Bounds) -> Result<(), String> {
    let file = File::open(archive).map_err(|e| e.to_string())?;
    let mut tree = Tree::new(into, bounds);
    let reader = BufReader::new(file);
    match format {
        Format::Tar => untar(reader, &mut tree)?,
        Format::TarGz => untar(flate2::read::MultiGzDecoder::new(reader), &mut tree)?,
        Format::TarZst => {
            untar(ruzstd::decoding::StreamingDecoder::new(reader).map_err(|e| format!("no zstd: {e}"))?, &mut tree)?;
        }
        Format::Zip => unzip(reader, &mut tree)?,
    }
    tree.finish()
}

fn untar(reader: impl Read, tree: &mut Tree<'_>) -> Result<(), String> {
    let mut archive = tar::Archive::new(reader);
    let entries = archive.entries().map_err(|e| format!("no tar: {e}"))?;
    for entry in entries {
        let mut entry = entry.map_err(|e| format!("a damaged tar: {e}"))?;
        let kind = entry.header().entry_type();
        let path = entry.path().map_err(|e| format!("a name in it: {e}"))?.into_owned();
        let target = |entry: &tar::Entry<'_, _>| match entry.link_name() {
            Ok(Some(target)) => Ok(target.into_owned()),
            _ => Err(format!("`{}` is a link to nothing", path.display())),
        };
        match kind {
            tar::EntryType::Directory => tree.folder(&path)?,
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
                let mode = entry.header().mode().unwrap_or(0o644);
                tree.file(&path, mode & 0o111 != 0, &mut entry)?;
            }
            tar::EntryType::Symlink => tree.link(&path, target(&entry)?)?,
            tar::EntryType::Link => tree.second_name(&path, &target(&entry)?)?,
            // What git writes ahead of everything: the commit's id.
            tar::EntryType::XGlobalHeader => {}
            other => return Err(format!("`{}` is neither a file nor a folder nor a link: {other:?}", path.display())),
        }
    }
    Ok(())
}

fn unzip(reader: impl Read + io::Seek, tree: &mut Tree<'_>) -> Result<(), String> {
    /// Longest path of Linux.
    const TARGET_MAX: u64 = 4096;
    let mut archive = zip::ZipArchive::new(reader).map_err(|e| format!("no zip: {e}"))?;
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(|e| format!("a damaged zip: {e}"))?;
        let path = PathBuf::from(entry.name().map_err(|e| format!("a name in it: {e}"))?.as_ref());
        if entry.is_dir() {
            tree.folder(&path)?;
        } else if entry.is_symlink() {
            let mut target = String::new();
            let read = (&mut entry).take(TARGET_MAX).read_to_string(&mut target);
            read.map_err(|e| format!("the link `{}`: {e}", path.display()))?;
            tree.link(&path, target.into())?;
        } else {
            let runs = entry.unix_mode().is_some_and(|mode| mode & 0o111 != 0);
            tree.file(&path, runs, &mut entry)?;
        }
    }
    Ok(())
}

/// A folder that is being filled, with what may still come into it.
pub struct Tree<'a> {
    top: &'a Path,
    bounds: Bounds,
    left: Bounds,
    /// Made last: nothing is ever written through one.
    links: Vec<(PathBuf, PathBuf)>,
}

impl<'a> Tree<'a> {
    /// An empty one.
    pub fn new(top: &'a Path, bounds: Bounds) -> Self {
        Self { top, bounds, left: bounds, links: Vec::new() }
    }

    fn count(&mut self) -> Result<(), String> {
        let Bounds { entries, .. } = self.bounds;
        self.left.entries = self.left.entries.checked_sub(1).ok_or_else(|| {
            format!("more than {entries} files and folders\nhint: give data and models sources of their own")
        })?;
        Ok(())
    }

    /// Where a name in it lies: below the top, whatever it says.
    fn place(&self, name: &Path) -> Result<PathBuf, String> {
        let inside = within(Path::new(""), name).filter(|path| !path.as_os_str().is_empty());
        let inside = inside.filter(|_| !name.has_root() && !name.components().any(|c| c == Component::ParentDir));
        inside.map(|path| self.top.join(path)).ok_or_else(|| format!("the name `{}` leads out of it", name.display()))
    }

    /// A folder.
    pub fn folder(&mut self, name: &Path) -> Result<(), String> {
        // `./` is the top itself.
        if name.components().all(|c| c == Component::CurDir) {
            return Ok(());
        }
        self.count()?;
        let place = self.place(name)?;
        fs::create_dir_all(&place).map_err(|e| format!("{}: {e}", name.display()))
    }

    /// A file.
    pub fn file(&mut self, name: &Path, runs: bool, from: &mut impl Read) -> Result<(), String> {
        self.count()?;
        let place = self.place(name)?;
        let said = |e: io::Error| format!("{}: {e}", name.display());
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent).map_err(said)?;
        }
        let mut file = File::create(&place).map_err(said)?;
        // One byte more than there is room for shows that it is too much.
        let bytes = io::copy(&mut from.take(self.left.bytes.saturating_add(1)), &mut file).map_err(said)?;
        let Bounds { bytes: max, .. } = self.bounds;
        self.left.bytes = self.left.bytes.checked_sub(bytes).ok_or_else(|| {
            format!("more than {max} bytes unpacked\nhint: give data and models sources of their own")
        })?;
        // Of its mode only this much: nothing in it can be set-user-id.
        let mode = if runs { 0o755 } else { 0o644 };
        file.set_permissions(fs::Permissions::from_mode(mode)).map_err(said)
    }

    /// A symbolic link, which must lead to somewhere within.
    pub fn link(&mut self, name: &Path, target: PathBuf) -> Result<(), String> {
        self.count()?;
        let place = self.place(name)?;
        let from = place.strip_prefix(self.top).ok().and_then(Path::parent).unwrap_or(Path::new("")).to_owned();
        if within(&from, &target).is_none() {
            return Err(format!("the link `{}` leads out of it, to `{}`", name.display(), target.display()));
        }
        self.links.push((place, target));
        Ok(())
    }

    /// A hard link to a file that came before: a copy here.
    fn second_name(&mut self, name: &Path, of: &Path) -> Result<(), String> {
        let first = self.place(of)?;
        if !fs::symlink_metadata(&first).is_ok_and(|meta| meta.is_file()) {
            return Err(format!(
                "`{}` is a second name of `{}`, which is no file before it",
                name.display(),
                of.display()
            ));
        }
        let runs = fs::metadata(&first).is_ok_and(|meta| meta.permissions().mode() & 0o111 != 0);
        let mut from = File::open(&first).map_err(|e| format!("{}: {e}", of.display()))?;
        self.file(name, runs, &mut from)
    }

    /// Makes the links.
    pub fn finish(self) -> Result<(), String> {
        for (place, target) in self.links {
            let made = place.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| symlink(&target, &place));
            made.map_err(|e| format!("the link `{}`: {e}", place.display()))?;
        }
        Ok(())
    }
}

/// `path` as seen from the folder `from`, both below one top; `None` when it leads out of that.
fn within(from: &Path, path: &Path) -> Option<PathBuf> {
    let mut at = from.to_owned();
    for component in path.components() {
        match component {
            Component::Normal(part) => at.push(part),
            Component::CurDir => {}
            Component::ParentDir => {
                if !at.pop() {
                    return None;
                }
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};

    use super::*;

    type Entry<'a> = (tar::EntryType, &'a str, &'a str, u32);

    /// A tar with names as they are: the crate's own writer refuses the bad ones.
    fn tar_of(entries: &[Entry<'_>]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (kind, name, content, mode) in entries {
            let mut header = tar::Header::new_ustar();
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(*mode);
            let link = matches!(kind, tar::EntryType::Symlink | tar::EntryType::Link);
            if link {
                header.as_mut_bytes()[157..157 + content.len()].copy_from_slice(content.as_bytes());
            }
            let body = if link { "" } else { content };
            header.set_size(body.len() as u64);
            header.set_cksum();
            builder.append(&header, body.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn unpacked(bytes: &[u8], name: &str, bounds: Bounds) -> (tempfile::TempDir, Result<(), String>) {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join(name);
        fs::write(&archive, bytes).unwrap();
        let into = dir.path().join("into");
        fs::create_dir(&into).unwrap();
        let done = unpack(&archive, Format::of(&archive).unwrap(), &into, bounds);
        (dir, done)
    }

    const FILE: tar::EntryType = tar::EntryType::Regular;
    const LINK: tar::EntryType = tar::EntryType::Symlink;
    const GOOD: [Entry<'static>; 6] = [
        (tar::EntryType::Directory, "repo/", "", 0o755),
        (FILE, "repo/train.py", "print(1)\n", 0o644),
        (FILE, "repo/run.sh", "#!/bin/sh\n", 0o4755),
        (LINK, "repo/sub/again.py", "../train.py", 0o777),
        (tar::EntryType::Link, "repo/second.py", "repo/train.py", 0o644),
        (FILE, "./top.txt", "x", 0o600),
    ];

    fn is_good(dir: &Path) {
        let read = |name: &str| fs::read_to_string(dir.join("into").join(name)).unwrap();
        assert_eq!(read("repo/train.py"), "print(1)\n");
        assert_eq!(read("repo/sub/again.py"), "print(1)\n");
        assert_eq!(read("top.txt"), "x");
        let mode = |name: &str| fs::metadata(dir.join("into").join(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("repo/run.sh"), mode("repo/train.py")), (0o755, 0o644));
    }

    #[test]
    fn every_kind_of_archive_is_unpacked() {
        let tar = tar_of(&GOOD);
        let (dir, done) = unpacked(&tar, "code.tar", Bounds::CODE);
        done.unwrap();
        is_good(dir.path());
        assert_eq!(fs::read_to_string(dir.path().join("into/repo/second.py")).unwrap(), "print(1)\n");

        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&tar).unwrap();
        let (dir, done) = unpacked(&gz.finish().unwrap(), "code.TGZ", Bounds::CODE);
        done.unwrap();
        is_good(dir.path());

        let zst = ruzstd::encoding::compress_to_vec(&tar[..], ruzstd::encoding::CompressionLevel::Fastest);
        let (dir, done) = unpacked(&zst, "code.tar.zst", Bounds::CODE);
        done.unwrap();
        is_good(dir.path());

        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        let with = |mode| zip::write::SimpleFileOptions::default().unix_permissions(mode);
        zip.add_directory("repo/", with(0o755)).unwrap();
        for (name, content, mode) in
            [("repo/train.py", "print(1)\n", 0o644), ("repo/run.sh", "#!/bin/sh\n", 0o4755), ("top.txt", "x", 0o600)]
        {
            zip.start_file(name, with(mode)).unwrap();
            zip.write_all(content.as_bytes()).unwrap();
        }
        zip.add_symlink("repo/sub/again.py", "../train.py", with(0o777)).unwrap();
        let (dir, done) = unpacked(&zip.finish().unwrap().into_inner(), "code.zip", Bounds::CODE);
        done.unwrap();
        is_good(dir.path());
    }

    #[test]
    fn nothing_comes_to_lie_outside() {
        let cases: [(&[Entry<'_>], &str); 9] = [
            (&[(FILE, "../up.txt", "x", 0o644)], "`../up.txt` leads out"),
            (&[(FILE, "a/../../up.txt", "x", 0o644)], "leads out"),
            (&[(FILE, "/etc/up.txt", "x", 0o644)], "leads out"),
            (&[(LINK, "out", "/etc", 0o777)], "the link `out` leads out of it, to `/etc`"),
            (&[(LINK, "a/out", "../..", 0o777)], "leads out"),
            (&[(LINK, "a", "b", 0o777), (FILE, "a/file", "x", 0o644)], "the link"),
            (&[(tar::EntryType::Link, "second", "../x", 0o644)], "leads out"),
            (&[(LINK, "s", "f", 0o777), (tar::EntryType::Link, "second", "s", 0o644)], "is no file before it"),
            (&[(tar::EntryType::Fifo, "pipe", "", 0o644)], "neither a file nor a folder nor a link"),
        ];
        for (entries, says) in cases {
            let (dir, done) = unpacked(&tar_of(entries), "code.tar", Bounds::CODE);
            let said = done.unwrap_err();
            assert!(said.contains(says), "{entries:?}: {said}");
            let outside: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().map(|e| e.file_name()).collect();
            assert_eq!(outside.len(), 2, "{outside:?}");
        }
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        zip.start_file("../up.txt", zip::write::SimpleFileOptions::default()).unwrap();
        let (_dir, done) = unpacked(&zip.finish().unwrap().into_inner(), "code.zip", Bounds::CODE);
        assert!(done.unwrap_err().contains("leads out"));
    }

    #[test]
    fn an_archive_made_to_burst_is_stopped() {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gz.write_all(&tar_of(&[(FILE, "zeros", &"\0".repeat(4 << 20), 0o644)])).unwrap();
        let gz = gz.finish().unwrap();
        assert!(gz.len() < 64 << 10);
        let small = Bounds { bytes: 1 << 20, entries: 3 };
        let (dir, done) = unpacked(&gz, "code.tar.gz", small);
        assert!(done.unwrap_err().contains("more than 1048576 bytes unpacked"));
        assert!(fs::metadata(dir.path().join("into/zeros")).unwrap().len() <= (1 << 20) + 1);
        let (_dir, done) = unpacked(&tar_of(&[(FILE, "a", "", 0o644); 4]), "code.tar", small);
        assert!(done.unwrap_err().contains("more than 3 files"));
    }

    #[test]
    fn what_is_no_archive_is_said_to_be_none() {
        for name in ["code.tar.gz", "code.zip", "code.tar.zst", "code.tar"] {
            let (_dir, done) = unpacked(b"print(1)\n", name, Bounds::CODE);
            assert!(done.is_err(), "{name}");
        }
        assert_eq!(Format::of(Path::new("train.py")), None);
    }
}
