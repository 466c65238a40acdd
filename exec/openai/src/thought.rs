//! A model's thinking, `<think>…</think>`, apart from its answer. As in [`crate::calls`], pieces of any cut give the same.

/// Text of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Thinking.
    Thought(String),
    /// The answer itself.
    Answer(String),
}

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing but white space so far.
    Before,
    /// Nothing of the thought but white space so far, which is dropped.
    Opening,
    Thinking,
    /// The thought is over; white space before the answer is dropped.
    Between,
    Answering,
}

/// One answer's machine: a thought is what stands between the markers at the beginning of an answer, without the white
/// space around it.
#[derive(Debug)]
pub struct Splitter {
    state: State,
    /// What may yet be the beginning of a marker, and white space that may yet be the end of a thought.
    held: String,
}

impl Splitter {
    /// `inside`: the prompt ended with an open `<think>`.
    pub fn new(inside: bool) -> Self {
        Self { state: if inside { State::Opening } else { State::Before }, held: String::new() }
    }

    /// Whether what comes now is thinking.
    pub fn thinking(&self) -> bool {
        matches!(self.state, State::Opening | State::Thinking)
    }

    /// The next piece of text.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        let mut parts = Vec::new();
        for c in text.chars() {
            self.step(c, &mut parts);
        }
        parts
    }

    fn step(&mut self, c: char, parts: &mut Vec<Part>) {
        match self.state {
            State::Before => {
                self.held.push(c);
                let said = self.held.trim_start();
                if said == OPEN {
                    self.held.clear();
                    self.state = State::Opening;
                } else if !OPEN.starts_with(said) {
                    self.state = State::Answering;
                    add(parts, Part::Answer(std::mem::take(&mut self.held)));
                }
            }
            State::Opening if c.is_whitespace() => {}
            State::Opening | State::Thinking => {
                self.state = State::Thinking;
                self.held.push(c);
                if self.held.ends_with(CLOSE) {
                    let rest = self.held.len() - CLOSE.len();
                    let thought = self.held[..rest].trim_end();
                    if !thought.is_empty() {
                        add(parts, Part::Thought(thought.to_owned()));
                    }
                    self.held.clear();
                    self.state = State::Between;
                    return;
                }
                // All but the longest end that may yet become white space and a marker.
                let tail = (0..=CLOSE.len()).rev().find(|n| self.held.ends_with(&CLOSE[..*n])).unwrap_or(0);
                let keep = self.held[..self.held.len() - tail].trim_end().len();
                if keep > 0 {
                    add(parts, Part::Thought(self.held.drain(..keep).collect()));
                }
            }
            State::Between if c.is_whitespace() => {}
            State::Between | State::Answering => {
                self.state = State::Answering;
                add(parts, Part::Answer(c.into()));
            }
        }
    }

    /// The answer has ended: what was held back.
    pub fn finish(&mut self) -> Option<Part> {
        let held = std::mem::take(&mut self.held);
        match self.state {
            _ if held.is_empty() => None,
            State::Thinking => Some(held.trim_end().to_owned()).filter(|held| !held.is_empty()).map(Part::Thought),
            _ => Some(Part::Answer(held)),
        }
    }
}

fn add(parts: &mut Vec<Part>, part: Part) {
    match (parts.last_mut(), &part) {
        (Some(Part::Thought(text)), Part::Thought(more)) | (Some(Part::Answer(text)), Part::Answer(more)) => {
            text.push_str(more);
        }
        _ => parts.push(part),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// (thought, answer)
    fn hear(inside: bool, pieces: &[&str]) -> (String, String) {
        let mut splitter = Splitter::new(inside);
        let mut parts: Vec<Part> = pieces.iter().flat_map(|piece| splitter.push(piece)).collect();
        parts.extend(splitter.finish());
        let (mut thought, mut answer) = (String::new(), String::new());
        for part in parts {
            match part {
                Part::Thought(text) => thought.push_str(&text),
                Part::Answer(text) => answer.push_str(&text),
            }
        }
        (thought, answer)
    }

    #[test]
    fn thoughts_stand_at_the_beginning() {
        let check = |inside, text, thought: &str, answer: &str| {
            assert_eq!(hear(inside, &[text]), (thought.to_owned(), answer.to_owned()), "{text}");
        };
        check(false, "<think>\nLet me\nsee.\n</think>\n\nFour.\n", "Let me\nsee.", "Four.\n");
        check(false, "\n<think></think>Four.", "", "Four.");
        check(true, "so < that </thin\n</think>Four.", "so < that </thin", "Four.");
        check(true, "and on ", "and on", "");
        check(false, " Four. <think>no</think>", "", " Four. <think>no</think>");
        check(false, "<thi", "", "<thi");
        check(false, "", "", "");
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same(inside: bool, text in "(<think>|</think>|[<a \n/t]){0,10}", at in 0usize..40) {
            let at = at.min(text.len());
            let whole = hear(inside, &[&text]);
            prop_assert_eq!(&hear(inside, &[&text[..at], &text[at..]]), &whole);
            let letters: Vec<String> = text.chars().map(String::from).collect();
            prop_assert_eq!(hear(inside, &letters.iter().map(String::as_str).collect::<Vec<_>>()), whole);
        }
    }
}
