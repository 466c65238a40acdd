//! What is reported fits into one entry of the ledger. A larger one could never be committed, and would be sent for
//! ever.

use mloc_core::ledger::entry::{Failure, TaskResult};
use mloc_exec::event::{MESSAGE_BYTES_MAX, bounded};
use serde::Serialize;

/// Bytes of a summary, as JSON. Entries of raft are bounded to 768 KiB; this and the list of files stay far below.
const SUMMARY_BYTES_MAX: usize = 128 << 10;
/// Bytes of a list of files, as JSON: some 1,500 files. The manifest at the destination has them all.
const ARTIFACTS_BYTES_MAX: usize = 256 << 10;

/// A failure whose message keeps beginning and end.
pub(crate) fn failure(failure: Failure) -> Failure {
    Failure { message: bounded(&failure.message, MESSAGE_BYTES_MAX), ..failure }
}

/// A result that says what is left out of it.
pub(crate) fn result(mut result: TaskResult) -> TaskResult {
    let mut left_out = Vec::new();
    while size(&result.summary) > SUMMARY_BYTES_MAX {
        let largest = result.summary.iter().max_by_key(|(name, value)| name.len() + size(value));
        let Some(name) = largest.map(|(name, _)| name.clone()) else { break };
        result.summary.remove(&name);
        left_out.push(bounded(&name, 64));
    }
    if !left_out.is_empty() {
        let why = format!("{} of the largest figures, too large for the ledger; see the manifest", left_out.len());
        result.summary.insert("left_out".into(), why.into());
    }
    let (mut bytes, files) = (0, result.artifacts.len());
    let fit = result.artifacts.iter().take_while(|artifact| {
        bytes += size(artifact) + 1;
        bytes <= ARTIFACTS_BYTES_MAX
    });
    let fit = fit.count();
    if fit < files {
        result.artifacts.truncate(fit);
        let why = format!("{} of {files} files are not listed here; see the manifest", files - fit);
        result.summary.insert("artifacts_left_out".into(), why.into());
    }
    result
}

fn size(value: &impl Serialize) -> usize {
    serde_json::to_vec(value).map_or(0, |bytes| bytes.len())
}

#[cfg(test)]
mod tests {
    use mloc_core::ledger::entry::{Artifact, FailureClass};

    use super::*;

    #[test]
    fn whatever_a_module_says_fits_into_an_entry() {
        let message = "e".repeat(2 << 20);
        assert!(failure(Failure { class: FailureClass::Fatal, message }).message.len() < 20 << 10);

        let small = TaskResult {
            location: "s3://b/p".into(),
            artifacts: vec![],
            summary: [("loss".to_owned(), 0.5.into())].into(),
        };
        assert_eq!(result(small.clone()), small);
        let artifact = |n: usize| Artifact {
            path: format!("logs/{n:0100}"),
            kind: "logs".into(),
            bytes: 1,
            sha256: "0".repeat(64),
        };
        let mut large = TaskResult { artifacts: (0..10_000).map(artifact).collect(), ..small.clone() };
        large.summary.insert("answers".into(), "a".repeat(3 << 20).into());
        let fits = result(large);
        assert!(size(&fits) < 512 << 10, "{}", size(&fits));
        assert_eq!(fits.summary["loss"], 0.5);
        assert!(fits.summary["artifacts_left_out"].as_str().is_some_and(|s| s.contains("of 10000 files")));
        assert!(fits.summary.contains_key("left_out"));
    }
}
