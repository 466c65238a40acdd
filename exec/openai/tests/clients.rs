//! Real clients, unchanged: OpenAI's for Python and Node, langchain-openai, litellm, and schemathesis, which makes
//! requests of openapi.json that nobody thought of. Each prints SKIP where its package can't be had.

mod scripted;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use mloc_engine::forward::ForwardError;
use mloc_openai::Limits;
use scripted::{End, Plan, Scripted, card, listen, server};

fn here(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

/// Where clients are kept between runs.
fn kept() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients")
}

fn plans() -> Vec<Plan> {
    let call = |city: &str| {
        format!("<tool_call>\n{{\"name\": \"get_weather\", \"arguments\": {{\"city\": \"{city}\"}}}}\n</tool_call>\n")
    };
    vec![
        Plan { ends: End::Never, ..Plan::says("endless", "and so on ") },
        Plan { ends: End::Fail(ForwardError::Device("lost".into()).into()), ..Plan::says("break", "Not who") },
        Plan::says("weather?", &format!("Let me look. {}{}", call("Paris"), call("Rome"))),
    ]
}

/// Runs a client against a server of its own; says whether it could be had.
async fn run(name: &str, plans: Vec<Plan>, arguments: impl Fn(&str) -> Command + Send + 'static) {
    let (address, _stop) = listen(server(&Scripted::new(card(), plans), Limits::default())).await;
    let url = format!("http://{address}");
    let output = tokio::task::spawn_blocking(move || arguments(&url).output()).await.unwrap().expect("sh runs");
    let told = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(3) {
        println!("SKIP: {name} can't be had: {told}");
        return;
    }
    assert!(output.status.success(), "{name}: {told}");
    println!("{name}: {}", told.trim());
}

fn python(requirement: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(here("python.sh"));
    std::fs::create_dir_all(kept()).unwrap();
    // Some write where they are.
    command.current_dir(kept()).arg(kept()).arg(requirement).args(arguments);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn openai_for_python() {
    let script = here("openai_client.py").display().to_string();
    run("openai for Python", plans(), move |url| python("openai==3.57.0", &[&script, url])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn openai_for_node() {
    let script = here("openai_client.mjs");
    run("openai for Node", plans(), move |url| {
        let mut command = Command::new(here("node.sh"));
        command.arg(kept()).arg(&script).arg(url);
        command
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "two large packages: run with --ignored"]
async fn langchain_and_litellm() {
    let script = here("more_clients.py").display().to_string();
    run("langchain-openai and litellm", plans(), move |url| {
        python("langchain-openai==1.7.4 litellm==1.110.2", &[&script, url])
    })
    .await;
}

/// Any request that openapi.json allows, and many that it doesn't: no 5xx, no answer that the document doesn't know.
#[tokio::test(flavor = "multi_thread")]
async fn schemathesis() {
    run("schemathesis", vec![], |url| {
        let document = format!("{url}/openapi.json");
        let checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";
        let arguments = [
            "schemathesis",
            "run",
            &document,
            "--checks",
            checks,
            "--max-examples",
            "40",
            "--seed",
            "7",
            "--no-color",
            "--generation-database",
            "none",
        ];
        python("schemathesis==4.32.5", &arguments)
    })
    .await;
}
