//! Settings as they are written.

use mloc_agent::{Settings, settings::Problem};
use serde_json::{Value, json};

fn problems(value: &Value) -> String {
    let told: Vec<String> = Settings::read(value).unwrap_err().iter().map(Problem::to_string).collect();
    told.join("\n")
}

#[test]
fn little_is_enough() {
    insta::assert_json_snapshot!(Settings::read(&json!({})).unwrap());
}

#[test]
fn all_kinds_of_tools() {
    let tools = json!([
        { "type": "mcp_stdio", "name": "files", "command": ["server", "--root", "/data"], "env_from": ["TOKEN"], "allow": ["read*"] },
        { "type": "mcp_http", "name": "issues", "url": "https://mcp.example/mcp", "headers_from_env": { "authorization": "ISSUES" } },
        { "type": "http", "name": "weather", "description": "of a place", "url": "https://api.example/weather/{place}",
          "parameters": { "type": "object", "properties": { "place": { "type": "string" }, "days": { "type": "integer" } } } },
        { "type": "retrieve", "name": "manual", "description": "the manual", "url": "http://h:2", "service": "docs" },
        { "type": "code", "name": "run" },
    ]);
    let value = json!({ "model": { "url": "http://h:1/v1", "name": "m" }, "tools": tools, "approval": ["files_*"] });
    let settings: Settings = serde_json::from_value(value).unwrap();
    assert_eq!(settings.model.as_ref().map(|model| (model.name.as_str(), model.silence_s)), Some(("m", 300)));
    insta::assert_json_snapshot!(settings.tools);
}

#[test]
fn every_problem_is_said_at_once() {
    let value = json!({
        "modle": {},
        "model": { "url": "localhost:8000" },
        "parameters": { "stream": false },
        "tool_choice": "always",
        "budgets": { "steps": 0, "tokens": "many" },
        "patience": { "repeats": 1 },
        "hosts": ["a.example"],
        "tools": [
            { "type": "htttp" },
            { "type": "mcp_stdio", "name": "a b", "command": [] },
            { "type": "http", "name": "x", "url": "https://b.example/{id}", "places": { "y": "path" }, "parameters": { "type": 3 } },
            { "type": "code", "name": "x", "timeout": 3 },
            { "type": "retrieve", "name": "x" },
            7,
        ],
        "approval": "all",
    });
    insta::assert_snapshot!(problems(&value));
    let told = problems(&json!({ "tool_choice": "required" }));
    assert_eq!(told, "tool_choice: there is no tool to call\nhint: name tools, or leave it out");
    assert_eq!(problems(&json!([])), "settings: [] is no section\nhint: write its fields below it");
}
