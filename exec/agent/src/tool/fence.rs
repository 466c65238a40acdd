//! What code of a model is held to, by the kernel: it reads the system's programs and libraries, writes in its own folder, has
//! no network, no capabilities and no way to what other processes hold.
//!
//! Landlock holds it to files, seccomp to system calls, both taken by a thread that then starts it. Not held: the disk as a whole
//! (each of its files is), and how long it computes up to its time.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use caps::{CapSet, Capability, CapsHashSet};
use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, LandlockStatus, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, Scope,
};
use nix::{libc, sys::prctl};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// The version whose rights are asked for; older kernels know fewer.
const WANTED: ABI = ABI::V6;
/// The least that holds it to its folder: before it files outside can be cut to nothing (Linux 6.2).
const NEEDED: ABI = ABI::V3;
/// The one that holds signals to those inside (Linux 6.12). Before it there are none at all.
const SCOPES: ABI = ABI::V6;
/// What programs need to run at all.
const READABLE: [&str; 18] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/etc/alternatives",
    "/etc/group",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/dev/random",
    "/dev/urandom",
];
const DEVICES: [&str; 3] = ["/dev/null", "/dev/zero", "/dev/full"];

/// What one piece of code is held to.
#[derive(Clone, Debug, Default)]
pub struct Fence {
    /// Its folder.
    pub writable: PathBuf,
    /// Folders it may read beside the system's.
    pub readable: Vec<PathBuf>,
    /// It will be another user: so much has to stay possible until then.
    pub changes_user: bool,
    /// The group of processes it joins, and stays in.
    pub group: i32,
}

/// Whether this machine can hold code so.
///
/// # Errors
/// What it lacks.
pub fn available() -> Result<(), String> {
    // A thread that entered it never comes out again.
    let thread = std::thread::Builder::new().name("fence".into()).spawn(|| enter(&Fence::default()));
    let thread = thread.map_err(|e| format!("cannot start a thread: {e}"))?;
    thread.join().map_err(|_| "the thread that tried panicked".to_owned())?
}

/// From here on this thread is inside, and what it starts is too. Rules need files to be opened, so they come before
/// capabilities go; and no call is forbidden before the last of these is made.
///
/// # Errors
/// What this machine lacks.
pub fn enter(fence: &Fence) -> Result<(), String> {
    let said = |e: landlock::RulesetError| format!("Landlock: {e}");
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort);
    let ruleset = ruleset.handle_access(AccessFs::from_all(WANTED)).map_err(said)?;
    let ruleset = ruleset.scope(Scope::from_all(WANTED)).map_err(said)?;
    let mut ruleset = ruleset.create().map_err(said)?;
    let read = AccessFs::from_read(WANTED);
    let everything = AccessFs::from_all(WANTED);
    let system = READABLE.iter().map(Path::new).chain(fence.readable.iter().map(PathBuf::as_path));
    for path in system {
        ruleset = with(ruleset, path, read)?;
    }
    for device in DEVICES {
        ruleset = with(ruleset, Path::new(device), everything)?;
    }
    if !fence.writable.as_os_str().is_empty() {
        ruleset = with(ruleset, &fence.writable, everything)?;
    }
    prctl::set_no_new_privs().map_err(|e| format!("forbid new privileges: {e}"))?;
    drop_capabilities(fence.changes_user)?;
    let status = ruleset.restrict_self().map_err(said)?;
    let holds_signals = match status.landlock {
        LandlockStatus::Available { effective_abi, .. } if effective_abi >= NEEDED => effective_abi >= SCOPES,
        LandlockStatus::Available { effective_abi, .. } => {
            let (found, needed) = (effective_abi as i32, NEEDED as i32);
            return Err(format!("this kernel has Landlock {found}, and {needed} is needed (Linux 6.2)"));
        }
        LandlockStatus::NotEnabled => return Err("Landlock is in this kernel and not enabled".to_owned()),
        LandlockStatus::NotImplemented => {
            return Err("this kernel, or this container's filter, has no Landlock".to_owned());
        }
    };
    let filters = filters(fence.group, holds_signals)?;
    filters.iter().try_for_each(|one| seccompiler::apply_filter(one).map_err(|e| format!("seccomp: {e}")))
}

fn with(ruleset: RulesetCreated, path: &Path, access: BitFlags<AccessFs>) -> Result<RulesetCreated, String> {
    let Ok(fd) = PathFd::new(path) else { return Ok(ruleset) };
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(WANTED) };
    ruleset.add_rule(PathBeneath::new(fd, access)).map_err(|e| format!("Landlock: {}: {e}", path.display()))
}

