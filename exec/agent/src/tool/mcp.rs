//! Tools of a server that speaks MCP: a program over its pipes, or an address over HTTP. A server that went away is started or
//! spoken to anew at the next call; the call it went away in is not made again.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use reqwest::header::HeaderMap;
use rmcp::{
    RoleClient,
    model::{
        CallToolRequestParams, CallToolResult, ClientCapabilities, ClientConfig, ContentBlock, Implementation,
        ProtocolVersion, ResourceContents,
    },
    service::{ClientLifecycleMode, Peer, RunningService, ServiceError, serve_client_with_lifecycle},
    transport::{
        StreamableHttpClientTransport, async_rw::AsyncRwTransport, common::client_side_sse::ExponentialBackoff,
        streamable_http_client::StreamableHttpClientTransportConfig,
    },
};
use serde_json::Value;
use tokio::sync::Mutex;

use super::Tool;
use crate::{
    client::root_cause,
    event::{Outcome, ToolSpec},
    settings::{
        names,
        tools::{McpServer, McpStdio},
    },
};

mod program;

use program::Program;

/// Starting a program may mean fetching it first.
const START: Duration = Duration::from_secs(60);
/// A server that is asked to end and does not is killed.
const END: Duration = Duration::from_secs(3);
/// The longest wait before a stream that broke is taken up again.
const RECONNECT: Duration = Duration::from_secs(30);
/// Bytes of one message of a server: an image may be in it.
const MESSAGE_BYTES: usize = 8 << 20;
/// What later versions of MCP may have.
const NOT_KNOWN: &str = "[something this client does not know, not shown]";
/// Tools of one server. More are no list but a flood.
const TOOLS_MAX: usize = 512;

/// How a server is reached.
pub enum How {
    /// It is started.
    Program(McpStdio),
    /// It is there.
    Http {
        /// Its address.
        url: String,
        /// What speaks to it.
        client: reqwest::Client,
        /// With each request.
        headers: HeaderMap,
    },
}

struct Server {
    how: How,
    session: Mutex<Option<Session>>,
}

/// A server that is spoken to.
struct Session {
    service: RunningService<RoleClient, ClientConfig>,
    /// Killed when it is dropped.
    program: Option<Program>,
}

struct McpTool {
    spec: ToolSpec,
    /// What its server calls it.
    theirs: String,
    server: Arc<Server>,
}

/// The tools of a server.
///
/// # Errors
/// Why it cannot be spoken to.
pub async fn connect(how: How, name: &str, settings: &McpServer) -> Result<Vec<Arc<dyn Tool>>, String> {
    let server = Arc::new(Server { how, session: Mutex::new(None) });
    let peer = server.peer().await?;
    let listed = tokio::time::timeout(START, peer.list_all_tools()).await;
    let listed = listed.map_err(|_| "it does not say which tools it has".to_owned())?;
    let listed = listed.map_err(|e| format!("it does not say which tools it has: {}", said(&e)))?;
    if listed.len() > TOOLS_MAX {
        return Err(format!("it has {} tools, and {TOOLS_MAX} are the most that are taken", listed.len()));
    }
    let known: Vec<&str> = listed.iter().map(|tool| tool.name.as_ref()).collect();
    let wanted = settings.allow.iter().flatten().filter(|one| !one.ends_with('*')).chain(&settings.idempotent);
    if let Some(missing) = wanted.into_iter().find(|one| !known.contains(&one.as_str())) {
        return Err(format!("it has no tool `{missing}`; it has: {}", known.join(", ")));
    }
    let allowed =
        |tool: &rmcp::model::Tool| settings.allow.as_ref().is_none_or(|allow| names::any_matches(allow, &tool.name));
    let mut tools: Vec<Arc<dyn Tool>> = Vec::new();
    for tool in listed.iter().filter(|tool| allowed(tool)) {
        let spec = spec(name, tool, settings)?;
        tools.push(Arc::new(McpTool { spec, theirs: tool.name.to_string(), server: server.clone() }));
    }
    Ok(tools)
}

fn spec(server: &str, tool: &rmcp::model::Tool, settings: &McpServer) -> Result<ToolSpec, String> {
    let hints = tool.annotations.as_ref();
    let hinted = hints.is_some_and(|hints| hints.read_only_hint == Some(true) || hints.is_idempotent());
    Ok(ToolSpec {
        name: names::of_server(server, &tool.name)?,
        description: tool.description.as_deref().or(tool.title.as_deref()).unwrap_or_default().to_owned(),
        schema: tool.schema_as_json_value(),
        idempotent: hinted || settings.idempotent.iter().any(|one| *one == tool.name),
    })
}

#[async_trait]
impl Tool for McpTool {
    fn spec(&self) -> &ToolSpec {
        &self.spec
    }

