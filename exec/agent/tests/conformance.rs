//! MCP's own conformance tests of clients, where they can be had: MCP_CONFORMANCE is the command that runs them, as
//! `npx --yes -p node@22 -p @modelcontextprotocol/conformance conformance`.

use std::process::Command;

/// What an agent needs of a server. It signs in nowhere, and no person fills in forms for it.
const SCENARIOS: [&str; 3] = ["initialize", "tools_call", "sse-retry"];

#[test]
fn a_client_as_mcp_wants_it() {
    let Ok(conformance) = std::env::var("MCP_CONFORMANCE") else {
        println!("not run: MCP_CONFORMANCE is not set");
        return;
    };
    let words: Vec<&str> = conformance.split_whitespace().collect();
    let folder = tempfile::tempdir().unwrap();
    for scenario in SCENARIOS {
        let ran = Command::new(words[0])
            .args(&words[1..])
            .args(["client", "--command", &client(), "--scenario", scenario])
            .current_dir(folder.path())
            .output()
            .unwrap();
        let said = format!("{}\n{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        assert!(ran.status.success() && !said.contains("Warnings: 1"), "{scenario}: {said}");
    }
}

/// The example is built with the tests, beside them.
fn client() -> String {
    let tests = std::env::current_exe().unwrap();
    let target = tests.parent().and_then(|deps| deps.parent()).unwrap();
    target.join("examples/mcp_client").display().to_string()
}
