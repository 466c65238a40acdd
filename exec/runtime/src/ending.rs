//! How a child that said nothing more came to its end.

use std::{io, os::unix::process::ExitStatusExt, process::ExitStatus};

use mloc_core::{quantity::show_bytes, worker::Exit};

use crate::{launch, relay::Needs};

/// How a process ended, as the worker takes it.
pub(crate) fn exit_of(status: io::Result<ExitStatus>) -> Exit {
    match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, signal) => Exit::Signal(signal.unwrap_or_default()),
        },
        Err(e) => Exit::NotStarted { why: format!("cannot wait for it: {e}") },
    }
}

/// A death by signal, with what the container knows of it and what the child said that it needs. The worker has words for
/// the other ends.
pub(crate) fn unsaid(exit: &Exit, oom_before: Option<u64>, needs: Option<&Needs>) -> Option<String> {
    words(exit, oom_before, launch::oom_kills(), needs)
}

/// The same of given counts of kills for want of memory.
fn words(exit: &Exit, oom_before: Option<u64>, oom_after: Option<u64>, needs: Option<&Needs>) -> Option<String> {
    let Exit::Signal(signal) = exit else { return None };
    let name = nix::sys::signal::Signal::try_from(*signal).map_or("unknown", |s| s.as_str());
    let killed = format!("the child was killed by signal {signal} ({name})");
    if *signal != 9 {
        return Some(format!("{killed}; its log may say why"));
    }
    let hint = match needs {
        None => "hint: ask for more resources.hardware.memory, or make batches or lengths smaller".to_owned(),
        Some(Needs { bytes, advice }) => {
            let planned = format!("its plan was {} at its fullest", show_bytes(*bytes));
            match advice.as_str() {
                "" => format!("{planned}\nhint: ask for more resources.hardware.memory than that"),
                advice => {
                    format!("{planned}\nhint: ask for more resources.hardware.memory than that, or for less: {advice}")
                }
            }
        }
    };
    match (oom_before, oom_after) {
        (Some(before), Some(after)) if after > before => Some(format!(
            "{killed}: out of memory: the container's limit was hit {} times meanwhile\n{hint}",
            after - before
        )),
        (Some(_), Some(_)) => {
            Some(format!("{killed}; the container counts no out-of-memory kill: somebody or something else sent it"))
        }
        _ => Some(format!("{killed}; out of memory?\n{hint}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_for_want_of_memory_comes_with_the_plan() {
        let killed = |signal, before, after, needs: Option<&Needs>| words(&Exit::Signal(signal), before, after, needs);
        let needs = Needs { bytes: 3 << 30, advice: "gradient_checkpointing: true needs 1.0 GiB".into() };
        let said = killed(9, Some(1), Some(2), Some(&needs)).expect("words");
        let wanted = "the child was killed by signal 9 (SIGKILL): out of memory: the container's limit was hit 1 times \
                      meanwhile\nits plan was 3.0 GiB at its fullest\nhint: ask for more resources.hardware.memory than \
                      that, or for less: gradient_checkpointing: true needs 1.0 GiB";
        assert_eq!(said, wanted);
        let unplanned = killed(9, None, None, None).expect("words");
        assert!(
            unplanned.ends_with(
                "; out of memory?\nhint: ask for more resources.hardware.memory, or make batches or \
                                     lengths smaller"
            ),
            "{unplanned}"
        );
        let other = killed(9, Some(1), Some(1), Some(&needs)).expect("words");
        assert!(!other.contains("plan"), "{other}");
        assert!(killed(11, Some(1), Some(2), Some(&needs)).expect("words").ends_with("its log may say why"));
        assert_eq!(words(&Exit::Code(1), None, None, Some(&needs)), None);
    }
}
