//! An agent on a mesh of real processes: its runs are started, listed and followed through any node, and one that was cut
//! off by the death of its process goes on.

use anyhow::{Context, ensure};
use mloc_tests::{CALM, Sandbox, http, root};
use serde_json::json;

fn service(agent: &str) -> String {
    format!(
        "apiVersion: mloc/v1\nkind: ServiceTask\nmetadata: {{name: helper, owner: john-doe, project: examples}}\nspec:\n  \
         taskType: agent\n  model: {{source: {{type: local, identifier: golden/models/qwen3}}}}\n  agent: {agent}\n  \
         resources: {{hardware: {{cpu: 500m, memory: 512MiB}}}}\n  health: {{every: 300ms}}\n"
    )
}

#[test]
fn runs_are_started_and_looked_at_through_any_node() -> anyhow::Result<()> {
    let mut sandbox = Sandbox::with_timing(&[], CALM)?;
    let golden = root().join("tests/fixtures/golden");
    let config = format!("hardware: {{cpu: '4', memory: 8GiB}}\nvolumes: {{golden: {}}}", golden.display());
    sandbox.mesh(&["a", "b"], &config, 1)?;

    let wrong = sandbox.dir.path().join("wrong.yaml");
    std::fs::write(&wrong, service("{budgets: {steps: 0}, tools: [{type: telepathy, name: t}]}"))?;
    let refused = sandbox.run(0, &["submit", &wrong.display().to_string()])?;
    ensure!(refused.code == 2 && refused.err.contains("spec.agent.budgets.steps"), "{refused:?}");
    ensure!(refused.err.contains("spec.agent.tools[0]"), "every problem at once: {refused:?}");

    // The model is random: what it says is nothing, and ends by its budget.
    let agent = "{system: You help., parameters: {temperature: 0}, budgets: {steps: 2, answer_tokens: 12}}";
    sandbox.submit(0, &service(agent))?;
    sandbox.until("it is ready", |s| Ok(s.run(0, &["services", "-o", "json"])?.json()?[0]["ready"] == 1))?;
    for node in 0..2 {
        sandbox
            .until("the node knows it", |s| Ok(http::get(&s.rest(node)?, "/v1/agents/helper/runs")?.status == 200))?;
        let ran = sandbox.run(node, &["agent", "run", "helper", "say", "something"])?;
        ensure!(ran.err.contains("run "), "{ran:?}");
        // It has an answer, or its tokens were at an end: both are ends that say so.
        ensure!(ran.code == 0 || ran.code == 1, "{ran:?}");
        let id = ran.err.lines().find_map(|line| line.strip_prefix("run ")).context("the run's name")?.to_owned();
        let other = sandbox.rest(1 - node)?;
        let view = http::get(&other, &format!("/v1/agents/helper/runs/{id}"))?;
        ensure!(view.status == 200 && view.body.contains(&id), "{view:?}");
        let again = sandbox.run(1 - node, &["agent", "follow", "helper", &id])?;
        assert_eq!((again.code, &again.out), (ran.code, &ran.out));
    }
    let unknown = http::post(&sandbox.rest(0)?, "/v1/agents/nobody/runs", &json!({"input": "x"}))?;
    ensure!(unknown.status == 404, "{unknown:?}");
    Ok(())
}
