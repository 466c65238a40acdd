//! A model that a mesh of real processes serves: the reference library's own answers through every node, its adapters,
//! talk from the terminal, and no request lost when the node of a replica dies.

use std::process::Command;

use anyhow::{Context, ensure};
use mloc_tests::{CALM, Sandbox, http, mloc, root, run_to_end};
use serde_json::{Value, json};

fn mesh() -> anyhow::Result<Sandbox> {
    let mut sandbox = Sandbox::with_timing(&[], CALM)?;
    let config = format!(
        "hardware: {{cpu: '4', memory: 8GiB}}\nvolumes: {{golden: {}, quickstart: {}}}",
        root().join("tests/fixtures/golden").display(),
        root().join("configs/quickstart").display()
    );
    sandbox.mesh(&["a", "b", "c"], &config, 3)?;
    Ok(sandbox)
}

fn service(name: &str, replicas: u32, model: &str) -> String {
    format!(
        "apiVersion: mloc/v1\nkind: ServiceTask\nmetadata: {{name: {name}, owner: john-doe, project: examples}}\nspec:\n  \
         taskType: inference\n  model:\n{model}\n  resources: {{replicas: {replicas}, hardware: {{cpu: 500m, memory: \
         512MiB}}}}\n  health: {{every: 300ms}}\n  retry: {{backoff: 100ms}}\n  hyperparameters: {{max_num_seqs: 16}}\n"
    )
}

fn ready(sandbox: &mut Sandbox, name: &str, ask: usize, wanted: u64) -> anyhow::Result<()> {
    sandbox.until(&format!("{wanted} replicas of {name} are ready"), |s| {
        let all = s.run(ask, &["services", "-o", "json"])?.json()?;
        let service = all.as_array().and_then(|all| all.iter().find(|one| one["name"] == name)).cloned();
        let service = service.unwrap_or_default();
        let replicas = service["replicas"].as_array().cloned().unwrap_or_default();
        Ok(service["ready"] == wanted && replicas.len() as u64 == wanted)
    })
}

fn expected(path: &str) -> anyhow::Result<Value> {
    Ok(serde_json::from_slice(&std::fs::read(root().join("tests/fixtures/golden").join(path))?)?)
}

/// What the model goes on with, through a node.
fn greedy(address: &str, model: &str) -> anyhow::Result<Value> {
    let golden = expected("models/llama/expected.json")?;
    let body = json!({"model": model, "prompt": golden["greedy"]["prompt_ids"], "temperature": 0, "max_tokens": 20,
        "ignore_eos": true, "return_token_ids": true});
    let answer = http::post(address, "/v1/completions", &body)?;
    ensure!(answer.status == 200, "{answer:?}");
    Ok(answer.json()?["choices"][0]["token_ids"].clone())
}

/// OpenAI's own client, where its package can be had.
fn openai_for_python(sandbox: &Sandbox) -> anyhow::Result<()> {
    let kept = mloc_tests::target_tmp().join("clients");
    std::fs::create_dir_all(&kept)?;
    let script = root().join("tests/fixtures/clients/openai_on_a_mesh.py");
    let mut command = Command::new(root().join("exec/openai/tests/clients/python.sh"));
    command.current_dir(&kept).arg(&kept).arg("openai==3.57.0").arg(script);
    let ran = run_to_end(command.arg(format!("http://{}", sandbox.rest(2)?)).args(["tiny", "tuned"]))?;
    if ran.code == 3 {
        return mloc_tests::skip("openai for Python can't be had");
    }
    ensure!(ran.code == 0, "{ran:?}");
    Ok(())
}