    async fn call(&self, arguments: &Value) -> Outcome {
        let peer = match self.server.peer().await {
            Ok(peer) => peer,
            Err(found) => return Outcome::failed(format!("error: its server is away: {found}")),
        };
        let arguments = arguments.as_object().cloned().unwrap_or_default();
        let request = CallToolRequestParams::new(self.theirs.clone()).with_arguments(arguments);
        // Dropped, it tells the server that nobody waits any more.
        match peer.call_tool(request).await {
            Ok(result) => outcome(&result),
            Err(ServiceError::McpError(e)) => Outcome::failed(format!("error: {}", e.message)),
            Err(e) => Outcome::failed(format!("error: no answer: {}. It may have had its effect", said(&e))),
        }
    }

    async fn close(&self) {
        let session = self.server.session.lock().await.take();
        if let Some(mut session) = session {
            session.service.close_with_timeout(END).await.ok();
            drop(session.program);
        }
    }
}

impl Server {
    /// The way to it, which is made anew if it is gone.
    async fn peer(&self) -> Result<Peer<RoleClient>, String> {
        let mut session = self.session.lock().await;
        let is_open = |open: &&Session| !open.service.is_closed() && !open.service.peer().is_transport_closed();
        if let Some(open) = session.as_ref().filter(is_open) {
            return Ok(open.service.peer().clone());
        }
        // What is left of it goes before the next one comes.
        *session = None;
        let opened = match self.open(ClientLifecycleMode::Initialize).await {
            Ok(opened) => opened,
            // Servers of the next version of MCP have no such greeting.
            Err(found) => {
                let preferred_versions = vec![ProtocolVersion::LATEST];
                self.open(ClientLifecycleMode::Discover { preferred_versions }).await.map_err(|_| found)?
            }
        };
        Ok(session.insert(opened).service.peer().clone())
    }

    async fn open(&self, greeting: ClientLifecycleMode) -> Result<Session, String> {
        let ours = Implementation::new("mloc", env!("CARGO_PKG_VERSION"));
        let mut ours = ClientConfig::new(ClientCapabilities::default(), ours);
        // The latest that begins with a greeting. The next one has none, and says its version elsewhere.
        ours.protocol_version = ProtocolVersion::LATEST_WITH_INITIALIZE;
        match &self.how {
            How::Program(settings) => {
                let (program, out, into) = Program::start(settings)?;
                let transport = AsyncRwTransport::new_client(out, into).with_max_line_length(MESSAGE_BYTES);
                let serving = serve_client_with_lifecycle(ours, transport, greeting);
                match tokio::time::timeout(START, serving).await {
                    Ok(Ok(service)) => Ok(Session { service, program: Some(program) }),
                    Ok(Err(e)) => Err(format!("it does not greet back: {}{}", cause(&e), program.last_words())),
                    Err(_) => Err(format!("it does not greet back{}", program.last_words())),
                }
            }
            How::Http { url, client, headers } => {
                let mut config = StreamableHttpClientTransportConfig::with_uri(url.as_str());
                let named = headers.iter().map(|(name, value)| (name.clone(), value.clone()));
                config.custom_headers = named.collect::<HashMap<_, _>>();
                let mut backoff = ExponentialBackoff::default();
                backoff.max_delay = Some(RECONNECT);
                config.retry_config = Arc::new(backoff);
                config.max_sse_event_size = MESSAGE_BYTES;
                config.max_json_response_size = MESSAGE_BYTES;
                let transport = StreamableHttpClientTransport::with_client(client.clone(), config);
                let serving = serve_client_with_lifecycle(ours, transport, greeting);
                let served = tokio::time::timeout(START, serving).await;
                let served = served.map_err(|_| "it does not greet back".to_owned())?;
                let service = served.map_err(|e| format!("it does not greet back: {}", cause(&e)))?;
                Ok(Session { service, program: None })
            }
        }
    }
}

/// What a model is shown of a result: its texts, and what else there is by name.
fn outcome(result: &CallToolResult) -> Outcome {
    let mut parts: Vec<String> = result.content.iter().map(part).collect();
    if parts.is_empty()
        && let Some(structured) = &result.structured_content
    {
        parts.push(structured.to_string());
    }
    Outcome { ok: !result.is_error.unwrap_or(false), content: parts.join("\n") }
}

fn part(block: &ContentBlock) -> String {
    match block {
        ContentBlock::Text(text) => text.text.clone(),
        ContentBlock::Image(image) => format!("[an image, {}, not shown]", image.mime_type),
        ContentBlock::Audio(audio) => format!("[sound, {}, not shown]", audio.mime_type),
        ContentBlock::Resource(resource) => match &resource.resource {
            ResourceContents::TextResourceContents { uri, text, .. } => format!("{uri}:\n{text}"),
            ResourceContents::BlobResourceContents { uri, .. } => format!("[{uri}, bytes, not shown]"),
            _ => NOT_KNOWN.to_owned(),
        },
        ContentBlock::ResourceLink(link) => format!("[{}]", link.uri),
        _ => NOT_KNOWN.to_owned(),
    }
}

fn said(error: &ServiceError) -> String {
    match error {
        ServiceError::TransportClosed => "it went away".to_owned(),
        other => cause(other),
    }
}

/// An error's own words and those of what is behind it.
fn cause(error: &(dyn std::error::Error + 'static)) -> String {
    let (own, below) = (error.to_string(), root_cause(error));
    if own.contains(&below) { own } else { format!("{own}: {below}") }
}
