//! Holds a program to its folders, by the kernel's Landlock: it writes nowhere else, reads what the node's user reads
//! save what the node hides, signals and traces nobody outside, and has no capabilities even when the node runs as root.
//!
//! What Landlock does not know it does not hold: modes, owners and times of files outside can be changed by whoever owns
//! them, and the network is the node's.

use std::{
    fs, io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    process::{Child, Command},
};

use caps::CapSet;
use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, LandlockStatus, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, Scope,
};
use mloc_exec::Sandbox;
use nix::sys::{prctl, resource};

/// The version whose rights are asked for; older kernels know fewer.
const WANTED: ABI = ABI::V6;
/// The least that holds a program to its folders: before it files outside can be cut to nothing (Linux 6.2).
const NEEDED: ABI = ABI::V3;
/// Devices any program may use. GPUs come beside them.
const DEVICES: [&str; 9] = ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm"];
/// Names of accelerators' devices begin so.
const ACCELERATORS: [&str; 5] = ["nvidia", "dri", "kfd", "infiniband", "accel"];
/// The program goes first when memory is short: not the process that keeps count of it, not the node.
const OOM_SCORE: &str = "500";

/// What a program is held to.
#[derive(Clone, Debug)]
pub struct Fence {
    /// How strictly.
    pub mode: Sandbox,
    /// It may write below these.
    pub writable: Vec<PathBuf>,
    /// It may read these although something above them is hidden.
    pub readable: Vec<PathBuf>,
    /// It may not read these.
    pub hidden: Vec<PathBuf>,
}

/// Whether this machine can hold a program to its folders.
///
/// # Errors
/// What it lacks.
pub fn available() -> Result<(), String> {
    let nothing = Fence { mode: Sandbox::Required, writable: vec![], readable: vec![], hidden: vec![] };
    // Threads that entered it never come out again.
    on_own_thread(move || enter(&nothing)).and_then(|entered| entered)
}

/// Starts a program within the fence, and says what it is not held to.
///
/// # Errors
/// When it cannot be started, or not be held where it must be.
pub fn spawn(fence: Fence, mut command: Command) -> Result<(Child, Option<String>), String> {
    // A core of a process with gigabytes fills a disk. This process needs none either.
    resource::setrlimit(resource::Resource::RLIMIT_CORE, 0, 0).map_err(|e| format!("forbid core dumps: {e}"))?;
    let spawned = on_own_thread(move || {
        let lacking = match fence.mode {
            Sandbox::Off => Some("modules.command.sandbox is off".to_owned()),
            Sandbox::BestEffort => enter(&fence).err(),
            Sandbox::Required => {
                let hint = "hint: allow Landlock there, or set modules.command.sandbox: best-effort in node.yaml";
                enter(&fence).map_err(|e| format!("the program cannot be held to its folders: {e}\n{hint}"))?;
                None
            }
        };
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().map_err(|e| not_started(&program, &e))?;
        Ok((child, lacking))
    })?;
    if let Ok((child, _)) = &spawned {
        // Where that is not allowed the kernel chooses for itself.
        fs::write(format!("/proc/{}/oom_score_adj", child.id()), OOM_SCORE).unwrap_or(());
    }
    spawned
}

fn not_started(program: &str, error: &io::Error) -> String {
    let hint = match error.kind() {
        io::ErrorKind::NotFound if program.contains('/') => "hint: a path is looked up in the folder it is started in",
        io::ErrorKind::NotFound => "hint: is it installed on this node, and in the PATH of its daemon?",
        io::ErrorKind::PermissionDenied => "hint: is it executable? write `[sh, run.sh]` or `[python3, train.py]`",
        _ => return format!("cannot start `{program}`: {error}"),
    };
    format!("cannot start `{program}`: {error}\n{hint}")
}

/// A thread takes what it is held to with it to what it starts, and nobody else.
fn on_own_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    let thread = std::thread::Builder::new().name("fence".into()).spawn(work);
    let thread = thread.map_err(|e| format!("cannot start a thread: {e}"))?;
    thread.join().map_err(|_| "the thread that starts it panicked".to_owned())
}

