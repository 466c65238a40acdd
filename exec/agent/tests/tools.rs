//! Tools as they are written, against real servers and programs.

mod support;

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Path, RawQuery},
    http::{HeaderMap, StatusCode, header},
    response::IntoResponse,
    routing::{any, post},
};
use mloc_agent::{
    event::Outcome,
    settings::Problem,
    tool::{Toolbox, toolbox::Permits},
};
use serde_json::{Value, json};
use support::{Closing, LONG, Served, serve, settings};
use tokio::sync::Barrier;

const ALL: Permits = Permits { code: true, programs: true };

async fn connect(more: &Value) -> Result<Toolbox, Vec<Problem>> {
    Toolbox::connect(&settings(more), &ALL).await
}

fn fixture() -> Vec<String> {
    vec!["python3".into(), "-u".into(), format!("{}/tests/fixtures/mcp_server.py", env!("CARGO_MANIFEST_DIR"))]
}

async fn stdio(more: Value) -> Toolbox {
    let mut tool = json!({ "type": "mcp_stdio", "name": "fix", "command": fixture() });
    for (name, value) in more.as_object().unwrap() {
        tool[name] = value.clone();
    }
    connect(&json!({ "tools": [tool] })).await.unwrap_or_else(|problems| panic!("{problems:?}"))
}

#[tokio::test]
async fn a_program_that_speaks_mcp() {
    let tools = stdio(json!({ "env": { "GIVEN": "yes" }, "timeout_s": 20 })).await;
    let idempotent: Vec<String> =
        tools.specs().into_iter().filter(|spec| spec.idempotent).map(|spec| spec.name).collect();
    assert_eq!(idempotent, ["fix_echo", "fix_pid"], "both pages, and what the hints say");
    let call = async |name: &str, arguments: Value| tools.call(name, &arguments).await;
    assert_eq!(call("fix_echo", json!({ "text": "hällo" })).await, Outcome::done("hällo"));
    assert_eq!(call("fix_fail", json!({})).await, Outcome::failed("it did not work"));
    assert_eq!(call("fix_refuse", json!({})).await, Outcome::failed("error: no such thing"));
    assert_eq!(call("fix_env", json!({ "name": "GIVEN" })).await, Outcome::done("yes"));
    assert_eq!(call("fix_env", json!({ "name": "CARGO_MANIFEST_DIR" })).await, Outcome::done("not set"));
    let flood = call("fix_flood", json!({})).await;
    assert!(flood.content.len() < 40_000 && flood.content.contains("bytes left out"), "{}", flood.content.len());
    assert_eq!(call("fix_noise", json!({})).await, Outcome::done("heard"));
    tools.close().await;
}

#[tokio::test]
async fn a_program_that_dies_is_started_again_and_one_that_hangs_is_given_up() {
    let tools = stdio(json!({})).await;
    let pid = async || tools.call("fix_pid", &json!({})).await.content;
    let first = pid().await;
    let died = tools.call("fix_die", &json!({})).await;
    assert!(!died.ok && died.content.contains("it went away"), "{died:?}");
    let second = pid().await;
    assert!(second.parse::<u32>().is_ok() && second != first, "{second}");
    tools.close().await;

    let tools = stdio(json!({ "timeout_s": 1 })).await;
    let hung = tools.call("fix_sleep", &json!({})).await;
    assert!(hung.content.contains("given up"), "{hung:?}");
    let pid = tools.call("fix_pid", &json!({})).await.content;
    // It sleeps on: the next call waits in vain as well.
    assert!(pid.contains("given up"), "{pid}");
    drop(tools);
}

#[tokio::test]
async fn tools_are_closed_at_once() {
    let together = Arc::new(Barrier::new(3));
    let tools = ["a", "b", "c"].map(|name| Closing::new(name, &together));
    let toolbox = tools.into_iter().fold(Toolbox::new(1024), |toolbox, tool| toolbox.with(tool, LONG));
    tokio::time::timeout(LONG, toolbox.close()).await.expect("one waits for another to have closed");
}

