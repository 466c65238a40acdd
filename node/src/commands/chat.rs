//! `mloc chat`: a conversation in the terminal with a model that a mesh serves, through any node, or with one whose files
//! are here; the answer is shown as it comes.
//!
//! | file | holds |
//! |---|---|
//! | `model` | who answers: a node, or a server in this process |
//! | `stream` | events of an answer |

mod model;
mod stream;

use std::io::{IsTerminal, Read, Write};

use anyhow::Context;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    time::Instant,
};

use self::{
    model::Model,
    stream::{Piece, Pieces},
};
use crate::{cli::ChatArgs, client::Refusal};

/// Said once, where somebody sits at the keyboard.
const HELP: &str = "ends with Ctrl-D; Ctrl-C stops an answer; /reset begins anew, /system TEXT sets the system message";

/// `mloc chat`.
pub async fn chat(args: ChatArgs) -> Result<(), Refusal> {
    // A server in this process has threads of its own, which are not to be started or ended from one of this runtime's.
    let (args, model) = tokio::task::spawn_blocking(move || {
        let model = Model::open(&args);
        model.map(|model| (args, model))
    })
    .await
    .context("open the model")??;
    let done = converse(&args, &model).await;
    tokio::task::spawn_blocking(move || model.close()).await.context("close the model")?;
    done
}

async fn converse(args: &ChatArgs, model: &Model) -> Result<(), Refusal> {
    let mut talk = Talk::new(args, model.name());
    let prompt = args.prompt.join(" ");
    if !prompt.is_empty() {
        return talk.ask(model, prompt).await;
    }
    if !std::io::stdin().is_terminal() {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("read the prompt from standard input")?;
        return talk.ask(model, text.trim().to_owned()).await;
    }
    eprintln!("{}: {HELP}", args.model);
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    loop {
        eprint!("> ");
        let line = tokio::select! {
            line = lines.next_line() => line.context("read from the terminal")?,
            _ = tokio::signal::ctrl_c() => None,
        };
        let Some(line) = line else {
            eprintln!();
            return Ok(());
        };
        match line.trim() {
            "" => {}
            "/reset" => talk.messages.retain(|message| message["role"] == "system"),
            line if line.starts_with("/system ") => talk.be(&line["/system ".len()..]),
            line if line.starts_with('/') && !line.contains(' ') => eprintln!("{line} is no command: {HELP}"),
            // Said, and the next may go well: the model may be starting again elsewhere.
            line => {
                if let Err(refusal) = talk.ask(model, line.to_owned()).await {
                    eprintln!("error: {}", printable(&refusal.text));
                }
            }
        }
    }
}

/// A conversation.
struct Talk {
    model: String,
    messages: Vec<Value>,
    /// What each request says beside its messages.
    settings: Vec<(&'static str, Value)>,
}

impl Talk {
    fn new(args: &ChatArgs, model: &str) -> Self {
        let settings = [
            ("max_tokens", args.max_tokens.map(Value::from)),
            ("temperature", args.temperature.map(Value::from)),
            ("seed", args.seed.map(Value::from)),
        ];
        let mut talk = Self {
            model: model.to_owned(),
            messages: Vec::new(),
            settings: settings.into_iter().filter_map(|(name, value)| Some((name, value?))).collect(),
        };
        if let Some(system) = &args.system {
            talk.be(system);
        }
        talk
    }

    fn be(&mut self, system: &str) {
        self.messages.retain(|message| message["role"] != "system");
        self.messages.insert(0, json!({"role": "system", "content": system}));
    }

    fn body(&self) -> Value {
        let mut body = json!({
            "model": self.model, "messages": self.messages, "stream": true, "stream_options": {"include_usage": true},
        });
        for (name, value) in &self.settings {
            body[*name] = value.clone();
        }
        body
    }

    /// Says something, and shows what is answered. A question that was not answered is taken back.
    async fn ask(&mut self, model: &Model, prompt: String) -> Result<(), Refusal> {
        self.messages.push(json!({"role": "user", "content": prompt}));
        let answered = self.answer(model).await;
        match &answered {
            Ok(text) if !text.is_empty() => self.messages.push(json!({"role": "assistant", "content": text})),
            _ => {
                self.messages.pop();
            }
        }
        answered.map(|_| ())
    }

