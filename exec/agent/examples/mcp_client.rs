//! Calls every tool of a server that speaks MCP over HTTP, once: `mcp_client http://127.0.0.1:8000/mcp`.

use mloc_agent::{
    Settings,
    tool::{Toolbox, toolbox::Permits},
};
use serde_json::{Map, Value, json};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), String> {
    let url = std::env::args().next_back().unwrap_or_default();
    let tool = json!({ "type": "mcp_http", "name": "its", "url": url });
    let settings = json!({ "tools": [tool] });
    let said = |problems: Vec<mloc_agent::settings::Problem>| {
        problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    let settings = Settings::read(&settings).map_err(said)?;
    let tools = Toolbox::connect(&settings, &Permits::default()).await.map_err(said)?;
    for spec in tools.specs() {
        let outcome = tools.call(&spec.name, &example(&spec.schema)).await;
        println!("{}: {outcome:?}", spec.name);
    }
    tools.close().await;
    Ok(())
}

/// Some value for each required argument.
fn example(schema: &Value) -> Value {
    let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let value = |name: &str| match schema["properties"][name]["type"].as_str() {
        Some("number" | "integer") => json!(1),
        Some("boolean") => json!(true),
        Some("array") => json!([]),
        Some("object") => json!({}),
        _ => json!("text"),
    };
    Value::Object(required.map(|name| (name.to_owned(), value(name))).collect::<Map<_, _>>())
}
