//! Where tools come from, as it is written: one kind each.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{HeadersFromEnv, read::Fields};
use crate::{run::schema, tool::template::Template};

/// Where tools come from.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToolSettings {
    /// A program that speaks MCP over its pipes.
    McpStdio(McpStdio),
    /// A server that speaks MCP over HTTP.
    McpHttp(McpHttp),
    /// A call over HTTP, by its schema.
    Http(HttpCall),
    /// Passages from a retrieval service.
    Retrieve(Retrieve),
    /// Code that the model writes.
    Code(Code),
}

/// A program that speaks MCP over its pipes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct McpStdio {
    /// Names of its tools begin so.
    pub name: String,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Its environment, beside PATH, HOME and LANG.
    pub env: BTreeMap<String, String>,
    /// Variables it gets from this process.
    pub env_from: Vec<String>,
    /// What is the same for all servers.
    pub server: McpServer,
}

/// A server that speaks MCP over HTTP.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct McpHttp {
    /// Names of its tools begin so.
    pub name: String,
    /// Its address.
    pub url: String,
    /// Headers, by variables that hold them.
    pub headers_from_env: HeadersFromEnv,
    /// What is the same for all servers.
    pub server: McpServer,
}

/// What is the same for all servers that speak MCP.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct McpServer {
    /// Those of its tools that are used, by the names it gives them; without it, all.
    pub allow: Option<Vec<String>>,
    /// Those that are idempotent although it does not say so.
    pub idempotent: Vec<String>,
    /// Seconds for a call.
    pub timeout_s: Option<u64>,
}

/// Where an argument goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// Into the address, where its name stands in braces.
    Path,
    /// Behind the address.
    Query,
    /// A field of the body, which is JSON.
    Body,
}

/// A method of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "HTTP's own words")]
pub enum Method {
    Get,
    Post,
    Put,
    Patch,
    Delete,
}

/// A call over HTTP, by its schema.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HttpCall {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// Its method.
    pub method: Method,
    /// Its address, with names of arguments in braces.
    pub url: String,
    /// Its arguments: a JSON schema of an object.
    pub parameters: Value,
    /// Where arguments go that are not in the address: by default the body, and behind the address where there is no body.
    pub places: BTreeMap<String, Place>,
    /// Headers as they are.
    pub headers: BTreeMap<String, String>,
    /// Headers, by variables that hold them.
    pub headers_from_env: HeadersFromEnv,
    /// Called twice is as called once; by default so for GET, PUT and DELETE.
    pub idempotent: bool,
    /// Bytes of an answer that are read.
    pub response_bytes: usize,
    /// Seconds for a call.
    pub timeout_s: Option<u64>,
}

/// Passages from a retrieval service.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Retrieve {
    /// Its name.
    pub name: String,
    /// What is found there.
    pub description: String,
    /// Where the service is, without `/v1`.
    pub url: String,
    /// The service's name.
    pub service: String,
    /// Passages it returns, unless the model asks for less.
    pub top_k: u64,
    /// Headers, by variables that hold them.
    pub headers_from_env: HeadersFromEnv,
    /// Seconds for a call.
    pub timeout_s: Option<u64>,
}

/// Code that the model writes, run apart from all else. A node has to permit it too.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Code {
    /// Its name.
    pub name: String,
    /// Interpreters, by the name the model uses.
    pub interpreters: BTreeMap<String, String>,
    /// Folders it may read beside the system's programs and libraries.
    pub readable: Vec<String>,
    /// The first of the users it runs as, one for each call at once, where this process may choose. No file should belong to
    /// one of them.
    pub uid: u32,
    /// Bytes of memory of each of its processes.
    pub memory_bytes: u64,
    /// Bytes of each file it writes.
    pub file_bytes: u64,
    /// Processes at once.
    pub processes: u64,
    /// Seconds for a call.
    pub timeout_s: Option<u64>,
}

const RESPONSE_BYTES: u64 = 1 << 20;
/// Beyond the users that systems give away themselves (systemd's end at 65519), and before the overflow user.
const CODE_UID: u64 = 65_520;

