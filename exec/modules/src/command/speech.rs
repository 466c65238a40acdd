//! What a program says on its stdout, or on the pipe that is for events alone: events of the protocol are told apart
//! from everything else, which is its log.
//!
//! A flood is passed on in pieces as it comes: nothing is held but the beginning of a line that may be an event.

use mloc_exec::{
    Event,
    event::{LINE_BYTES_MAX, PROTOCOL},
};
use serde_json::Value;

/// Longest line of the log, and longest event, in bytes.
const LINE_MAX: usize = LINE_BYTES_MAX;

/// One line, understood.
#[derive(Debug, PartialEq)]
pub enum Said {
    /// An event.
    Event(Event),
    /// Looks like one, and is none: what is wrong. The line goes to the log as well.
    Odd(String),
}

/// Splits what comes into events and log.
#[derive(Debug, Default)]
pub struct Lines {
    at: At,
    /// For the log, since it was last taken.
    pub log: Vec<u8>,
}

/// Where the reading stands.
#[derive(Debug, Default)]
enum At {
    /// Before a line's first byte.
    #[default]
    Start,
    /// In a line that begins like an event.
    Object(Vec<u8>),
    /// In a line of the log.
    Plain {
        /// Of this line, so far.
        bytes: usize,
    },
}

impl Lines {
    /// Takes what was read; tells what was said, in order.
    pub fn feed(&mut self, mut read: &[u8], mut said: impl FnMut(Said)) {
        while let Some(first) = read.first() {
            let end = memchr::memchr(b'\n', read);
            let (part, whole) = (&read[..end.unwrap_or(read.len())], end.is_some());
            read = &read[part.len() + usize::from(whole)..];
            self.at = match std::mem::take(&mut self.at) {
                At::Start if *first == b'{' => self.object(Vec::new(), part, whole, &mut said),
                At::Start => self.plain(0, part, whole),
                At::Object(held) => self.object(held, part, whole, &mut said),
                At::Plain { bytes } => self.plain(bytes, part, whole),
            };
        }
    }

    /// No more comes.
    pub fn end(&mut self, mut said: impl FnMut(Said)) {
        match std::mem::take(&mut self.at) {
            At::Start => {}
            At::Object(held) => drop(self.object(held, b"", true, &mut said)),
            At::Plain { bytes } => drop(self.plain(bytes, b"", true)),
        }
    }

    fn object(&mut self, mut held: Vec<u8>, part: &[u8], whole: bool, said: &mut impl FnMut(Said)) -> At {
        if held.len() + part.len() > LINE_MAX {
            said(Said::Odd(format!("a line that begins like an event is longer than {LINE_MAX} bytes")));
            self.log.extend_from_slice(&held);
            return self.plain(held.len(), part, whole);
        }
        held.extend_from_slice(part);
        if !whole {
            return At::Object(held);
        }
        match understood(&String::from_utf8_lossy(&held)) {
            Some(Ok(event)) => said(Said::Event(event)),
            Some(Err(found)) => {
                self.log_line(&held);
                said(Said::Odd(found));
            }
            None => self.log_line(&held),
        }
        At::Start
    }

    fn log_line(&mut self, line: &[u8]) {
        self.log.extend_from_slice(line);
        self.log.push(b'\n');
    }

    fn plain(&mut self, before: usize, part: &[u8], whole: bool) -> At {
        let room = LINE_MAX.saturating_sub(before).min(part.len());
        self.log.extend_from_slice(&part[..room]);
        let bytes = before + part.len();
        if !whole {
            return At::Plain { bytes };
        }
        if bytes > LINE_MAX {
            let left_out = bytes - LINE_MAX;
            self.log.extend_from_slice(format!(" … {left_out} bytes of this line are left out").as_bytes());
        }
        self.log.push(b'\n');
        At::Start
    }
}

/// The event of a line; `None` for one that is not meant as one, or that a later version has and this can do without.
fn understood(line: &str) -> Option<Result<Event, String>> {
    let value: Value = serde_json::from_str(line).ok()?;
    let version = value.get("v")?.as_u64()?;
    value.get("event")?.as_str()?;
    if version != PROTOCOL {
        return Some(Err(format!("an event of protocol version {version}; this mloc speaks {PROTOCOL}")));
    }
    Event::of_line(line).map_err(|e| e.to_string()).transpose()
}

#[cfg(test)]
mod tests {
    use mloc_core::wire::Progress;

    use super::*;

    fn heard(pieces: &[&[u8]]) -> (Vec<Said>, String) {
        let (mut lines, mut said) = (Lines::default(), Vec::new());
        pieces.iter().for_each(|piece| lines.feed(piece, |s| said.push(s)));
        lines.end(|s| said.push(s));
        (said, String::from_utf8_lossy(&lines.log).into_owned())
    }

    fn step(step: u64) -> Said {
        Said::Event(Event::Progress(Progress { step, ..Progress::default() }))
    }

    #[test]
    fn events_are_told_apart_from_what_programs_print() {
        let text = "loading\n{\"v\":1,\"event\":\"progress\",\"step\":1}\n{'loss': 1.5, 'epoch': 0.1}\n{\"loss\": 1.5}\n\
                    {\"v\":1,\"event\":\"weather\"}\n\n 50%|##\r100%|####\n{\"v\":1,\"event\":\"progress\",\"step\":2}";
        let log = "loading\n{'loss': 1.5, 'epoch': 0.1}\n{\"loss\": 1.5}\n{\"v\":1,\"event\":\"weather\"}\n\n 50%|##\r100%|####\n";
        let whole = heard(&[text.as_bytes()]);
        assert_eq!(whole, (vec![step(1), step(2)], log.to_owned()));
        // However the pipe cuts it.
        for size in 1..20 {
            assert_eq!(heard(&text.as_bytes().chunks(size).collect::<Vec<_>>()), whole, "pieces of {size}");
        }
    }

    #[test]
    fn what_looks_like_an_event_and_is_none_is_said_and_kept() {
        for (line, says) in [
            (r#"{"v":2,"event":"progress","step":1}"#, "protocol version 2"),
            (r#"{"v":1,"event":"progress"}"#, "missing field `step`"),
            (r#"{"v":1,"event":"phase","phase":"LUNCH"}"#, "LUNCH"),
        ] {
            let (said, log) = heard(&[line.as_bytes(), b"\n"]);
            assert!(matches!(&said[..], [Said::Odd(found)] if found.contains(says)), "{said:?}");
            assert_eq!(log, format!("{line}\n"));
        }
    }

    #[test]
    fn a_line_without_an_end_is_cut_and_said_to_be() {
        let mut lines = Lines::default();
        let (mut logged, piece) = (0, vec![b'x'; 64 << 10]);
        for _ in 0..64 {
            lines.feed(&piece, |said| panic!("{said:?}"));
            logged += std::mem::take(&mut lines.log).len();
        }
        lines.feed(b"\nnext\n", |said| panic!("{said:?}"));
        assert_eq!(logged, LINE_MAX);
        let left_out = (64 * (64 << 10)) - LINE_MAX;
        assert_eq!(
            String::from_utf8_lossy(&lines.log),
            format!(" … {left_out} bytes of this line are left out\nnext\n")
        );

        // One that begins like an event is held no longer than an event may be.
        let (mut lines, mut said) = (Lines::default(), Vec::new());
        lines.feed(b"{", |s| said.push(s));
        for _ in 0..64 {
            lines.feed(&piece, |s| said.push(s));
        }
        assert!(matches!(&said[..], [Said::Odd(found)] if found.contains("longer than")), "{said:?}");
        assert!(lines.log.len() <= LINE_MAX);
    }
}