    async fn answer(&self, model: &Model) -> Result<String, Refusal> {
        let since = Instant::now();
        let response = tokio::select! {
            response = model.chat(self.body().to_string()) => response?,
            _ = tokio::signal::ctrl_c() => {
                eprintln!("stopped");
                return Ok(String::new());
            }
        };
        let mut shown = Shown::new();
        let mut pieces = Pieces::default();
        let mut body = response.into_body();
        let mut tokens = None;
        loop {
            let data = tokio::select! {
                data = body.next() => data,
                // The connection goes with the answer, and the model is free at once.
                _ = tokio::signal::ctrl_c() => {
                    shown.end("stopped");
                    return Ok(shown.text);
                }
            };
            let Some(data) = data else {
                shown.end("broken off");
                return Err(Refusal::new(4, "the answer broke off before its end"));
            };
            let data = data.map_err(|e| Refusal::new(4, format!("the answer broke off: {e}")))?;
            for piece in pieces.push(&data).map_err(|why| Refusal::new(1, why))? {
                match piece {
                    Piece::Thought(text) => shown.thought(&text),
                    Piece::Said(text) => shown.said(&text),
                    Piece::Call(text) => shown.thought(&text),
                    Piece::Usage { completion } => tokens = Some(completion),
                    Piece::Failed(why) => {
                        shown.end("broken off");
                        return Err(Refusal::new(4, why));
                    }
                    Piece::Done => {
                        shown.end(&rate(
                            tokens,
                            since.elapsed().as_secs_f64(),
                            shown.first.map(|at| (at - since).as_secs_f64()),
                        ));
                        return Ok(shown.text);
                    }
                }
            }
        }
    }
}

/// How fast it came, for the line below an answer.
fn rate(tokens: Option<u64>, seconds: f64, first: Option<f64>) -> String {
    let tokens = tokens.map_or_else(String::new, |tokens| {
        let after = seconds - first.unwrap_or(0.0);
        let rate = if tokens > 1 && after > 0.0 {
            format!(", {:.1} tokens/s", (tokens - 1) as f64 / after)
        } else {
            String::new()
        };
        format!("{tokens} tokens{rate}, ")
    });
    format!("{tokens}first after {:.2} s", first.unwrap_or(seconds))
}

/// What of an answer is on the terminal.
struct Shown {
    text: String,
    first: Option<Instant>,
    /// Where somebody looks: thoughts in grey, figures below.
    terminal: bool,
    thinking: bool,
}

impl Shown {
    fn new() -> Self {
        Self { text: String::new(), first: None, terminal: std::io::stdout().is_terminal(), thinking: false }
    }

    fn thought(&mut self, text: &str) {
        self.first.get_or_insert_with(Instant::now);
        if self.terminal {
            self.thinking = true;
            print(&format!("\x1b[2m{}\x1b[0m", printable(text)));
        }
    }

    fn said(&mut self, text: &str) {
        self.first.get_or_insert_with(Instant::now);
        if std::mem::take(&mut self.thinking) {
            print("\n");
        }
        self.text.push_str(text);
        print(&if self.terminal { printable(text) } else { text.to_owned() });
    }

    fn end(&self, figures: &str) {
        print("\n");
        if self.terminal {
            eprintln!("\x1b[2m{figures}\x1b[0m");
        }
    }
}

/// A model must not move the cursor, nor say something to the terminal.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() && c != '\n' && c != '\t' { char::REPLACEMENT_CHARACTER } else { c })
        .collect()
}

/// A pipe that nobody reads any more is no error of ours.
fn print(text: &str) {
    let mut out = std::io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_sees_no_commands_of_a_model() {
        assert_eq!(printable("a\x1b[2Jb\n\tc"), "a\u{FFFD}[2Jb\n\tc");
    }

    #[test]
    fn speed_is_of_what_came_after_the_first_token() {
        assert_eq!(rate(Some(11), 2.5, Some(0.5)), "11 tokens, 5.0 tokens/s, first after 0.50 s");
        assert_eq!(rate(Some(1), 0.5, Some(0.5)), "1 tokens, first after 0.50 s");
        assert_eq!(rate(None, 0.5, None), "first after 0.50 s");
    }
}
