//! A model that says what it was told to: byte by byte, at once, when released, or never; and remembers what it was asked.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use axum::{
    body::Body,
    http::{Request as HttpRequest, StatusCode},
    response::Response,
};
use http_body_util::BodyExt;
use mloc_engine::{
    forward::{AdapterId, ForwardError},
    request::{
        Constraint, Event, FinishReason, Logprobs, Request, RequestError, RequestId, Sampling, Sink, TokenLogprob,
        Usage,
    },
};
use mloc_openai::{
    Limits, Server,
    calls::Format,
    model::{Adapter, Card, Chat, Load, Model, ModelError, Prompt, Token, TokenizerInfo},
    router, serve_tcp,
};
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// The token that ends an answer.
pub const END: u32 = 256;
const MAX_LENGTH: usize = 4096;
/// Special, and seen by the readers of calls.
pub const TOOL_CALLS: u32 = 257;

/// What is said to a prompt that holds a text.
#[derive(Clone)]
pub struct Plan {
    /// Looked for in the prompt's text.
    pub when: &'static str,
    /// Said by each choice in turn.
    pub says: Vec<String>,
    /// After how many tokens it waits until it is released.
    pub holds: Option<usize>,
    /// How it ends.
    pub ends: End,
}

#[derive(Clone)]
pub enum End {
    Finish(FinishReason),
    Fail(RequestError),
    /// Begins again.
    Never,
    /// The engine dies.
    Vanish,
}

impl Plan {
    pub fn says(when: &'static str, says: &str) -> Self {
        Self { when, says: vec![says.into()], holds: None, ends: End::Finish(FinishReason::Stop) }
    }
}

struct Sequence {
    id: RequestId,
    plan: Plan,
    /// What is said, token by token.
    says: Vec<Vec<(u32, String)>>,
    request: Request,
    sink: Sink,
    at: Vec<usize>,
    done: Vec<bool>,
    begun: bool,
}

enum Command {
    Submit(Box<Sequence>),
    Cancel(RequestId),
    Release,
}

#[derive(Default)]
pub struct Seen {
    pub requests: Vec<Request>,
    pub chats: Vec<Chat>,
    pub cancelled: BTreeSet<RequestId>,
    /// Requests the engine holds.
    pub held: BTreeSet<RequestId>,
    pub adapters: Vec<(AdapterId, String)>,
}

pub struct Scripted {
    card: Card,
    plans: Vec<Plan>,
    engine: Mutex<mpsc::Sender<Command>>,
    seen: Arc<(Mutex<Seen>, Condvar)>,
    next: AtomicU64,
    /// Refuses all requests so.
    pub refuses: Mutex<Option<RequestError>>,
}

pub fn card() -> Card {
    Card {
        served_name: "script".into(),
        root: "tests/script".into(),
        created: 1_700_000_000,
        max_length: MAX_LENGTH,
        defaults: Sampling::default(),
        generates: true,
        calls: Some(Format::Hermes),
        thinks: false,
        markers: BTreeMap::from([(TOOL_CALLS, "[TOOL_CALLS]".to_owned())]),
        embedding: Some(4),
        embedding_shortens: true,
        reranks: true,
        tokenizer: TokenizerInfo { eos_token: Some("<end>".into()), ..TokenizerInfo::default() },
        token_bytes: None,
    }
}

impl Scripted {
    pub fn new(card: Card, plans: Vec<Plan>) -> Arc<Self> {
        let (engine, commands) = mpsc::channel();
        let seen = Arc::new((Mutex::new(Seen::default()), Condvar::new()));
        let sees = seen.clone();
        std::thread::spawn(move || run(&commands, &sees));
        let (next, refuses) = (AtomicU64::new(0), Mutex::new(None));
        Arc::new(Self { card, plans, engine: Mutex::new(engine), seen, next, refuses })
    }