/// Reads one, with every problem.
pub(super) fn read(mut fields: Fields<'_>, hosts: Option<&[String]>) -> Option<ToolSettings> {
    let kinds = ["mcp_stdio", "mcp_http", "http", "retrieve", "code"];
    let kind: String = fields.need("type", &format!("one of {}", kinds.join(", ")))?;
    match kind.as_str() {
        "mcp_stdio" => mcp_stdio(fields).map(ToolSettings::McpStdio),
        "mcp_http" => mcp_http(fields, hosts).map(ToolSettings::McpHttp),
        "http" => http(fields, hosts).map(ToolSettings::Http),
        "retrieve" => retrieve(fields, hosts).map(ToolSettings::Retrieve),
        "code" => code(fields).map(ToolSettings::Code),
        _ => {
            fields.problem("type", format!("there is no `{kind}`"), &format!("write one of {}", kinds.join(", ")));
            None
        }
    }
}

/// Names that more than one has.
pub(super) fn named_twice(tools: &[Option<ToolSettings>]) -> BTreeSet<String> {
    let names: Vec<&str> = tools.iter().flatten().map(ToolSettings::name).collect();
    let twice = names.iter().enumerate().filter(|(i, name)| names[..*i].contains(name));
    twice.map(|(_, name)| (*name).to_owned()).collect()
}

impl ToolSettings {
    /// What it is called.
    pub fn name(&self) -> &str {
        match self {
            Self::McpStdio(it) => &it.name,
            Self::McpHttp(it) => &it.name,
            Self::Http(it) => &it.name,
            Self::Retrieve(it) => &it.name,
            Self::Code(it) => &it.name,
        }
    }

    /// Seconds for a call, if it says so.
    pub fn timeout_s(&self) -> Option<u64> {
        match self {
            Self::McpStdio(it) => it.server.timeout_s,
            Self::McpHttp(it) => it.server.timeout_s,
            Self::Http(it) => it.timeout_s,
            Self::Retrieve(it) => it.timeout_s,
            Self::Code(it) => it.timeout_s,
        }
    }
}

fn mcp_server(fields: &mut Fields<'_>) -> McpServer {
    McpServer {
        allow: fields.take("allow", "a list of names the server gives its tools, or of beginnings with a *"),
        idempotent: fields.or("idempotent", "a list of names the server gives its tools", Vec::new()),
        timeout_s: fields.take("timeout_s", "a number of seconds"),
    }
}

fn mcp_stdio(mut fields: Fields<'_>) -> Option<McpStdio> {
    let name = fields.name();
    let command: Option<Vec<String>> = fields.need("command", "a program and its arguments, as a list");
    if command.as_ref().is_some_and(Vec::is_empty) {
        fields.problem("command", "it is empty".into(), "write a program and its arguments, as a list");
    }
    let env = fields.or("env", "variables and their values", BTreeMap::new());
    let env_from = fields.or("env_from", "a list of names of variables", Vec::new());
    let server = mcp_server(&mut fields);
    fields.end();
    Some(McpStdio { name: name?, command: command?, env, env_from, server })
}

fn mcp_http(mut fields: Fields<'_>, hosts: Option<&[String]>) -> Option<McpHttp> {
    let name = fields.name();
    let url = fields.url("url");
    within(&mut fields, url.as_deref(), hosts);
    let headers_from_env = fields.or("headers_from_env", "names of headers and of variables", BTreeMap::new());
    let server = mcp_server(&mut fields);
    fields.end();
    Some(McpHttp { name: name?, url: url?, headers_from_env, server })
}