#[tokio::test]
async fn what_is_wrong_with_tools_is_said_all_at_once() {
    let tools = json!([
        { "type": "mcp_stdio", "name": "a", "command": fixture(), "env": { "FIXTURE": "broken" } },
        { "type": "mcp_stdio", "name": "b", "command": ["/no/such/program"] },
        { "type": "mcp_stdio", "name": "c", "command": fixture(), "allow": ["ecko"] },
        { "type": "mcp_http", "name": "d", "url": "http://127.0.0.1:9/mcp" },
        { "type": "http", "name": "e", "description": "x", "url": "http://h/", "headers_from_env": { "x-key": "NO_SUCH_VARIABLE" } },
    ]);
    let problems = connect(&json!({ "tools": tools, "approval": ["f"] })).await.err().unwrap();
    let said: Vec<String> = problems.iter().map(Problem::to_string).collect();
    let said = said.join("\n---\n");
    for wanted in [
        "cannot find its configuration",
        "cannot start `/no/such/program`",
        "it has no tool `ecko`",
        "tools[3]: it does not greet back",
        "the variable NO_SUCH_VARIABLE is not set",
        "approval: no tool is called `f`",
    ] {
        assert!(said.contains(wanted), "{wanted} is not in:\n{said}");
    }
    let both = json!([
        { "type": "mcp_stdio", "name": "a", "command": fixture() }, { "type": "code", "name": "run" },
    ]);
    let none = Toolbox::connect(&settings(&json!({ "tools": both })), &Permits::default()).await;
    assert_eq!(none.err().unwrap().len(), 2, "a node permits neither by itself");
}

/// Shows a request as it came.
async fn shown(Path(rest): Path<String>, RawQuery(query): RawQuery, headers: HeaderMap, body: String) -> Json<Value> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok().map(str::to_owned));
    Json(json!({ "path": rest, "query": query, "body": body, "key": header("x-key"), "fixed": header("x-fixed") }))
}

async fn web() -> Served {
    let router = Router::new()
        .route("/show/{*rest}", any(shown))
        .route("/missing", any(|| async { (StatusCode::NOT_FOUND, "no such item") }))
        .route("/near", any(|| async { (StatusCode::FOUND, [(header::LOCATION, "/show/here")]).into_response() }))
        .route(
            "/far",
            any(|| async { (StatusCode::FOUND, [(header::LOCATION, "http://other.invalid/")]).into_response() }),
        )
        .route("/flood", any(|| async { "x".repeat(3 << 20) }))
        .route("/hang", any(|| async { std::future::pending::<()>().await }));
    serve(router).await
}

#[tokio::test]
async fn a_call_over_http() {
    let web = web().await;
    let tool = |name: &str, more: Value| {
        let mut tool = json!({ "type": "http", "name": name, "description": "a test's", "url": format!("{}/{name}", web.url), "timeout_s": 2 });
        for (name, value) in more.as_object().unwrap() {
            tool[name] = value.clone();
        }
        tool
    };
    let parameters = json!({ "type": "object", "properties": {
        "id": { "type": "string" }, "q": { "type": "string" }, "tags": { "type": "array" }, "n": { "type": "integer" },
    } });
    let shown = |name: &str, more: Value| {
        let mut more = more;
        more["url"] = format!("{}/show/items/{{id}}?fixed=1", web.url).into();
        more["parameters"] = parameters.clone();
        tool(name, more)
    };
    let tools = json!([
        shown("read", json!({ "headers": { "x-fixed": "f" }, "headers_from_env": { "x-key": "CARGO_PKG_NAME" } })),
        shown("write", json!({ "method": "POST", "places": { "q": "query" } })),
        tool("missing", json!({})),
        tool("near", json!({})),
        tool("far", json!({})),
        tool("flood", json!({})),
        tool("hang", json!({})),
    ]);
    let tools = connect(&json!({ "tools": tools, "hosts": ["127.0.0.1"] })).await.unwrap_or_else(|p| panic!("{p:?}"));
    let arguments = json!({ "id": "a/../b", "q": "x&y", "tags": ["s", "t"], "n": 3 });
    let read: Value = serde_json::from_str(&tools.call("read", &arguments).await.content).unwrap();
    assert_eq!(read["path"], "items/a/../b");
    assert_eq!(read["query"], "fixed=1&q=x%26y&tags=s&tags=t&n=3");
    assert_eq!((&read["key"], &read["fixed"], &read["body"]), (&json!("mloc-agent"), &json!("f"), &json!("")));
    let written: Value = serde_json::from_str(&tools.call("write", &arguments).await.content).unwrap();
    assert_eq!(written["query"], "fixed=1&q=x%26y");
    let body: Value = serde_json::from_str(written["body"].as_str().unwrap()).unwrap();
    assert_eq!(body, json!({ "tags": ["s", "t"], "n": 3 }));
    let call = async |name: &str| tools.call(name, &json!({})).await;
    assert_eq!(call("missing").await, Outcome::failed("error: HTTP 404 Not Found\nno such item"));
    assert!(call("near").await.content.contains("\"path\":\"here\""));
    assert!(call("far").await.content.contains("not followed to another host"));
    let flood = call("flood").await;
    assert!(flood.content.contains("it was not read further") && flood.content.len() < 40_000);
    assert!(call("hang").await.content.contains("given up"));
    let lacking = tools.call("read", &json!({})).await;
    assert_eq!(lacking, Outcome::failed("error: `id` is missing: it stands in the address"));
    let specs = tools.specs();
    let idempotent = |name: &str| specs.iter().find(|spec| spec.name == name).unwrap().idempotent;
    assert!(idempotent("read") && !idempotent("write"));
}

