//! `mloc backup`: the ledger into a file that is known to be good, and what such a file holds.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::Context;
use bytes::Bytes;
use mloc_core::{ledger::contents::Contents, quantity::show_bytes};
use mloc_mesh::{raft::Backup, restore};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{
    cli::{BackupArgs, Format},
    client::{Client, Refusal},
};

/// What is said of a backup.
#[derive(Debug, Serialize)]
struct Holds {
    mesh: String,
    as_of: String,
    term: u64,
    index: u64,
    mloc: String,
    bytes: u64,
    sha256: String,
    #[serde(flatten)]
    contents: Contents,
}

impl Holds {
    fn of(backup: &Backup, bytes: &[u8]) -> Self {
        Self {
            mesh: backup.head.mesh.to_string(),
            as_of: backup.head.as_of.to_rfc3339(),
            term: backup.head.term,
            index: backup.head.index,
            mloc: backup.head.mloc.clone(),
            bytes: bytes.len() as u64,
            sha256: hex::encode(Sha256::digest(bytes)),
            contents: Contents::of(&backup.ledger, backup.head.as_of),
        }
    }

    fn text(&self) -> String {
        let contents = &self.contents;
        let states: Vec<String> = contents.tasks.iter().map(|(state, n)| format!("{n} {state}")).collect();
        let total: u64 = contents.tasks.values().sum();
        let colon = if states.is_empty() { "" } else { ": " };
        let mut lines = vec![
            format!("mesh     {} as of {} (term {}, entry {})", self.mesh, self.as_of, self.term, self.index),
            format!("tasks    {total}{colon}{}", states.join(", ")),
        ];
        for (name, user) in &contents.users {
            let (gpu, cpu) = (user.gpu_hours, user.cpu_core_hours);
            lines.push(format!("user     {name}: {} tasks, {gpu:.3} GPU-hours, {cpu:.3} core-hours", user.tasks));
        }
        let revoked = if contents.revoked == 0 { String::new() } else { format!("; {} revoked", contents.revoked) };
        lines.push(format!("members  {}: {}{revoked}", contents.members.len(), contents.members.join(", ")));
        lines.push(format!("file     {} by mloc {}, SHA-256 {}", show_bytes(self.bytes), self.mloc, self.sha256));
        if let Some(broken) = &contents.broken {
            lines.push(format!("warning  this ledger is in a state that no ledger should come to: {broken}"));
        }
        lines.join("\n")
    }

    fn print(&self, output: Format, to: &mut dyn Write) -> anyhow::Result<()> {
        let text = match output {
            Format::Table => self.text(),
            Format::Json => serde_json::to_string_pretty(self).context("print what the backup holds")?,
        };
        // A closed pipe is the reader's way to say enough.
        let _ = writeln!(to, "{text}");
        Ok(())
    }
}

/// `mloc backup`.
pub async fn backup(args: BackupArgs) -> Result<(), Refusal> {
    let to_stdout = args.file.as_os_str() == "-";
    if args.verify {
        let (place, bytes) = read(&args.file)?;
        let backup = checked(&place, &bytes)?;
        let holds = Holds::of(&backup, &bytes);
        holds.print(args.remote.output, &mut std::io::stdout())?;
        return match holds.contents.broken {
            None => Ok(()),
            Some(broken) => Err(Refusal::new(1, format!("{place}: {broken}"))),
        };
    }
    let bytes = match &args.from_data_dir {
        Some(dir) => from_data_dir(dir)?,
        None => Client::new(&args.remote)?.bytes("/api/v1/backup").await?,
    };
    // What goes to standard output is checked before a byte of it: it cannot be taken back.
    let backup = if to_stdout { checked("what the node sent", &bytes)? } else { write(&args.file, &bytes)? };
    let holds = Holds::of(&backup, &bytes);
    if to_stdout {
        std::io::stdout().write_all(&bytes).and_then(|()| std::io::stdout().flush()).context("write the backup")?;
        return Ok(holds.print(args.remote.output, &mut std::io::stderr())?);
    }
    holds.print(args.remote.output, &mut std::io::stdout())?;
    if args.remote.output == Format::Table {
        crate::show::say!("written  {}, read back and checked", args.file.display());
        crate::show::say!("         it holds no private keys and no join token: a mesh restored from it gets new ones");
    }
    Ok(())
}

/// A whole backup from a file, or from standard input.
///
/// # Errors
/// When it can't be read. Exit code 2: the file is the user's.
pub fn read(path: &Path) -> Result<(String, Bytes), Refusal> {
    let mut bytes = Vec::new();
    let (place, read) = if path.as_os_str() == "-" {
        ("standard input".to_owned(), std::io::stdin().read_to_end(&mut bytes))
    } else {
        (path.display().to_string(), File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)))
    };
    read.map_err(|error| Refusal::new(2, format!("read {place}: {error}")))?;
    Ok((place, bytes.into()))
}

/// A backup of which every byte is as it was written.
///
/// # Errors
/// When it is none.
pub fn checked(place: &str, bytes: &[u8]) -> Result<Backup, Refusal> {
    Backup::from_bytes(place, bytes).map_err(|error| Refusal::new(1, error.to_string()))
}

fn from_data_dir(dir: &Path) -> Result<Bytes, Refusal> {
    let found = restore::from_data_dir(dir, env!("CARGO_PKG_VERSION"))?;
    if found.uncertain > 0 {
        eprintln!(
            "note: this node did not know whether its last {} log entries were committed; all of them are in the backup",
            found.uncertain
        );
    }
    if !found.votes {
        eprintln!(
            "warning: this node was no voter any more when it last heard of the mesh: the data directory of one that was \
             may hold newer entries (the higher term, and of equal terms the higher entry, is the newer one)"
        );
    }
    Ok(found.backup.to_bytes().context("write the ledger as a backup")?)
}

/// Writes a backup under another name, makes it durable, reads it back, and gives it its name.
fn write(path: &Path, bytes: &[u8]) -> Result<Backup, Refusal> {
    let draft = draft_of(path);
    let done = write_draft(&draft, bytes).and_then(|backup| {
        std::fs::rename(&draft, path).map_err(|error| disk(path, error))?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| disk(folder, error))?;
        Ok(backup)
    });
    if done.is_err() {
        // It may not have come to be.
        let _ = std::fs::remove_file(&draft);
    }
    done
}

fn draft_of(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{:016x}", rand::random::<u64>()));
    path.with_file_name(name)
}

fn write_draft(draft: &Path, bytes: &[u8]) -> Result<Backup, Refusal> {
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft).map_err(|e| disk(draft, e))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|error| disk(draft, error))?;
    drop(file);
    let again = std::fs::read(draft).map_err(|error| disk(draft, error))?;
    checked(&draft.display().to_string(), &again)
}

fn disk(path: &Path, error: std::io::Error) -> Refusal {
    Refusal::new(1, format!("write {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use mloc_core::{id::MeshId, ledger::Ledger, time::Millis};

    use super::*;

    #[test]
    fn a_backup_takes_its_name_only_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b");
        let backup = Backup::new(MeshId::new("m"), (1, 2), Millis(3), "0", Ledger::default());
        let bytes = backup.to_bytes().unwrap();
        let names = || {
            let names = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
            names.map(|name| name.to_string_lossy().into_owned()).collect::<Vec<_>>()
        };
        write(&path, &bytes[..bytes.len() - 1]).unwrap_err();
        assert!(names().is_empty(), "{:?}", names());
        write(&path, &bytes).unwrap();
        write(&path, b"MLOCBKUP").unwrap_err();
        assert_eq!(names(), ["b"]);
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "the one before stays");
    }
}
