//! What attempts leave on the disk when they are over: their logs stay, and results that have no destination, as far as
//! there is room for them. Everything else goes. Blocks.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use mloc_core::id::AttemptId;
use mloc_exec::{Run, checkpoint};
use tracing::{info, warn};

use crate::{clock, folders::Folders};

/// Results without a destination and without `output.keep` that are kept, newest first: who wants one for good names a
/// destination.
const RESULTS_MAX: usize = 32;
/// Until when a result is kept by the task's wish, in milliseconds since 1970.
const UNTIL: &str = "keep-until";
/// Bytes of logs of attempts that are over.
const LOGS_BYTES_MAX: u64 = 1 << 30;

/// The last attempt of its replica is forgotten: this one and those before it are stripped, and nobody goes on from the
/// replica's checkpoints any more.
pub(crate) fn forgotten(folders: &Folders, last: &AttemptId) {
    for number in 0..=last.attempt {
        let dir = folders.attempt(&AttemptId { attempt: number, ..last.clone() });
        if dir.is_dir() {
            said(&dir, strip(&dir));
        }
    }
    let checkpoints = folders.checkpoints(last);
    said(&checkpoints, remove(&checkpoints));
    now_and_then(folders);
}

/// What a daemon that died could not clear away: everything of attempts that are not among these.
pub(crate) fn at_start<'a>(folders: &Folders, rows: impl Iterator<Item = &'a AttemptId>) {
    let (mut attempts, mut checkpoints) = (BTreeSet::new(), BTreeSet::new());
    for id in rows {
        // Earlier attempts of a replica wait until its last row goes.
        attempts.extend((0..=id.attempt).map(|n| folders.attempt(&AttemptId { attempt: n, ..id.clone() })));
        checkpoints.insert(folders.checkpoints(id));
    }
    for dir in below(&folders.attempts()).into_iter().filter(|dir| !attempts.contains(dir)) {
        said(&dir, strip(&dir));
    }
    for dir in below(&folders.all_checkpoints()).into_iter().filter(|dir| !checkpoints.contains(dir)) {
        said(&dir, remove(&dir));
    }
    now_and_then(folders);
}

/// What time and other results leave no room for goes.
pub(crate) fn now_and_then(folders: &Folders) {
    bound(folders, RESULTS_MAX, LOGS_BYTES_MAX, clock::unix_ms());
}

/// Leaves the log, and the artifacts of a result that has no destination. The run file goes last: without one it has
/// been decided what stays.
fn strip(dir: &Path) -> io::Result<()> {
    let run_file = dir.join(Folders::RUN);
    if run_file.exists() {
        // Of one that another version wrote nothing is known: a result is rather kept for nothing than lost.
        let output = Run::read(&run_file).map(|run| run.spec.output).unwrap_or_default();
        if output.destination.is_some() || !dir.join(Folders::RESULT).exists() {
            remove(&dir.join(Folders::ARTIFACTS))?;
        } else if let Some(keep_ms) = output.keep_ms {
            let until = clock::unix_ms().saturating_add(keep_ms);
            checkpoint::write_whole(&dir.join(UNTIL), until.to_string().as_bytes())?;
        }
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if [Folders::LOG, Folders::ARTIFACTS, Folders::RUN, UNTIL].iter().all(|keep| name != *keep) {
            remove(&entry.path())?;
        }
    }
    remove(&run_file)?;
    checkpoint::sync_dir(dir)
}

/// Holds what stays within its bounds: the oldest go.
fn bound(folders: &Folders, results_max: usize, logs_bytes_max: u64, now_unix_ms: u64) {
    let over = below(&folders.attempts()).into_iter().filter(|dir| !dir.join(Folders::RUN).exists());
    let aged = |dir: PathBuf| {
        let log = fs::metadata(dir.join(Folders::LOG));
        let (bytes, at) = log.map_or((0, None), |m| (m.len(), m.modified().ok()));
        // One without a log is being made, or has nothing to keep but its artifacts.
        let at = at.or_else(|| fs::metadata(&dir).and_then(|m| m.modified()).ok());
        (at.unwrap_or(SystemTime::UNIX_EPOCH), bytes, dir)
    };
    let mut over: Vec<_> = over.map(aged).collect();
    over.sort();
    let (mut results, mut bytes) = (0, 0);
    for (_, log_bytes, dir) in over.iter().rev() {
        bytes += log_bytes;
        let artifacts = dir.join(Folders::ARTIFACTS);
        if artifacts.exists() {
            match kept_until(dir) {
                Some(until) if until <= now_unix_ms => {
                    info!(dir = %artifacts.display(), "removing a result: the time of its output.keep is over");
                    said(dir, remove(&artifacts));
                }
                Some(_) => {}
                None => {
                    results += 1;
                    if results > results_max {
                        warn!(dir = %artifacts.display(), "removing a result without a destination: {results_max} newer ones are kept");
                        said(dir, remove(&artifacts));
                    }
                }
            }
        }
        if bytes > logs_bytes_max && !artifacts.exists() {
            info!(dir = %dir.display(), "removing an old log: newer ones take {logs_bytes_max} bytes");
            said(dir, remove(dir));
        }
    }
}