    fn send(&self, command: Command) {
        self.engine.lock().unwrap().send(command).expect("the engine's thread lives as long as its model");
    }

    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.0.lock().unwrap()
    }

    /// What holds goes on.
    pub fn release(&self) {
        self.send(Command::Release);
    }

    /// Waits until this is so.
    pub fn until(&self, what: &str, so: impl Fn(&Seen) -> bool) {
        let seen = self.seen.0.lock().unwrap();
        let waited = self.seen.1.wait_timeout_while(seen, Duration::from_secs(30), |seen| !so(seen)).unwrap();
        assert!(!waited.1.timed_out(), "never: {what}");
    }

    fn plan(&self, request: &Request) -> Plan {
        let prompt = self.detokenize(&request.prompt);
        let found = self.plans.iter().find(|plan| prompt.contains(plan.when)).cloned();
        found.unwrap_or_else(|| match &request.constraint {
            // A forced call: of the first function there is.
            Some(Constraint::Lark(grammar)) if grammar.contains("tool_call") => {
                let name =
                    grammar.split("\"const\":\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or("none");
                Plan::says("", &format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {{}}}}\n</tool_call>"))
            }
            Some(Constraint::JsonSchema(_) | Constraint::JsonObject) => Plan::says("", r#"{"answer":42}"#),
            Some(Constraint::Choice(texts)) => Plan::says("", &texts[0]),
            _ => Plan::says("", "Hello from MLOC."),
        })
    }
}

fn note(seen: &(Mutex<Seen>, Condvar), change: impl FnOnce(&mut Seen)) {
    change(&mut seen.0.lock().unwrap());
    seen.1.notify_all();
}

fn run(commands: &mpsc::Receiver<Command>, seen: &(Mutex<Seen>, Condvar)) {
    let mut sequences: Vec<Sequence> = Vec::new();
    loop {
        let idle = sequences.iter().all(|sequence| !sequence.may_go());
        let command = if idle { commands.recv().ok() } else { commands.try_recv().ok() };
        match command {
            Some(Command::Submit(sequence)) => {
                note(seen, |seen| {
                    seen.held.insert(sequence.id);
                });
                sequences.push(*sequence);
            }
            Some(Command::Cancel(id)) => {
                let before = sequences.len();
                sequences.retain(|sequence| sequence.id != id);
                if sequences.len() < before {
                    note(seen, |seen| {
                        seen.held.remove(&id);
                        seen.cancelled.insert(id);
                    });
                }
            }
            Some(Command::Release) => sequences.iter_mut().for_each(|sequence| sequence.plan.holds = None),
            None if idle => return,
            None => {
                let (mut over, mut stays) = (Vec::new(), Vec::new());
                for mut sequence in sequences {
                    if sequence.may_go() && !sequence.step() { over.push(sequence.id) } else { stays.push(sequence) }
                }
                sequences = stays;
                if !over.is_empty() {
                    note(seen, |seen| seen.held.retain(|id| !over.contains(id)));
                }
            }
        }
    }
}

impl Sequence {
    fn may_go(&self) -> bool {
        self.plan.holds.is_none_or(|holds| !self.begun || self.at.iter().any(|at| *at < holds))
    }

    fn logprobs(&self, id: u32, top: usize) -> Logprobs {
        let one = |rank: usize| TokenLogprob { id: (id + rank as u32 - 1) % 256, logprob: -(rank as f32) / 4.0, rank };
        Logprobs { chosen: one(1), top: (1..=top).map(one).collect() }
    }

