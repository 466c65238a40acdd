//! Server-sent events out of bytes: lines of at most a size, and the data of each event.

/// A line was longer than it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a line of more than {0} bytes")]
pub struct TooLong(pub usize);

/// Bytes in, data of events out.
#[derive(Debug)]
pub struct Events {
    line: Vec<u8>,
    data: String,
    has_data: bool,
    after_return: bool,
    line_bytes_max: usize,
}

impl Events {
    /// With lines, and events, of at most so many bytes.
    pub fn new(line_bytes_max: usize) -> Self {
        Self { line: Vec::new(), data: String::new(), has_data: false, after_return: false, line_bytes_max }
    }

    /// Takes bytes, and tells the data of every event that ended in them.
    ///
    /// # Errors
    /// When a line or an event is too long: nothing more can be read then.
    pub fn take(&mut self, bytes: &[u8], mut tell: impl FnMut(String)) -> Result<(), TooLong> {
        for byte in bytes {
            let ends_line = match byte {
                // The second half of a line's end.
                b'\n' if std::mem::take(&mut self.after_return) => continue,
                b'\n' => true,
                b'\r' => {
                    self.after_return = true;
                    true
                }
                _ => false,
            };
            if ends_line {
                if let Some(data) = self.end_line()? {
                    tell(data);
                }
                continue;
            }
            self.after_return = false;
            if self.line.len() >= self.line_bytes_max {
                return Err(TooLong(self.line_bytes_max));
            }
            self.line.push(*byte);
        }
        Ok(())
    }

    fn end_line(&mut self) -> Result<Option<String>, TooLong> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            let has_data = std::mem::take(&mut self.has_data);
            let data = std::mem::take(&mut self.data);
            return Ok(has_data.then_some(data));
        }
        // Names, ids and remarks are nothing to a reader of answers.
        let text = String::from_utf8_lossy(&line);
        if let Some(data) = text.strip_prefix("data:") {
            if self.data.len() + data.len() > self.line_bytes_max {
                return Err(TooLong(self.line_bytes_max));
            }
            if std::mem::replace(&mut self.has_data, true) {
                self.data.push('\n');
            }
            self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(pieces: &[&[u8]]) -> Vec<String> {
        let (mut events, mut told) = (Events::new(64), Vec::new());
        for piece in pieces {
            events.take(piece, |data| told.push(data)).unwrap();
        }
        told
    }

    #[test]
    fn events_are_what_stands_between_empty_lines() {
        let text = ": hello\n\ndata: one\n\nevent: x\ndata:two\nid: 3\ndata:  three\n\ndata\n\ndata: torn";
        assert_eq!(read(&[text.as_bytes()]), ["one", "two\n three"]);
        assert_eq!(read(&[b"data: a\r\n\r\ndata: b\r\rdata: c\n\n"]), ["a", "b", "c"]);
    }

    #[test]
    fn no_line_and_no_event_grows_for_ever() {
        let mut events = Events::new(8);
        assert_eq!(events.take(&[b'x'; 9], |_| ()), Err(TooLong(8)));
        let mut events = Events::new(8);
        assert_eq!(events.take(b"data:123\ndata:456\ndata:789\n", |_| ()), Err(TooLong(8)));
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_bytes_are_cut(cuts in proptest::collection::vec(0usize..40, 0..6)) {
            let text = "data: äö\r\n\r\n: x\ndata: b\ndata: c\n\n".as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.sort_unstable();
            let (mut pieces, mut from) = (Vec::new(), 0);
            for cut in cuts.into_iter().chain([text.len()]) {
                pieces.push(&text[from..cut]);
                from = cut;
            }
            prop_assert_eq!(read(&pieces), ["äö", "b\nc"]);
        }
    }
}