#[test]
fn a_model_answers_through_every_node_as_the_reference_does_and_outlives_a_node() -> anyhow::Result<()> {
    let mut sandbox = mesh()?;
    let model = "    source: {type: local, identifier: golden/models/llama}\n    adapter: {name: tuned, source: {type: \
                 local, identifier: golden/lora/llama/adapter_final}}";
    sandbox.submit(0, &service("tiny", 2, model))?;
    ready(&mut sandbox, "tiny", 0, 2)?;
    let wanted = expected("models/llama/expected.json")?["greedy"]["new_ids"].clone();
    let tuned = greedy(&sandbox.rest(0)?, "tiny:tuned")?;
    assert_ne!(tuned, wanted, "an adapter changes what is answered");
    for node in 0..3 {
        let at = sandbox.rest(node)?;
        // Gossip may be a moment behind the leader.
        sandbox.until("the node knows the service", |s| {
            let models = http::get(&s.rest(node)?, "/v1/models")?.json()?;
            Ok(models["data"].as_array().is_some_and(|all| all.iter().any(|one| one["id"] == "tiny")))
        })?;
        assert_eq!(greedy(&at, "tiny")?, wanted);
        assert_eq!(greedy(&at, "tiny:tuned")?, tuned);
        let body = json!({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5,
            "stream": true, "stream_options": {"include_usage": true}});
        let streamed = http::post(&at, "/v1/chat/completions", &body)?;
        ensure!(streamed.status == 200 && streamed.body.ends_with("data: [DONE]\n\n"), "{streamed:?}");
        ensure!(streamed.body.contains("\"completion_tokens\":5"), "{streamed:?}");
        let refused = http::post(&at, "/v1/completions", &json!({"model": "tiny:nobody", "prompt": "x"}))?;
        ensure!(refused.status == 404, "{refused:?}");
        let metrics = http::get(&at, "/services/tiny/metrics")?;
        ensure!(metrics.body.contains("vllm:num_requests_running{model_name=\"tiny\""), "{metrics:?}");
    }

    openai_for_python(&sandbox)?;
    let said = sandbox.run(1, &["chat", "tiny", "hello", "there", "--max-tokens", "6", "--temperature", "0"])?;
    ensure!(said.code == 0 && !said.out.trim().is_empty(), "{said:?}");
    let again = sandbox.run(2, &["chat", "tiny", "hello there", "--max-tokens", "6", "--temperature", "0"])?;
    assert_eq!(said.out, again.out);
    let unknown = sandbox.run(0, &["chat", "nobody", "hi"])?;
    ensure!(unknown.code == 3 && unknown.err.contains("served are tiny"), "{unknown:?}");

    // A replica's node, and not the one that is asked.
    let all = sandbox.run(0, &["services", "-o", "json"])?.json()?;
    let holder = all[0]["replicas"].as_array().into_iter().flatten().filter_map(|one| one["node_name"].as_str());
    let holders: Vec<usize> = holder.map(|name| sandbox.named(name)).collect::<anyhow::Result<_>>()?;
    let leader = sandbox.leader(0)?;
    let dies = holders.into_iter().find(|node| *node != leader).context("two nodes have a replica")?;
    let ask = (0..3).find(|node| *node != dies).context("another")?;
    sandbox.kill(dies)?;
    for _ in 0..20 {
        assert_eq!(greedy(&sandbox.rest(ask)?, "tiny")?, wanted);
    }
    ready(&mut sandbox, "tiny", ask, 2)?;
    assert_eq!(greedy(&sandbox.rest(ask)?, "tiny")?, wanted);
    Ok(())
}

#[test]
fn what_a_task_has_trained_is_served() -> anyhow::Result<()> {
    let mut sandbox = mesh()?;
    let whole = std::fs::read_to_string(root().join("configs/quickstart.yaml"))?;
    let short = whole.replace("max_steps: 175", "max_steps: 3").replace("cpu: 1500m", "cpu: 500m");
    let short = short.replace("generation_max_new_tokens: 32", "generation_max_new_tokens: 4");
    let trained = sandbox.submit(0, &short)?;
    sandbox.until_state(0, &trained, &["COMPLETED"])?;
    let model = format!(
        "    source: {{type: local, identifier: quickstart/model}}\n    adapter: {{source: {{type: task, identifier: \
         {trained}}}}}"
    );
    sandbox.submit(1, &service("wishes", 1, &model))?;
    ready(&mut sandbox, "wishes", 1, 1)?;
    let asked = ["chat", "wishes:adapter", "Put node-november out of service.", "--max-tokens", "8"];
    sandbox.until("gossip has it", |s| Ok(s.run(2, &asked)?.code == 0))?;
    let base = json!({"model": "wishes", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3});
    let base = http::post(&sandbox.rest(0)?, "/v1/chat/completions", &base)?;
    ensure!(base.status == 200, "{base:?}");
    Ok(())
}

#[test]
fn one_command_talks_to_a_model_and_its_adapter_without_a_mesh() -> anyhow::Result<()> {
    let golden = root().join("tests/fixtures/golden");
    let chat = |more: &[&str]| {
        let mut command = Command::new(mloc());
        command.arg("chat").arg(golden.join("models/llama")).args(["hello", "--temperature", "0", "--max-tokens", "8"]);
        run_to_end(command.args(more))
    };
    let base = chat(&[])?;
    ensure!(base.code == 0 && !base.out.trim().is_empty(), "{base:?}");
    let adapter = golden.join("lora/llama/adapter_final").display().to_string();
    let tuned = chat(&["--adapter", &adapter])?;
    ensure!(tuned.code == 0 && tuned.out != base.out, "{tuned:?}");
    let other = golden.join("lora/qwen3/adapter_final").display().to_string();
    let refused = chat(&["--adapter", &other])?;
    ensure!(refused.code == 2 && refused.err.contains("adapter"), "{refused:?}");
    let nowhere = run_to_end(Command::new(mloc()).args(["chat", "m", "hi", "--node", "127.0.0.1:1"]))?;
    ensure!(nowhere.code == 4, "{nowhere:?}");
    Ok(())
}

/// Bad models end the task with words, not in a loop of attempts.
#[test]
fn a_model_that_cannot_be_served_says_why() -> anyhow::Result<()> {
    let mut sandbox = Sandbox::with_timing(&[], CALM)?;
    let golden = root().join("tests/fixtures/golden");
    let config = format!("hardware: {{cpu: '4', memory: 8GiB}}\nvolumes: {{golden: {}}}", golden.display());
    sandbox.mesh(&["a"], &config, 1)?;
    // It has weights and a config.
    let speechless = "    source: {type: local, identifier: golden/models/mixtral}";
    let id = sandbox.submit(0, &service("speechless", 1, speechless))?;
    let failed = sandbox.until_state(0, &id, &["FAILED"])?;
    ensure!(failed.to_string().contains("models/mixtral: no tokenizer.json (hint: "), "{failed}");
    Ok(())
}
