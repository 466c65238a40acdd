//! A device that runs out of memory. The library beneath reports it by a panic: its text is all there is to go by.

use std::{any::Any, panic};

use mloc_core::quantity::show_bytes;
use mloc_exec::{ModuleError, RunContext};

/// How the library says it, in words and as its error types are printed.
const SAID: [&str; 5] = [
    "out of device memory",
    "can't allocate buffer of size",
    "An out-of-memory error",
    "OutOfMemory {",
    "BufferTooBig {",
];

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
    done.unwrap_or_else(|panic| match text_of(&*panic).and_then(first_line) {
        Some(said) => Err(ModuleError::Fatal(words(said, ctx.needed()))),
        None => panic::resume_unwind(panic),
    })
}

fn text_of(panic: &(dyn Any + Send)) -> Option<&str> {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
}

/// The line that speaks of it; backtraces follow.
fn first_line(text: &str) -> Option<&str> {
    text.lines().find(|line| SAID.iter().any(|said| line.contains(said)))
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
    format!("the device has no memory left: {}{planned}\nhint: what needs less: {advice}", said.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_librarys_words_are_known_and_others_are_not() {
        for said in [
            "called `Result::unwrap()` on an `Err` value: Io(OutOfMemory { size: 4096, backtrace: .. })",
            "Error in server\nout of device memory allocating 67108864 bytes\n   0: a backtrace",
            "can't allocate buffer of size: 99",
        ] {
            assert!(first_line(said).is_some_and(|line| !line.contains("backtrace\n")), "{said}");
        }
        assert_eq!(first_line("index out of bounds: the len is 3"), None);
    }

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
