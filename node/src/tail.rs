//! Where the reader of a followed log is: it cuts what comes into whole lines, tells lines about the log from lines of
//! it (see [`crate::follow`]), and so knows with which attempt and byte to go on after its connection broke.

use mloc_core::id::TaskId;

/// A line longer than this is printed in pieces: a log is bounded, and so is what waits here.
const LINE_BYTES_MAX: usize = 64 << 10;

/// A place in a task's log.
pub struct Place {
    task: TaskId,
    attempt: Option<String>,
    offset: u64,
    /// A line whose end has not come.
    begun: Vec<u8>,
    /// The beginning of that line was let through already.
    mid_line: bool,
}

impl Place {
    /// Before the first byte of a task's log.
    pub fn new(task: &str) -> Self {
        Self { task: TaskId::new(task), attempt: None, offset: 0, begun: Vec::new(), mid_line: false }
    }

    /// Query parameters that go on from here. What was begun will come again, whole.
    pub fn go_on(&mut self) -> Vec<(&'static str, String)> {
        self.begun.clear();
        let attempt = self.attempt.iter().map(|id| ("attempt", id.clone()));
        attempt.chain((self.offset > 0).then(|| ("offset", self.offset.to_string()))).collect()
    }

    /// Takes what came, and gives what is to be printed of it: whole lines.
    pub fn take(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            self.begun.extend(piece);
            if piece.ends_with(b"\n") || self.begun.len() >= LINE_BYTES_MAX {
                out.append(&mut self.line());
            }
        }
        out
    }

    /// What is left when the stream has come to its end.
    pub fn rest(&mut self) -> Vec<u8> {
        self.line()
    }

    fn line(&mut self) -> Vec<u8> {
        let line = std::mem::take(&mut self.begun);
        let whole = line.ends_with(b"\n");
        if std::mem::replace(&mut self.mid_line, !whole) || !self.about(&line) {
            self.offset += line.len() as u64;
        }
        line
    }

    /// Whether a line is about the log.
    fn about(&mut self, line: &[u8]) -> bool {
        let Ok(line) = std::str::from_utf8(line) else { return false };
        let Some(said) = line.strip_prefix("--- ") else { return false };
        if let Some(at) = said.strip_prefix("log of attempt ").filter(|at| at.starts_with(self.task.as_str())) {
            let mut words = at.split_whitespace();
            self.attempt = words.next().map(str::to_owned);
            let from = at.trim_end().rsplit_once(" from byte ").and_then(|(_, n)| n.parse().ok());
            self.offset = from.unwrap_or(0);
            return true;
        }
        said.strip_prefix("attempt ").unwrap_or(said).starts_with(self.task.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "--- t waits for a node: `mloc explain t` says why\n--- log of attempt t.0.1 on a\none\n\
                         --- no line about the log\ntwo\n--- attempt t.0.1 on a: LOST, its node was silent\n\
                         --- log of attempt t.0.2 on b\nthree\nfour\n--- attempt t.0.2 on b: FINISHED\n--- t COMPLETED\n";

    /// What a node answers to a place: the attempt's log from that byte on, and what comes after it.
    fn served(query: &[(&str, String)]) -> String {
        let value = |name: &str| query.iter().find(|(n, _)| *n == name).map(|(_, v)| v.clone());
        let Some(attempt) = value("attempt") else { return WHOLE.to_owned() };
        let offset: usize = value("offset").map_or(0, |n| n.parse().unwrap());
        let head = format!("--- log of attempt {attempt} on ");
        let (name, rest) = WHOLE.split_once(&head).unwrap().1.split_once('\n').unwrap();
        let from = if offset > 0 { format!(" from byte {offset}") } else { String::new() };
        format!("{head}{name}{from}\n{}", &rest[offset..])
    }

    #[test]
    fn wherever_the_stream_breaks_no_line_is_lost_or_printed_twice() {
        let is_log = |line: &&str| !line.starts_with("--- ") || line.starts_with("--- no");
        let want: Vec<&str> = WHOLE.lines().filter(is_log).collect();
        for first in 0..=WHOLE.len() {
            for second in [0, 7, 40, 90] {
                let mut place = Place::new("t");
                let mut printed = place.take(&WHOLE.as_bytes()[..first]);
                let again = served(&place.go_on());
                printed.extend(place.take(&again.as_bytes()[..second.min(again.len())]));
                let again = served(&place.go_on());
                // As the network cuts it.
                again.as_bytes().chunks(5).for_each(|piece| printed.extend(place.take(piece)));
                printed.extend(place.rest());
                let printed = String::from_utf8(printed).unwrap();
                let got: Vec<&str> = printed.lines().filter(is_log).collect();
                assert_eq!(got, want, "broken after {first} and {second} bytes");
            }
        }
    }

    #[test]
    fn a_line_without_an_end_does_not_pile_up() {
        let mut place = Place::new("t");
        place.take(b"--- log of attempt t.0.1 on a\n");
        let out = place.take(&vec![b'x'; LINE_BYTES_MAX + 5]);
        assert_eq!(out.len(), LINE_BYTES_MAX + 5);
        assert_eq!(place.take(b"--- t is no line about the log\n").len(), 31);
        assert_eq!(place.go_on()[1].1, (LINE_BYTES_MAX + 5 + 31).to_string());
    }
}
