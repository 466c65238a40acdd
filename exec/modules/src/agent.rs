//! `taskType: agent`: a model that calls tools until it has an answer. Its runs are logs in the replica's folder on the
//! node, which outlives attempts there: a run that was cut off goes on when the replica is there again.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::StreamExt;
use mloc_agent::{
    Agent, Runs, Settings,
    event::ToolSpec,
    http::router,
    model::{Answer, Chat, ChatError, Delta, openai},
    run::Ask,
    runs::Limits,
    settings::ToolSettings,
    tool::{Toolbox, toolbox::Permits},
};
use mloc_core::task::{
    TaskSpec,
    problem::{At, Problem},
};
use mloc_exec::{Module, ModuleError, ModuleOutput, RunContext, Sandbox};
use serde_json::{Map, Value};
use url::{Host, Url};

use crate::{
    fatal,
    inference::{self, Loaded, inner::Inner},
};

/// What a call that is under way may take when the replica is to stop; what takes longer is told as unknown.
const STOP: Duration = Duration::from_secs(5);

/// The module.
pub struct AgentModule;

impl Module for AgentModule {
    fn name(&self) -> &'static str {
        "agent"
    }

    fn run(&self, ctx: &mut RunContext) -> Result<ModuleOutput, ModuleError> {
        let settings = settings(&ctx.run().spec).map_err(|problems| {
            let told = problems.iter().map(|p| format!("{}: found {}, expected {}", p.path, p.found, p.expected));
            fatal(told.collect::<Vec<_>>().join("\n"))
        })?;
        // Programs that speak MCP have no fence here: they run where programs of users have none either.
        let programs = ctx.run().programs.as_ref();
        let unfenced = programs.is_some_and(|programs| programs.sandbox == Sandbox::Off);
        let permits = Permits { code: programs.is_some(), programs: unfenced };
        if programs.is_none()
            && let Some(url) = to_this_machine(&settings)
        {
            // Another node may allow it.
            let hint = "hint: what speaks to this machine's own addresses is trusted as its users are; that is said by \
                        modules.command.enabled: true in node.yaml";
            return Err(ModuleError::Retryable(format!(
                "spec.agent.tools: {url} is an address of this machine\n{hint}"
            )));
        }
        let threads = inference::threads()?;
        let toolbox = threads.block_on(Toolbox::connect(&settings, &permits)).map_err(|problems| {
            let told: Vec<String> = problems.iter().map(|problem| format!("spec.agent.{problem}")).collect();
            ModuleError::Retryable(told.join("\n"))
        })?;
        for spec in toolbox.specs() {
            ctx.log(format_args!("tool {}: {}", spec.name, spec.description.lines().next().unwrap_or_default()));
        }
        let loaded = Loaded::of(ctx)?;
        loaded.decoder()?;
        let chat = Arc::new(Own {
            inner: Inner(loaded.routes.clone()),
            name: loaded.name.clone(),
            parameters: settings.parameters.clone(),
        });
        // Beside the checkpoints of other tasks: what is there outlives this attempt.
        let folder = ctx.run().checkpoints.join("runs");
        let agent = Agent { name: loaded.name.clone(), settings, chat, toolbox };
        let runs = threads.block_on(async { Runs::open(&folder, agent, Limits::default()) });
        let runs = runs.map_err(|error| ModuleError::Retryable(error.to_string()))?;
        let routes = router(runs.clone()).fallback_service(loaded.routes.clone());
        let listening = inference::listen(ctx, threads, routes)?;
        Err(inference::serve(ctx, &loaded, listening, |threads| {
            threads.block_on(runs.shut_down(STOP));
        }))
    }
}

/// An agent's settings: its model is the task's.
///
/// # Errors
/// Every problem, with its place in the task.
pub fn settings(spec: &TaskSpec) -> Result<Settings, Vec<Problem>> {
    let written: Map<String, Value> = spec.agent.clone().unwrap_or_default();
    if written.contains_key("model") {
        return Err(vec![Problem::new("spec.agent.model", At::START, "a model", "none: it is the task's own `model`")]);
    }
    // Where in the file it stands the task's own reader knows, and this one does not.
    let problem = |found: &mloc_agent::settings::Problem| {
        Problem::new(format!("spec.agent.{}", found.path), At::START, &found.found, &found.hint)
    };
    Settings::read(&Value::Object(written)).map_err(|problems| problems.iter().map(problem).collect())
}

