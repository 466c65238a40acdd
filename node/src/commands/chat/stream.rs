//! What the events of a chat completion say, read as they come.

use mloc_modules::sse::Events;
use serde_json::Value;

/// Bytes of one event at most.
const EVENT_MAX: usize = 4 << 20;

/// What an event says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text that is no answer yet.
    Thought(String),
    /// The answer's.
    Said(String),
    /// A function that would be called.
    Call(String),
    /// Tokens of the answer.
    Usage {
        /// How many.
        completion: u64,
    },
    /// It ends here, and not well.
    Failed(String),
    /// It is whole.
    Done,
}

/// Events whose bytes come in any cut.
#[derive(Debug)]
pub struct Pieces {
    events: Events,
}

impl Default for Pieces {
    fn default() -> Self {
        Self { events: Events::new(EVENT_MAX) }
    }
}

impl Pieces {
    /// More bytes.
    ///
    /// # Errors
    /// What is no such stream.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Piece>, String> {
        let (mut told, mut pieces) = (Vec::new(), Vec::new());
        let read = self.events.take(bytes, |data| told.push(data));
        for data in told {
            of_data(&data, &mut pieces)?;
        }
        read.map_err(|error| format!("{error}: this is no chat completion"))?;
        Ok(pieces)
    }
}

fn of_data(data: &str, pieces: &mut Vec<Piece>) -> Result<(), String> {
    if data == "[DONE]" {
        pieces.push(Piece::Done);
        return Ok(());
    }
    let json: Value = serde_json::from_str(data).map_err(|e| format!("an event that is no JSON ({e}): {data}"))?;
    if let Some(error) = json.get("error") {
        let message = error.get("message").and_then(Value::as_str).map_or_else(|| error.to_string(), str::to_owned);
        pieces.push(Piece::Failed(message));
        return Ok(());
    }
    let delta = &json["choices"][0]["delta"];
    let text = |key: &str| delta[key].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    pieces.extend(text("reasoning_content").or_else(|| text("reasoning")).map(Piece::Thought));
    pieces.extend(text("content").map(Piece::Said));
    for call in delta["tool_calls"].as_array().into_iter().flatten() {
        let of = |key: &str| call["function"][key].as_str().unwrap_or_default();
        pieces.push(Piece::Call(format!("{}{}", of("name"), of("arguments"))));
    }
    if let Some(completion) = json["usage"]["completion_tokens"].as_u64() {
        pieces.push(Piece::Usage { completion });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = ": hello\n\ndata: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
        data: {\"choices\":[{\"delta\":{\"reasoning_content\":\"hm\"}}]}\r\n\r\ndata: {\"choices\":[{\"delta\":{\"content\":\"né\"}}]}\n\n\
        data: {\"choices\":[],\"usage\":{\"completion_tokens\":3}}\n\ndata: [DONE]\n\n";

    #[test]
    fn events_are_the_same_however_their_bytes_are_cut() {
        let wanted =
            [Piece::Thought("hm".into()), Piece::Said("né".into()), Piece::Usage { completion: 3 }, Piece::Done];
        for cut in 1..40 {
            let mut pieces = Pieces::default();
            let found: Vec<Piece> =
                STREAM.as_bytes().chunks(cut).flat_map(|bytes| pieces.push(bytes).expect("a stream")).collect();
            assert_eq!(found, wanted, "{cut}");
        }
    }

    #[test]
    fn what_ends_badly_says_why() {
        let mut pieces = Pieces::default();
        let said = pieces.push(b"data: {\"error\":{\"message\":\"the replica died\"}}\n\n").expect("an event");
        assert_eq!(said, [Piece::Failed("the replica died".into())]);
        let error = pieces.push(b"data: <html>\n\n").expect_err("no JSON");
        assert!(error.starts_with("an event that is no JSON"), "{error}");
    }
}
