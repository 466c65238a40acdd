//! A plan for people.

use mloc_burn::memory::Plan;
use mloc_core::quantity::show_bytes;

use super::{Room, Task, fitting, sizes::Sizes};

/// The lines of a plan's parts, indented.
fn parts(task: &Task, plan: &Plan) -> String {
    let beside = if task.place.on_gpu { "CUDA itself" } else { "the program itself" };
    let others = task.needs(plan) - plan.peak() - task.beside();
    let all = plan.parts.each().into_iter().chain([("further devices", others), (beside, task.beside())]);
    let there: Vec<_> = all.filter(|(_, bytes)| *bytes > 0).collect();
    let width = there.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines = there.iter().map(|(name, bytes)| format!("  {name:width$}  {:>10}", show_bytes(*bytes)));
    let mut lines: Vec<String> = lines.collect();
    if many_gpus(task) {
        lines.push(format!(
            "each GPU holds the whole model and has micro-batches of its own; the others do without the optimizer and need {}",
            show_bytes(task.needs_of_others(plan))
        ));
    }
    lines.join("\n")
}

fn many_gpus(task: &Task) -> bool {
    task.place.on_gpu && task.place.devices > 1
}

/// Where it is needed.
fn on_what(task: &Task) -> String {
    match many_gpus(task) {
        true => format!(" on the first of {} GPUs", task.place.devices),
        false => String::new(),
    }
}

/// What a task will need, as its log has it.
pub fn table(task: &Task, plan: &Plan, room: Option<Room>) -> String {
    let needs = show_bytes(task.needs(plan));
    let of = match room {
        Some(room) => format!(" of {} ({})", show_bytes(room.bytes), room.whose),
        None => String::new(),
    };
    let on = on_what(task);
    format!("memory: {needs}{on}{of} at the fullest, {}\n{}", plan.moment.words(), parts(task, plan))
}

/// What a dry run says.
pub fn forecast(task: &Task, plan: &Plan, sizes: &Sizes) -> String {
    let needs = show_bytes(task.needs(plan));
    format!(
        "memory: {needs}{} at the fullest, {}, if all rows of a batch had {} tokens; the data may have shorter ones\n{}",
        on_what(task),
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
        _ if many_gpus(task) => "ask for GPUs with more memory (resources.hardware.gpu), for more of them hold the \
                                 model just as often"
            .to_owned(),
        _ if task.place.on_gpu => "ask for a GPU with more memory (resources.hardware.gpu)".to_owned(),
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
        "memory: training needs {}{} at its fullest moment, {}, and {} is {}:\n{}\n{hint}",
        show_bytes(needs),
        on_what(task),
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
