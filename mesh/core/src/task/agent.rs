//! What an agent's section asks of a node. What its keys mean is the agent's to say; here only which of its tools run
//! programs, so that no node is chosen that would refuse them.

use serde_json::{Map, Value};

use super::TaskType;

/// Programs are not held to their folders where a node offers it: `modules.command.sandbox: off`.
pub const UNFENCED: &str = "sandbox:off";

/// Features of a node that tools of an agent need. Code that a model writes, and what speaks to the node's own addresses,
/// run where programs of users do; a program that speaks MCP has no fence.
pub fn needs(agent: &Map<String, Value>) -> Vec<&'static str> {
    let tools = agent.get("tools").and_then(Value::as_array).into_iter().flatten();
    let of_tool = |tool: &Value| match tool["type"].as_str() {
        Some("mcp_stdio") => vec![TaskType::Command.name(), UNFENCED],
        Some("code") => vec![TaskType::Command.name()],
        _ if tool["url"].as_str().is_some_and(is_this_machines) => vec![TaskType::Command.name()],
        _ => Vec::new(),
    };
    tools.flat_map(of_tool).collect()
}

/// Plainly written: the module knows every other way to write such an address, and refuses it itself.
fn is_this_machines(url: &str) -> bool {
    let host = url.split_once("://").map_or("", |(_, rest)| rest);
    let host = host.split(['/', '?', '#']).next().unwrap_or_default();
    let host = host.rsplit('@').next().unwrap_or_default().to_ascii_lowercase();
    host.split(':').next() == Some("localhost")
        || ["127.", "0.0.0.0", "169.254.", "[::1]", "[::]"].iter().any(|start| host.starts_with(start))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tools_that_run_programs_need_a_node_that_permits_it() {
        let of = |tool: Value| {
            let agent = json!({ "tools": [tool] });
            needs(agent.as_object().unwrap())
        };
        assert_eq!(of(json!({ "type": "mcp_stdio", "command": ["x"] })), ["command", UNFENCED]);
        assert_eq!(of(json!({ "type": "code" })), ["command"]);
        for url in ["http://127.0.0.1:7948/services/docs", "http://LOCALHOST/x", "http://u@[::1]:80/"] {
            assert_eq!(of(json!({ "type": "http", "url": url })), ["command"], "{url}");
        }
        for url in
            ["https://example.org/tickets/{key}?at=http://localhost", "http://localhost.example/", "http://10.0.0.7/"]
        {
            assert_eq!(of(json!({ "type": "mcp_http", "url": url })), [""; 0], "{url}");
        }
        assert!(needs(&Map::new()).is_empty());
    }
}
