//! A device that runs out of memory, which the library beneath says by a panic.

use std::panic;

use mloc_burn::device::full;
use mloc_core::quantity::show_bytes;
use mloc_exec::{ModuleError, RunContext};

/// Does work that may find a device full.
///
/// # Errors
/// What the work says; and that the device has no memory left, with the plan and with what would need less.
pub fn unless_full<T>(
    ctx: &mut RunContext,
    work: impl FnOnce(&mut RunContext) -> Result<T, ModuleError>,
) -> Result<T, ModuleError> {
    // What the work left half done goes with this process: after an error nothing is begun any more.
    let done = panic::catch_unwind(panic::AssertUnwindSafe(|| work(&mut *ctx)));
    done.unwrap_or_else(|panic| match full(&*panic) {
        Some(said) => Err(ModuleError::Fatal(words(said, ctx.needed()))),
        None => panic::resume_unwind(panic),
    })
}

fn words(said: &str, needed: Option<(u64, &str)>) -> String {
    let advice = "per_device_train_batch_size: 1 with as many more gradient_accumulation_steps, \
                  gradient_checkpointing: true, a shorter max_length";
    let (planned, advice) = match needed {
        None => (String::new(), advice),
        Some((bytes, less)) => {
            let advice = if less.is_empty() { advice } else { less };
            (format!("; the plan was {} at its fullest", show_bytes(bytes)), advice)
        }
    };
    format!("the device has no memory left: {said}{planned}\nhint: what needs less: {advice}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_with_the_plan_and_with_what_needs_less() {
        let said = "out of device memory allocating 67108864 bytes";
        let planned = words(said, Some((3 << 30, "gradient_checkpointing: true (1.0 GiB)")));
        assert_eq!(
            planned,
            "the device has no memory left: out of device memory allocating 67108864 bytes; the plan was 3.0 GiB at its \
             fullest\nhint: what needs less: gradient_checkpointing: true (1.0 GiB)"
        );
        assert!(words(said, None).contains("gradient_accumulation_steps"));
    }
}