/// From here on this thread is inside. Rules need files to be opened, so they come before capabilities go.
fn enter(fence: &Fence) -> Result<(), String> {
    let said = |e: landlock::RulesetError| format!("Landlock: {e}");
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort);
    let ruleset = ruleset.handle_access(AccessFs::from_all(WANTED)).map_err(said)?;
    let ruleset = ruleset.scope(Scope::from_all(WANTED)).map_err(said)?;
    let mut ruleset = ruleset.create().map_err(said)?;
    for (path, access) in rules(fence) {
        ruleset = with(ruleset, &path, access)?;
    }
    prctl::set_no_new_privs().map_err(|e| format!("forbid new privileges: {e}"))?;
    drop_capabilities()?;
    let status = ruleset.restrict_self().map_err(said)?;
    match status.landlock {
        LandlockStatus::Available { effective_abi, .. } if effective_abi >= NEEDED => Ok(()),
        LandlockStatus::Available { effective_abi, .. } => Err(format!(
            "this kernel has Landlock {}, and {} is needed (Linux 6.2)",
            effective_abi as i32, NEEDED as i32
        )),
        LandlockStatus::NotEnabled => Err("Landlock is in this kernel and not enabled".to_owned()),
        LandlockStatus::NotImplemented => Err("this kernel, or this container's filter, has no Landlock".to_owned()),
    }
}

fn with(ruleset: RulesetCreated, path: &Path, access: BitFlags<AccessFs>) -> Result<RulesetCreated, String> {
    // It may have gone since it was listed.
    let Ok(fd) = PathFd::new(path) else { return Ok(ruleset) };
    let is_dir = fs::metadata(path).is_ok_and(|meta| meta.is_dir());
    let access = if is_dir { access } else { access & AccessFs::from_file(WANTED) };
    ruleset.add_rule(PathBeneath::new(fd, access)).map_err(|e| format!("Landlock: {}: {e}", path.display()))
}

/// In the bounding set too: else the kernel gives them back to root's programs.
fn drop_capabilities() -> Result<(), String> {
    let has_some = caps::read(None, CapSet::Permitted).map_err(|e| e.to_string())?;
    if has_some.is_empty() {
        return Ok(());
    }
    for set in [CapSet::Bounding, CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::clear(None, set).map_err(|e| format!("give up capabilities: {e}"))?;
    }
    Ok(())
}

/// Every rule, by path.
fn rules(fence: &Fence) -> Vec<(PathBuf, BitFlags<AccessFs>)> {
    let read = AccessFs::from_read(WANTED);
    // Names alone of every folder: `ls /` works, and nothing that is hidden can be opened.
    let mut rules = vec![(PathBuf::from("/"), AccessFs::ReadDir.into())];
    let hidden: Vec<PathBuf> = fence.hidden.iter().filter_map(|path| path.canonicalize().ok()).collect();
    // Whoever may open a disk reads everything on it.
    let hidden: Vec<PathBuf> = hidden.into_iter().chain([PathBuf::from("/dev")]).collect();
    beside(Path::new("/"), &hidden, &mut |path| rules.push((path, read)));
    for device in devices() {
        rules.push((device, AccessFs::from_all(WANTED)));
    }
    rules.extend(fence.readable.iter().map(|path| (path.clone(), read)));
    rules.extend(fence.writable.iter().map(|path| (path.clone(), AccessFs::from_all(WANTED))));
    rules
}

/// All below a folder but what is hidden, in as few pieces as there can be. Links lead to what has a place of its own.
fn beside(folder: &Path, hidden: &[PathBuf], grant: &mut impl FnMut(PathBuf)) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_symlink()) || hidden.contains(&path) {
            continue;
        }
        if hidden.iter().any(|below| below.starts_with(&path)) {
            beside(&path, hidden, grant);
        } else {
            grant(path);
        }
    }
}

fn devices() -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir("/dev") else { return Vec::new() };
    let wanted = |name: &str| DEVICES.contains(&name) || ACCELERATORS.iter().any(|begin| name.starts_with(begin));
    let usable = |entry: &fs::DirEntry| {
        let kind = entry.file_type().ok();
        kind.is_some_and(|k| k.is_dir() || k.is_char_device()) && entry.file_name().to_str().is_some_and(wanted)
    };
    entries.flatten().filter(usable).map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hidden_and_what_is_above_it_is_not_granted() {
        let top = tempfile::tempdir().unwrap();
        let top = top.path().canonicalize().unwrap();
        for folder in ["node/data/attempts", "node/other", "plain"] {
            fs::create_dir_all(top.join(folder)).unwrap();
        }
        fs::write(top.join("node/token"), "secret").unwrap();
        fs::write(top.join("node/file"), "x").unwrap();
        std::os::unix::fs::symlink("/", top.join("plain-link")).unwrap();
        let mut granted = Vec::new();
        beside(&top, &[top.join("node/data"), top.join("node/token")], &mut |path| granted.push(path));
        granted.sort();
        assert_eq!(granted, ["node/file", "node/other", "plain"].map(|name| top.join(name)));
    }
}