fn kept_until(dir: &Path) -> Option<u64> {
    fs::read_to_string(dir.join(UNTIL)).ok()?.trim().parse().ok()
}

fn below(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn said(path: &Path, done: io::Result<()>) {
    if let Err(error) = done {
        warn!(path = %path.display(), %error, "cannot clear away what an attempt left");
    }
}

#[cfg(test)]
mod tests {
    use mloc_core::id::TaskId;

    use super::*;

    fn over(folders: &Folders, number: u32, log_bytes: usize, age_s: u64) -> PathBuf {
        let dir = folders.attempt(&AttemptId { task: TaskId::new("t"), replica: 0, attempt: number });
        fs::create_dir_all(dir.join(Folders::ARTIFACTS)).unwrap();
        fs::write(dir.join(Folders::LOG), vec![b'x'; log_bytes]).unwrap();
        let log = fs::File::options().write(true).open(dir.join(Folders::LOG)).unwrap();
        log.set_modified(SystemTime::now() - std::time::Duration::from_secs(age_s)).unwrap();
        dir
    }

    #[test]
    fn results_and_logs_have_a_bound_and_the_oldest_go() {
        let top = tempfile::tempdir().unwrap();
        let folders = Folders::new(top.path());
        let dirs: Vec<_> = (1..=4).map(|n| over(&folders, n, 1000, 100 * u64::from(n))).collect();
        bound(&folders, 3, 2500, 0);
        let left: Vec<_> = dirs.iter().map(|d| (d.exists(), d.join(Folders::ARTIFACTS).exists())).collect();
        // The third's log is beyond the bound of logs, and stays with its result.
        assert_eq!(left, [(true, true), (true, true), (true, true), (false, false)]);
    }

    #[test]
    fn a_result_is_kept_as_long_as_its_task_says() {
        let top = tempfile::tempdir().unwrap();
        let folders = Folders::new(top.path());
        let dirs: Vec<_> = (1..=2).map(|n| over(&folders, n, 10, 0)).collect();
        for (dir, until) in dirs.iter().zip(["1000", "2000"]) {
            fs::write(dir.join(UNTIL), until).unwrap();
        }
        let left = || dirs.iter().map(|d| d.join(Folders::ARTIFACTS).exists()).collect::<Vec<_>>();
        bound(&folders, 0, 1 << 20, 999);
        assert_eq!(left(), [true, true], "the bound of numbers is for those without a wish");
        bound(&folders, 0, 1 << 20, 1000);
        assert_eq!(left(), [false, true]);
    }

    #[test]
    fn what_runs_is_left_alone() {
        let top = tempfile::tempdir().unwrap();
        let folders = Folders::new(top.path());
        let dir = over(&folders, 1, 10, 0);
        fs::write(dir.join(Folders::RUN), b"{}").unwrap();
        bound(&folders, 0, 0, 0);
        let id = AttemptId { task: TaskId::new("t"), replica: 0, attempt: 2 };
        fs::create_dir_all(folders.checkpoints(&id)).unwrap();
        at_start(&folders, [&id].into_iter());
        assert!(dir.join(Folders::RUN).exists() && dir.join(Folders::ARTIFACTS).exists());
        assert!(folders.checkpoints(&id).exists());
        at_start(&folders, [].into_iter());
        assert!(!dir.join(Folders::RUN).exists() && dir.join(Folders::LOG).exists());
        assert!(!folders.checkpoints(&id).exists());
    }
}