    /// Whether it goes on.
    fn step(&mut self) -> bool {
        if !self.begun {
            self.begun = true;
            let wanted = self.request.prompt_logprobs;
            let rest = self.request.prompt[1..].iter().filter(|_| wanted.is_some());
            let logprobs = rest.map(|id| self.logprobs(*id, wanted.unwrap_or(0))).collect();
            return (self.sink)(Event::Prompt { logprobs });
        }
        let most = self.request.max_tokens.unwrap_or(MAX_LENGTH - self.request.prompt.len());
        for choice in 0..self.at.len() {
            if self.done[choice] {
                continue;
            }
            let at = self.at[choice];
            let tokens = &self.says[choice % self.says.len()];
            let token = match &self.plan.ends {
                End::Never if !tokens.is_empty() => tokens.get(at % tokens.len()),
                _ => tokens.get(at),
            };
            let goes_on = match token {
                Some((id, text)) if at < most => {
                    self.at[choice] += 1;
                    let logprobs = self.request.logprobs.map(|top| self.logprobs(*id, top));
                    (self.sink)(Event::Token { choice, id: *id, text: text.clone(), logprobs })
                }
                _ => {
                    self.done[choice] = true;
                    let reason = match &self.plan.ends {
                        End::Finish(_) | End::Never if at >= most => FinishReason::Length,
                        End::Finish(reason) => reason.clone(),
                        End::Fail(error) => {
                            (self.sink)(Event::Failed(error.clone()));
                            return false;
                        }
                        End::Never | End::Vanish => return false,
                    };
                    (self.sink)(Event::Finished { choice, text: String::new(), reason })
                }
            };
            if !goes_on {
                return false;
            }
        }
        if self.done.iter().all(|done| *done) {
            let usage = Usage {
                prompt_tokens: self.request.prompt.len(),
                cached_tokens: 0,
                completion_tokens: self.at.iter().sum(),
            };
            (self.sink)(Event::Done { usage });
            return false;
        }
        true
    }
}

/// A text's tokens, bytes, each with the text that is whole with it. U+1 stands for the special `[TOOL_CALLS]`.
fn spelled(text: &str) -> Vec<(u32, String)> {
    let mut tokens = Vec::new();
    for c in text.chars() {
        if c == '\u{1}' {
            tokens.push((TOOL_CALLS, String::new()));
            continue;
        }
        let mut bytes = [0; 4];
        let bytes = c.encode_utf8(&mut bytes).as_bytes();
        let last = bytes.len() - 1;
        let told = |at| if at == last { c.to_string() } else { String::new() };
        tokens.extend(bytes.iter().enumerate().map(|(at, byte)| (u32::from(*byte), told(at))));
    }
    tokens
}

impl Model for Scripted {
    fn card(&self) -> &Card {
        &self.card
    }

    fn render(&self, chat: &Chat) -> Result<Prompt, ModelError> {
        note(&self.seen, |seen| seen.chats.push(chat.clone()));
        let mut text = String::new();
        if let Some(tools) = &chat.tools {
            text.push_str(&format!("{} tools\n", tools.len()));
        }
        for message in &chat.messages {
            if message["content"] == "refuse me" {
                return Err(ModelError::Asked("chat template refuses these messages: roles must alternate".into()));
            }
            text.push_str(&format!(
                "{}: {}",
                message["role"].as_str().unwrap_or_default(),
                message["content"].as_str().unwrap_or_default()
            ));
            if message["tool_calls"].is_array() {
                text.push_str(&message["tool_calls"].to_string());
            }
            text.push('\n');
        }
        if chat.continue_final_message {
            text.pop();
        }
        if chat.add_generation_prompt {
            text.push_str("assistant: ");
        }
        let thinking = chat.variables.get("enable_thinking") == Some(&Value::Bool(true));
        Ok(Prompt { ids: self.tokenize(&text, false), thinking })
    }

    fn tokenize(&self, text: &str, _: bool) -> Vec<u32> {
        text.bytes().map(u32::from).collect()
    }