/// The first address of a tool by which this node's REST would take it for one of the machine's own users: those are
/// told by the name they ask for.
fn to_this_machine(settings: &Settings) -> Option<&str> {
    let mut urls = settings.tools.iter().filter_map(|tool| match tool {
        ToolSettings::McpHttp(server) => Some(server.url.as_str()),
        ToolSettings::Http(call) => Some(call.url.as_str()),
        ToolSettings::Retrieve(service) => Some(service.url.as_str()),
        ToolSettings::McpStdio(_) | ToolSettings::Code(_) => None,
    });
    urls.find(|url| is_loopback(url))
}

fn is_loopback(url: &str) -> bool {
    // Names of arguments in braces stand behind the host, which is read as a client reads it.
    let Ok(url) = Url::parse(url) else { return true };
    match url.host() {
        Some(Host::Domain(name)) => name.trim_end_matches('.').eq_ignore_ascii_case("localhost"),
        Some(Host::Ipv4(ip)) => ip.is_loopback() || ip.is_unspecified() || ip.is_link_local(),
        Some(Host::Ipv6(ip)) => {
            let v4 = ip.to_ipv4_mapped().is_some_and(|v4| v4.is_loopback() || v4.is_unspecified());
            ip.is_loopback() || ip.is_unspecified() || ip.is_unicast_link_local() || v4
        }
        None => true,
    }
}

/// The field that is refused where a schema cannot be made a grammar.
const GRAMMAR: &str = "structured_outputs.grammar";

/// A call that the model begins becomes a whole one, with arguments that match the tool's schema, whatever it would write.
fn to_the_letter(mut body: Value) -> Value {
    for tool in body.get_mut("tools").and_then(Value::as_array_mut).into_iter().flatten() {
        tool["function"]["strict"] = true.into();
    }
    body
}

/// The model of the same process.
struct Own {
    inner: Inner,
    name: String,
    parameters: Map<String, Value>,
}

#[async_trait]
impl Chat for Own {
    async fn answer(
        &self,
        ask: &Ask,
        tools: &[ToolSpec],
        tell: &(dyn Fn(Delta) + Send + Sync),
    ) -> Result<Answer, ChatError> {
        let body = openai::body(&self.name, &self.parameters, ask, tools);
        let mut asked = self.inner.ask(to_the_letter(body.clone())).await;
        if asked.as_ref().is_err_and(|refused| refused.body["error"]["param"] == GRAMMAR) {
            // Some schema says what no grammar can: the machine of the run tells the model what did not fit.
            asked = self.inner.ask(body).await;
        }
        let mut bytes = asked.map_err(|refused| {
            let said =
                refused.body["error"]["message"].as_str().map_or_else(|| refused.body.to_string(), str::to_owned);
            match refused.status {
                429 | 503 => ChatError::Retryable(said),
                _ => ChatError::Fatal(said),
            }
        })?;
        let mut reading = openai::Reading::default();
        while let Some(piece) = bytes.next().await {
            let piece = piece.map_err(|error| ChatError::Retryable(format!("the answer broke off: {error}")))?;
            if reading.take(&piece, tell)? {
                break;
            }
        }
        reading.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_this_machine_is_known_however_it_is_written() {
        for url in [
            "http://127.0.0.1:7948/api/v1/backup",
            "http://127.1/x",
            "http://2130706433/x",
            "http://LOCALHOST:7948/{a}",
            "http://localhost./",
            "http://[::1]:7948/",
            "http://[::ffff:127.0.0.1]/",
            "http://0.0.0.0:7948/",
            "http://169.254.169.254/latest",
        ] {
            assert!(is_loopback(url), "{url}");
        }
        for url in ["https://en.wikipedia.org/page/{title}", "http://10.0.0.7:8080/", "http://localhost.example/"] {
            assert!(!is_loopback(url), "{url}");
        }
    }
}