fn http(mut fields: Fields<'_>, hosts: Option<&[String]>) -> Option<HttpCall> {
    let name = fields.name();
    let description = fields.need("description", "what it is for: the model reads it");
    let method = fields.or("method", "GET, POST, PUT, PATCH or DELETE", Method::Get);
    let url = fields.url("url");
    within(&mut fields, url.as_deref(), hosts);
    let parameters = fields.or("parameters", "a JSON schema", json!({ "type": "object", "properties": {} }));
    if let Err(e) = schema::compile(&parameters) {
        fields.problem("parameters", e, "write a JSON schema of an object");
    }
    let places: BTreeMap<String, Place> =
        fields.or("places", "names of arguments: path, query or body", BTreeMap::new());
    let known = parameters.get("properties").and_then(Value::as_object);
    let is_known = |name: &str| known.is_some_and(|known| known.contains_key(name));
    let in_url = url.as_deref().map(Template::parse).and_then(|parsed| match parsed {
        Ok(template) => Some(template.names()),
        Err(e) => {
            fields.problem("url", e, "write names of arguments in braces, between slashes: /items/{id}");
            None
        }
    });
    for argument in in_url.iter().flatten().filter(|name| !is_known(name)) {
        fields.problem("url", format!("{{{argument}}} is no argument"), "name it in parameters.properties");
    }
    for (argument, place) in &places {
        let path = format!("places.{argument}");
        let stands = in_url.as_ref().is_some_and(|names| names.contains(argument));
        match place {
            _ if !is_known(argument) => {
                fields.problem(&path, "it is no argument".into(), "name it in parameters.properties");
            }
            Place::Path if !stands => {
                fields.problem(&path, "it is not in the address".into(), "write it in braces: /items/{id}");
            }
            Place::Query | Place::Body if stands => {
                fields.problem(&path, "it is in the address already".into(), "leave it out of places");
            }
            Place::Path | Place::Query | Place::Body => {}
        }
    }
    let headers = fields.or("headers", "names and values of headers", BTreeMap::new());
    let headers_from_env = fields.or("headers_from_env", "names of headers and of variables", BTreeMap::new());
    let safe = matches!(method, Method::Get | Method::Put | Method::Delete);
    let idempotent = fields.or("idempotent", "true or false", safe);
    let response_bytes = fields.at_least("response_bytes", 1, RESPONSE_BYTES);
    let timeout_s = fields.take("timeout_s", "a number of seconds");
    fields.end();
    Some(HttpCall {
        name: name?,
        description: description?,
        method,
        url: url?,
        parameters,
        places,
        headers,
        headers_from_env,
        idempotent,
        response_bytes: usize::try_from(response_bytes).unwrap_or(usize::MAX),
        timeout_s,
    })
}

fn retrieve(mut fields: Fields<'_>, hosts: Option<&[String]>) -> Option<Retrieve> {
    let name = fields.name();
    let description = fields.need("description", "what is found there: the model reads it");
    let url = fields.url("url");
    within(&mut fields, url.as_deref(), hosts);
    let service = fields.need("service", "the name of a retrieval service");
    let top_k = fields.at_least("top_k", 1, 5);
    let headers_from_env = fields.or("headers_from_env", "names of headers and of variables", BTreeMap::new());
    let timeout_s = fields.take("timeout_s", "a number of seconds");
    fields.end();
    let (name, description, url, service) = (name?, description?, url?, service?);
    Some(Retrieve { name, description, url, service, top_k, headers_from_env, timeout_s })
}

fn code(mut fields: Fields<'_>) -> Option<Code> {
    let name = fields.name();
    let usual =
        || [("python", "/usr/bin/python3"), ("sh", "/bin/sh")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    let interpreters: BTreeMap<String, String> = fields.or("interpreters", "names and paths", usual());
    for (language, path) in interpreters.iter().filter(|(_, path)| !path.starts_with('/')) {
        fields.problem(&format!("interpreters.{language}"), format!("`{path}`"), "write its whole path");
    }
    let readable = fields.or("readable", "a list of folders", Vec::new());
    let uid = fields.at_least("uid", 1, CODE_UID);
    let memory_bytes = fields.at_least("memory_bytes", 64 << 20, 1 << 30);
    let file_bytes = fields.at_least("file_bytes", 4096, 64 << 20);
    let processes = fields.at_least("processes", 1, 64);
    let timeout_s = fields.take("timeout_s", "a number of seconds");
    fields.end();
    let uid = u32::try_from(uid).ok();
    Some(Code { name: name?, interpreters, readable, uid: uid?, memory_bytes, file_bytes, processes, timeout_s })
}

/// Its host is among those that are allowed.
fn within(fields: &mut Fields<'_>, url: Option<&str>, hosts: Option<&[String]>) {
    let (Some(hosts), Some(url)) = (hosts, url.and_then(|url| reqwest::Url::parse(url).ok())) else { return };
    let host = url.host_str().unwrap_or_default();
    if !hosts.iter().any(|allowed| allowed == host) {
        fields.problem("url", format!("{host} is not among the hosts"), &format!("allowed are: {}", hosts.join(", ")));
    }
}
