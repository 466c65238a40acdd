//! An agent with a scripted model, served on a socket of its own.
#![allow(dead_code, reason = "each test uses a part")]

use std::{
    path::Path,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use axum::Router;
use mloc_agent::{
    Agent, Runs, Settings,
    event::{Outcome, ToolSpec},
    http,
    model::{
        Chat,
        scripted::{Scripted, Turn},
        sse::Events,
    },
    run::Ask,
    runs::Limits,
    tool::{Tool, Toolbox},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Barrier, task::JoinHandle};

/// A wait for what must come, and does not in a test that fails.
pub const LONG: Duration = Duration::from_secs(60);

fn spec(name: &str) -> ToolSpec {
    let properties = json!({ "n": { "type": "integer" } });
    let schema = json!({ "type": "object", "properties": properties, "additionalProperties": false });
    ToolSpec { name: name.into(), description: "a test's".into(), schema, idempotent: false }
}

type Act = Box<dyn Fn(Value) -> Pin<Box<dyn Future<Output = Outcome> + Send>> + Send + Sync>;

/// A tool that is a function, and counts.
pub struct Acting {
    spec: ToolSpec,
    pub calls: AtomicU32,
    act: Act,
}

impl Acting {
    pub fn new<R>(name: &str, act: impl Fn(Value) -> R + Send + Sync + 'static) -> Arc<Self>
    where
        R: Future<Output = Outcome> + Send + 'static,
    {
        Arc::new(Self {
            spec: spec(name),
            calls: AtomicU32::new(0),
            act: Box::new(move |arguments| Box::pin(act(arguments))),
        })
    }

    pub fn called(&self) -> u32 {
        self.calls.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Tool for Acting {
    fn spec(&self) -> &ToolSpec {
        &self.spec
    }

    async fn call(&self, arguments: &Value) -> Outcome {
        self.calls.fetch_add(1, Ordering::SeqCst);
        (self.act)(arguments.clone()).await
    }
}

/// A tool that lets go of what it holds only when others do.
pub struct Closing {
    spec: ToolSpec,
    together: Arc<Barrier>,
}

impl Closing {
    pub fn new(name: &str, together: &Arc<Barrier>) -> Arc<Self> {
        Arc::new(Self { spec: spec(name), together: together.clone() })
    }
}

#[async_trait]
impl Tool for Closing {
    fn spec(&self) -> &ToolSpec {
        &self.spec
    }

    async fn call(&self, _: &Value) -> Outcome {
        Outcome::done("")
    }

    async fn close(&self) {
        self.together.wait().await;
    }
}

pub fn settings(more: &Value) -> Settings {
    let mut all = json!({ "system": "be brief" });
    for (name, value) in more.as_object().unwrap() {
        all[name] = value.clone();
    }
    Settings::read(&all).unwrap()
}

pub fn agent(more: &Value, script: impl Fn(&Ask) -> Turn + Send + Sync + 'static, tools: &[&Arc<Acting>]) -> Agent {
    let settings = settings(more);
    let timeout = Duration::from_secs(settings.tool_timeout_s);
    let toolbox = Toolbox::new(settings.tool_output_bytes);
    let toolbox = tools.iter().fold(toolbox, |toolbox, tool| toolbox.with((*tool).clone(), timeout));
    let chat: Arc<dyn Chat> = Arc::new(Scripted::new(script));
    Agent { name: "helper".into(), settings, chat, toolbox }
}

/// Something that is served, until it is dropped.
pub struct Served {
    pub url: String,
    task: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub async fn serve(router: Router) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    Served { url, task }
}

/// An agent that is served.
pub struct Env {
    pub runs: Arc<Runs>,
    pub client: reqwest::Client,
    served: Served,
}

impl Env {
    pub async fn open(folder: &Path, agent: Agent) -> Self {
        Self::limited(folder, agent, Limits::default()).await
    }

    pub async fn limited(folder: &Path, agent: Agent, limits: Limits) -> Self {
        let runs = Runs::open(folder, agent, limits).unwrap();
        let served = serve(http::router(runs.clone())).await;
        Self { runs, client: mloc_agent::client::http(LONG).unwrap(), served }
    }

    pub fn url(&self, rest: &str) -> String {
        format!("{}/v1/agents/helper/runs{rest}", self.served.url)
    }

    pub async fn get(&self, rest: &str) -> (u16, Value) {
        let answer = self.client.get(self.url(rest)).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    pub async fn post(&self, rest: &str, body: &Value) -> (u16, Value) {
        let answer = self.client.post(self.url(rest)).json(body).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// Starts a run whose events are listened to.
    pub async fn start(&self, body: Value) -> Listener {
        let mut body = body;
        body["stream"] = true.into();
        let answer = self.client.post(self.url("")).json(&body).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200);
        Listener::new(answer)
    }

    pub async fn events(&self, rest: &str) -> Listener {
        let answer = self.client.get(self.url(rest)).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200);
        Listener::new(answer)
    }

    pub async fn shut_down(self) {
        assert_eq!(self.runs.shut_down(LONG).await, 0);
    }
}

/// Events as a client hears them.
pub struct Listener {
    answer: reqwest::Response,
    events: Events,
    heard: std::collections::VecDeque<Value>,
}

impl Listener {
    pub fn new(answer: reqwest::Response) -> Self {
        Self { answer, events: Events::new(1 << 20), heard: Default::default() }
    }

    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(heard) = self.heard.pop_front() {
                return Some(heard);
            }
            let bytes = tokio::time::timeout(LONG, self.answer.chunk()).await.expect("nothing came").unwrap()?;
            let heard = &mut self.heard;
            self.events.take(&bytes, |data| heard.push_back(serde_json::from_str(&data).unwrap())).unwrap();
        }
    }

    /// Up to an event of a type, which is returned.
    pub async fn until(&mut self, kind: &str) -> Value {
        loop {
            let told = self.next().await.unwrap_or_else(|| panic!("the events ended without {kind}"));
            if told["event"]["type"] == kind {
                return told;
            }
        }
    }

    /// All of them, to the end.
    pub async fn rest(&mut self) -> Vec<Value> {
        let mut all = Vec::new();
        while let Some(told) = self.next().await {
            all.push(told);
        }
        all
    }

    /// Types of all records, to the end.
    pub async fn kinds(&mut self) -> Vec<String> {
        let records = self.rest().await.into_iter().filter(|told| told.get("event").is_some());
        records.map(|told| told["event"]["type"].as_str().unwrap().to_owned()).collect()
    }
}

/// A call of a tool with `{"n": n}`.
pub fn call(name: &str, n: u32) -> (String, String) {
    (name.to_owned(), json!({ "n": n }).to_string())
}