#[tokio::test]
async fn passages_of_a_retrieval_service() {
    let ask = async |Path(service): Path<String>, Json(asked): Json<Value>| {
        let text = format!("{service} {} {}", asked["query"], asked["top_k"]);
        Json(json!({ "data": [{ "text": text, "document_name": "bees.pdf", "pages": [3, 3] }] }))
    };
    let web = serve(Router::new().route("/base/v1/rag/{service}/retrieve", post(ask))).await;
    let tool = json!({ "type": "retrieve", "name": "look_up", "description": "of bees", "url": format!("{}/base/", web.url), "service": "docs" });
    let tools = connect(&json!({ "tools": [tool] })).await.unwrap_or_else(|p| panic!("{p:?}"));
    let found = tools.call("look_up", &json!({ "query": "dance", "top_k": 2 })).await;
    assert_eq!(found, Outcome::done("[1] bees.pdf, page 3\ndocs \"dance\" 2"));
    assert!(tools.call("look_up", &json!({ "query": "dance" })).await.content.ends_with(" 5"));
}

mod sdk {
    //! A server of MCP's own SDK.

    use rmcp::{
        ErrorData, RoleServer, ServerHandler,
        model::{
            CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ListToolsResult,
            PaginatedRequestParams, ServerCapabilities, ServerConfig, Tool,
        },
        service::RequestContext,
    };
    use serde_json::json;

    #[derive(Clone)]
    pub struct Adder;

    impl ServerHandler for Adder {
        fn get_info(&self) -> ServerConfig {
            ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
        }

        async fn list_tools(
            &self,
            _: Option<PaginatedRequestParams>,
            _: RequestContext<RoleServer>,
        ) -> Result<ListToolsResult, ErrorData> {
            let number = json!({ "type": "number" });
            let schema =
                json!({ "type": "object", "properties": { "a": number, "b": number }, "required": ["a", "b"] });
            let tool = Tool::new("add", "adds", schema.as_object().unwrap().clone());
            Ok(ListToolsResult::with_all_items(vec![tool]))
        }

        async fn call_tool(
            &self,
            request: CallToolRequestParams,
            _: RequestContext<RoleServer>,
        ) -> Result<CallToolResponse, ErrorData> {
            let arguments = request.arguments.unwrap_or_default();
            let sum = arguments["a"].as_f64().unwrap() + arguments["b"].as_f64().unwrap();
            Ok(CallToolResult::success(vec![ContentBlock::text(sum.to_string())]).into())
        }
    }
}

#[tokio::test]
async fn a_server_that_speaks_mcp_over_http() {
    use rmcp::transport::streamable_http_server::{StreamableHttpService, session::local::LocalSessionManager};
    let service =
        || StreamableHttpService::new(|| Ok(sdk::Adder), Arc::<LocalSessionManager>::default(), Default::default());
    let web = serve(Router::new().nest_service("/mcp", service())).await;
    let tool = json!({ "type": "mcp_http", "name": "sums", "url": format!("{}/mcp", web.url), "idempotent": ["add"] });
    let tools = connect(&json!({ "tools": [tool] })).await.unwrap_or_else(|p| panic!("{p:?}"));
    let spec = tools.specs().pop().unwrap();
    assert_eq!((spec.name.as_str(), spec.idempotent), ("sums_add", true));
    let calls = (0..8).map(|i| {
        let tools = &tools;
        async move { tools.call("sums_add", &json!({ "a": i, "b": 1 })).await }
    });
    for (i, outcome) in futures::future::join_all(calls).await.into_iter().enumerate() {
        assert_eq!(outcome, Outcome::done((i + 1).to_string()));
    }
    let closed = tokio::time::timeout(Duration::from_secs(10), tools.close()).await;
    assert!(closed.is_ok());
}