    fn detokenize(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().filter_map(|id| u8::try_from(*id).ok()).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn token(&self, id: u32) -> Option<Token> {
        let bytes = match id {
            END => b"<|end|>".to_vec(),
            TOOL_CALLS => b"[TOOL_CALLS]".to_vec(),
            id => vec![u8::try_from(id).ok()?],
        };
        Some(Token { bytes })
    }

    fn submit(&self, request: Request, sink: Sink) -> Result<RequestId, RequestError> {
        if let Some(error) = self.refuses.lock().unwrap().clone() {
            return Err(error);
        }
        let id = RequestId(self.next.fetch_add(1, Ordering::Relaxed));
        note(&self.seen, |seen| seen.requests.push(request.clone()));
        let (plan, choices) = (self.plan(&request), request.choices);
        let says = plan.says.iter().map(|text| spelled(text)).collect();
        let sequence =
            Sequence { id, plan, says, request, sink, at: vec![0; choices], done: vec![false; choices], begun: false };
        self.send(Command::Submit(Box::new(sequence)));
        Ok(id)
    }

    fn cancel(&self, request: RequestId) {
        self.send(Command::Cancel(request));
    }

    fn load_adapter(&self, path: &str) -> Result<AdapterId, ModelError> {
        if path.starts_with("/missing") {
            return Err(ModelError::Missing(format!("{path}: no such folder on this machine")));
        }
        let id = AdapterId(u32::try_from(self.next.fetch_add(1, Ordering::Relaxed)).unwrap());
        note(&self.seen, |seen| seen.adapters.push((id, path.into())));
        Ok(id)
    }

    fn unload_adapter(&self, adapter: AdapterId) {
        note(&self.seen, |seen| seen.adapters.retain(|(id, _)| *id != adapter));
    }

    fn embed(&self, prompts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, ModelError> {
        if prompts.iter().any(|ids| self.detokenize(ids).contains("no embedding")) {
            return Err(ModelError::Failed(ForwardError::Device("lost".into()).to_string()));
        }
        Ok(prompts
            .iter()
            .map(|ids| if ids.len() % 2 == 0 { vec![0.6, 0.8, 0.0, 0.0] } else { vec![0.0, 0.0, 0.6, 0.8] })
            .collect())
    }

    fn rerank(&self, query: &str, documents: &[String]) -> Result<(Vec<f32>, usize), ModelError> {
        let score = |document: &String| document.matches(query).count() as f32 / 4.0;
        Ok((documents.iter().map(score).collect(), query.len() + documents.iter().map(String::len).sum::<usize>()))
    }

    fn load(&self) -> Load {
        Load { running: self.seen().held.len(), ..Load::default() }
    }

    fn health(&self) -> Result<(), ModelError> {
        match &*self.refuses.lock().unwrap() {
            Some(error) => Err(ModelError::Failed(error.to_string())),
            None => Ok(()),
        }
    }
}

/// A server over a script, with one adapter, a fixed clock and fixed names.
pub fn server(model: &Arc<Scripted>, limits: Limits) -> Arc<Server> {
    let adapter =
        Adapter { name: "pirate".into(), id: AdapterId(9), path: "/adapters/pirate".into(), created: 1_700_000_001 };
    Arc::new(Server::new(model.clone(), vec![adapter], limits, 7, || 1_800_000_000))
}

/// One request, without a socket.
pub async fn ask(server: &Arc<Server>, line: &str, body: impl Into<Body>) -> Response {
    let (method, path) = line.split_once(' ').unwrap();
    let request = HttpRequest::builder().method(method).uri(path).header("content-type", "application/json");
    router(server.clone()).oneshot(request.body(body.into()).unwrap()).await.unwrap()
}

/// Status and text of its answer.
pub async fn answer(server: &Arc<Server>, line: &str, body: &Value) -> (StatusCode, String) {
    let response = ask(server, line, if body.is_null() { String::new() } else { body.to_string() }).await;
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}

/// A JSON answer.
pub async fn json_of(server: &Arc<Server>, line: &str, body: &Value) -> Value {
    let (status, text) = answer(server, line, body).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// The error of a refusal, as one line.
pub async fn error_of(server: &Arc<Server>, line: &str, body: &Value) -> String {
    let (status, text) = answer(server, line, body).await;
    let value: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status} {text}"));
    let error = &value["error"];
    let word = |name: &str| error[name].as_str().unwrap_or("-").to_owned();
    format!("{} {} {} [{}] {}", status.as_u16(), word("type"), word("code"), word("param"), word("message"))
}

/// What a stream says: each event's data, `event` names before them.
pub async fn stream_of(server: &Arc<Server>, line: &str, body: &Value) -> Vec<String> {
    let (status, text) = answer(server, line, body).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    text.split("\n\n").filter(|event| !event.is_empty()).map(str::to_owned).collect()
}

/// A server on a port of its own; it stops when the token is dropped.
pub async fn listen(server: Arc<Server>) -> (SocketAddr, tokio_util::sync::DropGuard) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(serve_tcp(listener, server, stop.clone()));
    (address, stop.drop_guard())
}
