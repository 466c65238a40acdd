//! Rules for names that end up in paths, listings and URLs. Friendlier than DNS labels, and without a way out of a
//! folder.

use super::{fields::Typed, problem::Problem};

/// A name of a task, owner or project: letters, digits, `.`, `_`, `-`, and `extra`; starts and ends with a letter or
/// digit; never `..`.
pub fn name(typed: &Typed<String>, extra: &str, longest: usize) -> Result<String, Problem> {
    let text = typed.value.as_str();
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c) || extra.contains(c);
    let edge = |c: char| c.is_ascii_alphanumeric();
    let good = text.len() <= longest
        && text.starts_with(edge)
        && text.ends_with(edge)
        && text.chars().all(allowed)
        && !text.contains("..");
    if good {
        return Ok(text.to_owned());
    }
    let expected = format!(
        "a name of at most {longest} letters, digits, `-`, `_` and `.`, that starts and ends with a letter or digit"
    );
    let problem = typed.problem(expected);
    let suggestion = suggest(text, allowed, longest);
    Err(if suggestion.is_empty() { problem } else { problem.hint(format!("write {suggestion}")) })
}

/// What the user may have meant.
fn suggest(text: &str, allowed: impl Fn(char) -> bool, longest: usize) -> String {
    let mut suggestion = String::new();
    for c in text.chars() {
        let c = if allowed(c) && c != '.' { c } else { '-' };
        if !(c == '-' && suggestion.ends_with('-')) && suggestion.len() < longest {
            suggestion.push(c);
        }
    }
    suggestion.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
}

/// A split of a hub's data set, slices such as `train[:10%]` included.
pub fn split(typed: &Typed<String>) -> Result<String, Problem> {
    let expected = "a split such as train, train[:10%] or train+validation";
    match super::split::parse(&typed.value) {
        Ok(_) if typed.value.len() <= 128 => Ok(typed.value.clone()),
        Ok(_) => Err(typed.problem(expected)),
        Err(problem) => Err(typed.problem(expected).hint(problem)),
    }
}

/// A label's or annotation's key: a name, perhaps after a prefix and a slash.
pub fn label_key(typed: &Typed<String>) -> Result<String, Problem> {
    let parts: Vec<&str> = typed.value.split('/').collect();
    let named = |part: &&str| name(&typed.with((*part).to_owned()), "", 128).is_ok();
    if parts.len() <= 2 && parts.iter().all(named) {
        return Ok(typed.value.clone());
    }
    Err(typed.problem("a key such as `team` or `example.org/team`"))
}

/// An environment variable that a task may set.
pub fn variable(typed: &Typed<String>) -> Result<String, Problem> {
    /// What the mesh itself tells the child; a task that set them would see other devices than it was granted.
    const RESERVED: [&str; 3] = ["CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "LD_PRELOAD"];
    /// The ledger is read by every voter and shown in listings.
    const SECRET: [&str; 8] = [
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "HUGGINGFACE_TOKEN",
        "OPENAI_API_KEY",
        "WANDB_API_KEY",
    ];
    let text = typed.value.as_str();
    let good = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && text.len() <= 256;
    if !good {
        return Err(typed.problem("the name of an environment variable: letters, digits and `_`"));
    }
    if RESERVED.contains(&text) || text.starts_with("MLOC_") {
        return Err(typed.problem("a variable that the mesh does not set itself"));
    }
    if SECRET.contains(&text) {
        let problem = typed.problem("no credentials in a task: it is kept in the ledger and shown in listings");
        return Err(problem.hint("set it in the worker's environment or node.yaml, and name it in `secretsFrom`"));
    }
    Ok(text.to_owned())
}

/// A path below some root: relative or absolute, without a way out of it.
pub fn path(typed: &Typed<String>, absolute_allowed: bool) -> Result<String, Problem> {
    let text = typed.value.as_str();
    let kept = || {
        let parts = text.split('/').filter(|part| !part.is_empty() && *part != "." && *part != "..");
        parts.collect::<Vec<_>>().join("/")
    };
    if text.is_empty() {
        return Err(typed.problem("a path"));
    }
    if text.len() > 1024 || text.contains(|c: char| c.is_control() || c == '\\') {
        return Err(typed.problem("a path of at most 1024 characters, parts separated by `/`"));
    }
    if text.split('/').any(|part| part == "..") {
        return Err(typed.problem("a path without `..`").hint(format!("write {}", kept())));
    }
    if text.starts_with('~') {
        return Err(typed.problem("a path without `~`, for it means another folder on every node"));
    }
    if text.starts_with('/') && !absolute_allowed {
        return Err(typed.problem("a path without a leading `/`").hint(format!("write {}", kept())));
    }
    let body = text.strip_prefix('/').unwrap_or(text);
    let body = body.strip_suffix('/').unwrap_or(body);
    if body.split('/').any(|part| part.is_empty() || part == ".") {
        return Err(typed.problem("a path without empty parts and `.`").hint(format!("write {}", kept())));
    }
    Ok(text.strip_suffix('/').unwrap_or(text).to_owned())
}
