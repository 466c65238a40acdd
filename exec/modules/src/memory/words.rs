//! A plan for people.

use mloc_burn::memory::Plan;
use mloc_core::quantity::show_bytes;

use super::{Room, Task, fitting, sizes::Sizes};

/// The lines of a plan's parts, indented.
fn parts(task: &Task, plan: &Plan) -> String {
    let beside = if task.on_gpu { "CUDA itself" } else { "the program itself" };
    let all = plan.parts.each().into_iter().chain([(beside, task.beside())]);
    let there: Vec<_> = all.filter(|(_, bytes)| *bytes > 0).collect();
    let width = there.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines = there.iter().map(|(name, bytes)| format!("  {name:width$}  {:>10}", show_bytes(*bytes)));
    lines.collect::<Vec<_>>().join("\n")
}

/// What a task will need, as its log has it.
pub fn table(task: &Task, plan: &Plan, room: Option<Room>) -> String {
    let needs = show_bytes(task.needs(plan));
    let of = match room {
        Some(room) => format!(" of {} ({})", show_bytes(room.bytes), room.whose),
        None => String::new(),
    };
    format!("memory: {needs}{of} at the fullest, {}\n{}", plan.moment.words(), parts(task, plan))
}

/// What a dry run says.
pub fn forecast(task: &Task, plan: &Plan, sizes: &Sizes) -> String {
    let needs = show_bytes(task.needs(plan));
    format!(
        "memory: {needs} at the fullest, {}, if all rows of a batch had {} tokens; the data may have shorter ones\n{}",
        plan.moment.words(),
        sizes.longest_row(),
        parts(task, plan)
    )
}

/// Why a task is not begun.
pub fn refusal(task: &Task, plan: &Plan, sizes: &Sizes, room: Room) -> String {
    let needs = task.needs(plan);
    let fits = fitting::settings_that_fit(task, sizes, room.bytes);
    let width = fits.iter().map(|fit| fit.settings.len()).max().unwrap_or(0);
    let more = match room.whose {
        "resources.hardware.memory" => format!("ask for resources.hardware.memory: {}", quantity(needs)),
        _ if task.on_gpu => "ask for a GPU with more memory (resources.hardware.gpu)".to_owned(),
        _ => format!("ask for resources.hardware.memory: {}, so that a larger node runs it", quantity(needs)),
    };
    let hint = match (fits.is_empty(), fitting::least(task, sizes)) {
        (false, _) => {
            let lines = fits.iter().map(|fit| format!("  {:width$}  {:>10}", fit.settings, show_bytes(fit.needs)));
            format!("hint: {more}; or with one of these it would fit:\n{}", lines.collect::<Vec<_>>().join("\n"))
        }
        (true, Some(least)) => {
            format!("hint: {more}; no settings fit: the least is {} with {}", show_bytes(least.needs), least.settings)
        }
        (true, None) => format!("hint: {more}; no settings need less"),
    };
    format!(
        "memory: training needs {} at its fullest moment, {}, and {} is {}:\n{}\n{hint}",
        show_bytes(needs),
        plan.moment.words(),
        room.whose,
        show_bytes(room.bytes),
        parts(task, plan)
    )
}

/// So much, rounded up, as a task asks for it.
fn quantity(bytes: u64) -> String {
    match bytes.div_ceil(1 << 20) {
        small @ ..8192 => format!("{}MiB", small.next_multiple_of(64)),
        large => format!("{}GiB", large.div_ceil(1024)),
    }
}

/// It fits, and others are where it would be.
pub fn short_of_free(needs: u64, free: u64) -> String {
    format!(
        "memory: {} will be needed, and {} are free now: what else runs on this node holds the rest\nhint: should this \
         attempt be killed, let the others end first, or ask for resources.hardware.memory, which the scheduler adds up",
        show_bytes(needs),
        show_bytes(free)
    )
}
