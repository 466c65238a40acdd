//! A node's capability as two gossip values: what seldom changes, and what is measured anew every few seconds.
//!
//! The first is written so that it fits one value however many GPUs a node has: equal GPUs side by side are written
//! once, and the reasons why some may not be used are shortened when they must be (the node's own log has them whole).
//! The second is small, so that a busy GPU or a filling disk does not send the whole to everybody.

use mloc_core::capability::{Capability, Gpu};
use serde::{Deserialize, Serialize};

use super::{PublishError, VALUE_BYTES_MAX, json_value, keys};

/// Signature, counter and separators of a signed value have less than this many bytes.
const SIGNATURE_BYTES_MAX: usize = 128;
/// Reasons are cut to the first of these lengths (characters) with which the whole fits.
const REASON_CHARS: [usize; 4] = [400, 160, 60, 20];

/// What is measured all the time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Load {
    /// Free bytes on the data directory's file system.
    disk_bytes: u64,
    /// Utilisation of each GPU in percent, in the order of the capability's.
    gpu_percent: Vec<u32>,
}

#[derive(Serialize, Deserialize)]
struct Written {
    /// Everything but the GPUs.
    node: Capability,
    gpus: Vec<Equal>,
}

/// GPUs side by side that differ in their index only.
#[derive(Serialize, Deserialize)]
struct Equal {
    count: u32,
    first: Gpu,
}

/// Both values' texts: capability, load.
pub(crate) fn write(capability: &Capability) -> Result<(String, String), PublishError> {
    let load = Load {
        disk_bytes: capability.disk_bytes,
        gpu_percent: capability.gpus.iter().map(|gpu| gpu.utilisation_percent).collect(),
    };
    let mut bytes = 0;
    for chars in REASON_CHARS {
        let text = json_value(&stable(capability, chars));
        bytes = text.len() + SIGNATURE_BYTES_MAX;
        if bytes <= VALUE_BYTES_MAX {
            return Ok((text, json_value(&load)));
        }
    }
    Err(PublishError::TooLarge { key: keys::CAPABILITY.to_owned(), bytes })
}

/// The capability, with the load if that was heard. Without, the node has no room yet rather than room unknown.
pub(crate) fn read(capability: &str, load: Option<&str>) -> Option<Capability> {
    let Written { node: mut capability, gpus } = serde_json::from_str(capability).ok()?;
    for Equal { count, first } in gpus {
        // A forged count must not become memory: no machine has more.
        for index in (first.index..).take(count.min(1024) as usize) {
            capability.gpus.push(Gpu { index, ..first.clone() });
        }
    }
    if let Some(load) = load.and_then(|text| serde_json::from_str::<Load>(text).ok()) {
        capability.disk_bytes = load.disk_bytes;
        for (gpu, percent) in capability.gpus.iter_mut().zip(load.gpu_percent) {
            gpu.utilisation_percent = percent;
        }
    }
    Some(capability)
}

fn stable(capability: &Capability, reason_chars: usize) -> Written {
    let mut gpus: Vec<Equal> = Vec::new();
    for gpu in &capability.gpus {
        let unusable = gpu.unusable.as_deref().map(|reason| shortened(reason, reason_chars));
        let gpu = Gpu { utilisation_percent: 0, unusable, ..gpu.clone() };
        match gpus.last_mut() {
            Some(equal) if Gpu { index: equal.first.index + equal.count, ..equal.first.clone() } == gpu => {
                equal.count += 1;
            }
            Some(_) | None => gpus.push(Equal { count: 1, first: gpu }),
        }
    }
    Written { node: Capability { disk_bytes: 0, gpus: Vec::new(), ..capability.clone() }, gpus }
}

fn shortened(reason: &str, chars: usize) -> String {
    match reason.char_indices().nth(chars) {
        Some((end, _)) => format!("{}…", &reason[..end]),
        None => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mloc_core::id::NodeId;

    fn capability(gpus: u32, unusable: impl Fn(u32) -> Option<String>) -> Capability {
        let gpu = |index| Gpu {
            index,
            kind: "nvidia-h100-80gb".into(),
            memory_bytes: 80 << 30,
            driver: "550.54.15".into(),
            utilisation_percent: index % 100,
            unusable: unusable(index),
            unusable_for_good: false,
        };
        Capability {
            node: NodeId::new("12D3KooWPqT2nMDSiXUSx5D7fasaxhxKigVhcqfkKqrLghCq9jxz"),
            name: "gpu-1".into(),
            version: "0.1.0".into(),
            cpu_model: "AMD EPYC 9654 96-Core Processor".into(),
            cpu_features: "x86_64 avx2 fma avx512f avx512bw avx512vl".into(),
            cpu_millis: 192_000,
            memory_bytes: 1 << 40,
            disk_bytes: 3 << 40,
            gpus: (0..gpus).map(gpu).collect(),
            matmul_gflops: Some(110),
            features: (0..50).map(|n| format!("feature-{n}:name")).collect(),
            labels: [("zone".to_owned(), "a".to_owned())].into(),
            work: true,
            vote: true,
            reachable: true,
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let mut whole = capability(16, |index| (index == 3).then(|| "a foreign process is on it".to_owned()));
        let (text, load) = write(&whole).unwrap();
        assert_eq!(read(&text, Some(&load)), Some(whole.clone()));
        // The load alone changes when a GPU is busy or the disk fills.
        whole.gpus[0].utilisation_percent = 99;
        whole.disk_bytes -= 1 << 30;
        let (same, other) = write(&whole).unwrap();
        assert!(same == text && other != load);
        assert_eq!(read(&text, None).map(|c| c.disk_bytes), Some(0));
        assert_eq!(read("{}", None), None);
    }

    #[test]
    fn sixteen_gpus_with_a_long_reason_each_fit() {
        let reason = |index| Some(format!("GPU {index}: {}", "the probe's kernel failed with a long error ".repeat(9)));
        let (text, load) = write(&capability(16, reason)).unwrap();
        assert!(text.len() + SIGNATURE_BYTES_MAX <= VALUE_BYTES_MAX && load.len() < 200, "{} bytes", text.len());
        let gpus = read(&text, Some(&load)).unwrap().gpus;
        assert_eq!((gpus.len(), gpus[15].index, gpus[15].utilisation_percent), (16, 15, 15));
        assert!(gpus[15].unusable.as_ref().is_some_and(|r| r.starts_with("GPU 15: ") && r.ends_with('…')));
        assert!(write(&capability(1000, |_| None)).is_ok(), "a thousand alike are one line");
    }

    #[test]
    fn what_can_never_fit_is_said() {
        let mut huge = capability(1, |_| None);
        huge.labels = (0..200).map(|n| (format!("label-{n}"), "x".repeat(40))).collect();
        let error = write(&huge).unwrap_err().to_string();
        assert!(error.contains("`cap`") && error.contains("4096"), "{error}");
    }
}
