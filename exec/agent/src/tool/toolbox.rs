//! An agent's tools, by name: each with the time it may take and a limit on what it returns.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::Value;

use super::{Tool, code::CodeTool, fence, http_tool::HttpTool, mcp, retrieve::RetrieveTool};
use crate::{
    client,
    event::{Outcome, ToolSpec},
    run::schema,
    settings::{Problem, Settings, ToolSettings, names},
};

/// What a node lets agents do, whatever their settings say. By default nothing of it.
#[derive(Clone, Debug, Default)]
pub struct Permits {
    /// Run code that a model writes.
    pub code: bool,
    /// Start programs that speak MCP. They run as this process does.
    pub programs: bool,
}

/// A line on which nothing comes for so long is taken for dead. A call's own time ends it earlier.
const IDLE: Duration = Duration::from_secs(3600);

/// Tools by name.
pub struct Toolbox {
    tools: BTreeMap<String, Held>,
    output_bytes: usize,
}

struct Held {
    tool: Arc<dyn Tool>,
    timeout: Duration,
}

/// Tools that can be used, and what is wrong with those that cannot.
type Made = Result<Vec<Arc<dyn Tool>>, String>;

impl Toolbox {
    /// Without tools.
    pub fn new(output_bytes: usize) -> Self {
        Self { tools: BTreeMap::new(), output_bytes }
    }

    /// With a tool.
    #[must_use]
    pub fn with(mut self, tool: Arc<dyn Tool>, timeout: Duration) -> Self {
        self.tools.insert(tool.spec().name.clone(), Held { tool, timeout });
        self
    }

    /// With all tools of an agent: programs are started and servers spoken to.
    ///
    /// # Errors
    /// Every problem.
    pub async fn connect(settings: &Settings, permits: &Permits) -> Result<Self, Vec<Problem>> {
        let mut toolbox = Self::new(settings.tool_output_bytes);
        let mut problems = Vec::new();
        for (i, one) in settings.tools.iter().enumerate() {
            let timeout = Duration::from_secs(one.timeout_s().unwrap_or(settings.tool_timeout_s));
            let path = format!("tools[{i}]");
            match make(one, permits, timeout).await {
                Ok(made) => {
                    for tool in made {
                        problems.extend(toolbox.take(tool, timeout, settings, &path).err());
                    }
                }
                Err(found) => {
                    let hint = "mend it, or leave the tool out";
                    problems.push(Problem { path, found, hint: hint.to_owned() });
                }
            }
        }
        problems.extend(toolbox.unmatched(settings));
        if problems.is_empty() { Ok(toolbox) } else { Err(problems) }
    }

    fn take(&mut self, tool: Arc<dyn Tool>, timeout: Duration, settings: &Settings, path: &str) -> Result<(), Problem> {
        let spec = tool.spec();
        let name = spec.name.clone();
        if settings.allow.as_ref().is_some_and(|allow| !names::any_matches(allow, &name)) {
            return Ok(());
        }
        let problem = |found: String, hint: &str| Problem { path: path.to_owned(), found, hint: hint.to_owned() };
        if let Err(e) = schema::compile(&spec.schema) {
            return Err(problem(format!("the schema of `{name}` is broken: {e}"), "leave it out with `allow`"));
        }
        if self.tools.contains_key(&name) {
            return Err(problem(format!("there are two tools `{name}`"), "give their servers different names"));
        }
        self.tools.insert(name, Held { tool, timeout });
        Ok(())
    }

    /// Names in `allow` and `approval` that no tool has: a slip there would let a call pass unasked.
    fn unmatched(&self, settings: &Settings) -> Vec<Problem> {
        let lists = [("allow", settings.allow.as_deref().unwrap_or_default()), ("approval", &settings.approval)];
        let known: Vec<&str> = self.tools.keys().map(String::as_str).collect();
        let of_list = |(path, patterns): (&str, &[String])| -> Vec<Problem> {
            let unused = patterns.iter().filter(|one| {
                let one = std::slice::from_ref(*one);
                !known.iter().any(|name| names::any_matches(one, name))
            });
            let problem = |pattern: &String| Problem {
                path: path.to_owned(),
                found: format!("no tool is called `{pattern}`"),
                hint: match names::nearest(pattern, &known) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("there are: {}", known.join(", ")),
                },
            };
            unused.map(problem).collect()
        };
        lists.into_iter().flat_map(of_list).collect()
    }

    /// What a model sees.
    pub fn specs(&self) -> Vec<ToolSpec> {
        self.tools.values().map(|held| held.tool.spec().clone()).collect()
    }

    /// Calls a tool, within its time, and cuts what it returns.
    pub async fn call(&self, name: &str, arguments: &Value) -> Outcome {
        let Some(held) = self.tools.get(name) else {
            return Outcome::failed(format!("error: the tool `{name}` is not there any more"));
        };
        let outcome = tokio::time::timeout(held.timeout, held.tool.call(arguments)).await;
        let outcome = outcome.unwrap_or_else(|_| {
            let seconds = held.timeout.as_secs_f64();
            Outcome::failed(format!(
                "error: `{name}` was given up after {seconds} seconds. It may have had its effect; ask for less at once"
            ))
        });
        Outcome { content: cut(outcome.content, self.output_bytes), ..outcome }
    }

    /// Lets go of what tools hold, all at once: a server that is slow to end keeps no other waiting.
    pub async fn close(&self) {
        futures::future::join_all(self.tools.values().map(|held| held.tool.close())).await;
    }
}

async fn make(settings: &ToolSettings, permits: &Permits, timeout: Duration) -> Made {
    match settings {
        ToolSettings::McpStdio(_) if !permits.programs => {
            Err("this node starts no programs for agents: it would have to permit it".to_owned())
        }
        ToolSettings::Code(_) if !permits.code => {
            Err("this node runs no code of models: it would have to permit it".to_owned())
        }
        ToolSettings::McpStdio(it) => mcp::connect(mcp::How::Program(it.clone()), &it.name, &it.server).await,
        ToolSettings::McpHttp(it) => {
            let (client, headers) = (client::http(IDLE)?, client::headers(&BTreeMap::new(), &it.headers_from_env)?);
            let how = mcp::How::Http { url: it.url.clone(), client, headers };
            mcp::connect(how, &it.name, &it.server).await
        }
        ToolSettings::Http(it) => Ok(vec![Arc::new(HttpTool::new(it.clone(), client::http(IDLE)?)?)]),
        ToolSettings::Retrieve(it) => Ok(vec![Arc::new(RetrieveTool::new(it.clone(), client::http(IDLE)?)?)]),
        ToolSettings::Code(it) => {
            fence::available()?;
            Ok(vec![Arc::new(CodeTool::new(it.clone(), timeout))])
        }
    }
}

/// The beginning and the end: an error often stands at the end.
fn cut(text: String, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text;
    }
    let half = bytes_max / 2;
    let (head, tail) = (text.floor_char_boundary(half), text.ceil_char_boundary(text.len() - half));
    let left_out = tail - head;
    format!("{}\n[… {left_out} bytes left out: ask for less at once …]\n{}", &text[..head], &text[tail..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_keeps_its_beginning_and_its_end() {
        assert_eq!(cut("short".into(), 10), "short");
        assert_eq!(cut("äbcdefghij".repeat(3), 8), "äbc\n[… 25 bytes left out: ask for less at once …]\nghij");
    }
}
