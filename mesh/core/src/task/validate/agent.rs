//! An agent's own section. What its keys mean is the agent's to say, which lists every problem itself; here it is held to
//! what may stand in the ledger: little, and no secrets. How deep it may be is the bound of every file.

use serde_json::{Map, Value};

use super::Validation;
use crate::task::{
    kind::{TaskType, TaskTypeRow},
    places,
    problem::{At, Problem},
    raw::{RawAgent, RawSpec},
    yaml::{Key, Node, Tree},
};

/// Most bytes as JSON: instructions of some pages, and schemas of some dozens of tools.
const BYTES_MAX: usize = 64 << 10;
/// Maps whose keys are names of others and whose values never hold a secret.
const OF_NAMES: [&str; 2] = ["headers_from_env", "places"];

impl Validation<'_> {
    pub(super) fn agent(&mut self, spec: &RawSpec, row: Option<&TaskTypeRow>) -> Option<Map<String, Value>> {
        let row = row?;
        match (&spec.agent, row.task_type == TaskType::Agent) {
            (Some(raw), true) => self.agents_own(raw),
            (Some(raw), false) => {
                let expected = format!("no agent with {}, which calls no tools itself", row.name);
                let problem = Problem::new("spec.agent", raw.at, "the key `agent`", expected);
                self.problems.push(problem.hint("write `taskType: agent`"));
                None
            }
            (None, true) if !spec.has("agent") => {
                let at = spec.at.unwrap_or(At::START);
                let expected = "a map with `system`, `tools` and the like: what the agent is for, and what it may use";
                self.problems.push(Problem::new("spec.agent", at, "nothing", expected));
                None
            }
            (None, _) => None,
        }
    }

    fn agents_own(&mut self, raw: &RawAgent) -> Option<Map<String, Value>> {
        self.without_secrets("spec.agent", &raw.entries);
        let agent: Map<String, Value> = raw.entries.iter().map(|(key, node)| (key.text.clone(), node.json())).collect();
        let bytes = serde_json::to_vec(&agent).map_or(usize::MAX, |json| json.len());
        if bytes > BYTES_MAX {
            let expected = format!("at most {BYTES_MAX} bytes as JSON");
            let problem = Problem::new("spec.agent", raw.at, format!("{bytes} bytes"), expected);
            self.problems.push(problem.hint("what an agent is to know it finds with its tools"));
            return None;
        }
        Some(agent)
    }

    /// A task is stored on every voter and listed to every user.
    fn without_secrets(&mut self, path: &str, entries: &[(Key, Node)]) {
        for (key, node) in entries {
            let path = format!("{path}.{}", key.text);
            match &node.tree {
                Tree::Map(below) if !OF_NAMES.contains(&key.text.as_str()) => self.without_secrets(&path, below),
                Tree::List(items) => self.without_secrets_in(&path, items),
                Tree::Scalar { .. } => {
                    let Some(Value::String(text)) = node.json_scalar().filter(|value| *value != "") else { continue };
                    let found = match key.text.as_str() {
                        "url" => places::credentials(&text),
                        name => places::names_a_secret(name).then_some("a secret"),
                    };
                    let Some(found) = found else { continue };
                    let problem = Problem::new(path, node.at, found, "no secrets in a task");
                    self.problems.push(problem.hint(
                        "name the variable that holds it, with `key_env`, `env_from` or `headers_from_env`; \
                         `spec.secretsFrom` brings it from the workers' node.yaml",
                    ));
                }
                Tree::Map(_) => {}
            }
        }
    }

    fn without_secrets_in(&mut self, path: &str, items: &[Node]) {
        for (place, item) in items.iter().enumerate() {
            let path = format!("{path}[{place}]");
            match &item.tree {
                Tree::Map(below) => self.without_secrets(&path, below),
                Tree::List(items) => self.without_secrets_in(&path, items),
                Tree::Scalar { .. } => {}
            }
        }
    }
}