/// In the bounding set too: else the kernel gives them back to root's programs. Those to become another user go with that.
fn drop_capabilities(changes_user: bool) -> Result<(), String> {
    let said = |e: caps::errors::CapsError| format!("give up capabilities: {e}");
    if caps::read(None, CapSet::Permitted).map_err(said)?.is_empty() {
        return Ok(());
    }
    for set in [CapSet::Bounding, CapSet::Ambient, CapSet::Inheritable] {
        caps::clear(None, set).map_err(said)?;
    }
    let to_change = CapsHashSet::from([Capability::CAP_SETUID, Capability::CAP_SETGID]);
    let kept = if changes_user { to_change } else { CapsHashSet::new() };
    caps::set(None, CapSet::Effective, &kept).map_err(said)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(said)
}

/// Calls that are answered with "not permitted".
const FORBIDDEN: &[libc::c_long] = &[
    // The network: without a socket there is none, and a ring makes sockets too. Pairs of them stay, for a program with itself.
    libc::SYS_socket,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // What other processes hold.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_shmget,
    libc::SYS_msgget,
    libc::SYS_semget,
    libc::SYS_mq_open,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    // All it starts stays in its group: that is how all of it is ended.
    libc::SYS_setsid,
    // Other views of the system.
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    // The kernel's rarer doors.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_personality,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_vhangup,
];
#[cfg(target_arch = "x86_64")]
const FORBIDDEN_HERE: &[libc::c_long] = &[libc::SYS_modify_ldt, libc::SYS_iopl, libc::SYS_ioperm];
#[cfg(not(target_arch = "x86_64"))]
const FORBIDDEN_HERE: &[libc::c_long] = &[];
/// Forbidden where Landlock does not hold them: a process of the same user could be ended.
const SIGNALS: &[libc::c_long] = &[
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_tgkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_pidfd_send_signal,
];
/// The same calls by other numbers, which the kernel takes for the same processor.
#[cfg(target_arch = "x86_64")]
const OTHER_NUMBERS: &[i64] = &[0, 0x4000_0000];
#[cfg(not(target_arch = "x86_64"))]
const OTHER_NUMBERS: &[i64] = &[0];

/// Flags of `clone` that make another view of the system.
const NAMESPACES: [libc::c_int; 8] = [
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWUTS,
    // Traced from its beginning: by whom it is started.
    libc::CLONE_PTRACE,
];

fn filters(group: i32, holds_signals: bool) -> Result<[BpfProgram; 2], String> {
    let said = |e: seccompiler::BackendError| format!("seccomp: {e}");
    let mut forbidden = BTreeMap::new();
    let signals = if holds_signals { &[] } else { SIGNALS };
    for call in FORBIDDEN.iter().chain(FORBIDDEN_HERE).chain(signals) {
        OTHER_NUMBERS.iter().for_each(|other| drop(forbidden.insert(*call + other, Vec::new())));
    }
    let mut with_flags = Vec::new();
    for flag in NAMESPACES {
        let flag = u64::from(flag.cast_unsigned());
        let has = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(flag), flag);
        with_flags.push(SeccompRule::new(vec![has.map_err(said)?]).map_err(said)?);
    }
    OTHER_NUMBERS.iter().for_each(|other| drop(forbidden.insert(libc::SYS_clone + other, with_flags.clone())));
    let unlike = |argument, value| {
        let differs = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, value);
        SeccompRule::new(vec![differs.map_err(said)?]).map_err(said)
    };
    let elsewhere = vec![unlike(0, 0)?, unlike(1, u64::from(group.cast_unsigned()))?];
    OTHER_NUMBERS.iter().for_each(|other| drop(forbidden.insert(libc::SYS_setpgid + other, elsewhere.clone())));
    // Its flags are behind a pointer, where a filter cannot look: "there is no such call" makes a C library use the other one.
    let hidden = OTHER_NUMBERS.iter().map(|other| (libc::SYS_clone3 + other, Vec::new())).collect();
    let made = |calls, answer: libc::c_int| {
        let arch = std::env::consts::ARCH.try_into().map_err(said)?;
        let (allow, answer) = (SeccompAction::Allow, SeccompAction::Errno(answer.cast_unsigned()));
        SeccompFilter::new(calls, allow, answer, arch).and_then(BpfProgram::try_from).map_err(said)
    };
    Ok([made(forbidden, libc::EPERM)?, made(hidden, libc::ENOSYS)?])
}
