//! From tokens to text, as it comes: never half a character, never the beginning of a stop string that may yet become
//! whole.

use crate::vocabulary::Vocabulary;

/// The text of an answer while its tokens come.
#[derive(Debug, Clone, Default)]
pub struct Text {
    /// Bytes of a character that isn't whole yet, at most 3.
    partial: Vec<u8>,
    /// Whole characters that may be the beginning of a stop string.
    held: String,
    begun: bool,
}

/// Texts that end an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopStrings {
    /// The texts, none of them empty.
    pub strings: Vec<String>,
    /// Whether the one that ended it stays.
    pub include: bool,
}

/// What a token brought.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Piece {
    /// The text that can be shown now.
    pub text: String,
    /// The stop string that ended the answer: what followed it is dropped.
    pub stopped_by: Option<String>,
}

impl Text {
    /// One more token. While `may_stop` is false, stop strings that become whole with it are plain text.
    pub fn push(&mut self, id: u32, vocabulary: &dyn Vocabulary, stops: &StopStrings, may_stop: bool) -> Piece {
        let Some(mut bytes) = vocabulary.bytes(id).filter(|bytes| !bytes.is_empty()) else { return Piece::default() };
        if !self.begun {
            self.begun = true;
            // Tokenizers that write words with the space before them leave out a text's first one.
            if bytes[0] == b' ' && vocabulary.decode(&[id]) == String::from_utf8_lossy(&bytes[1..]) {
                bytes.remove(0);
            }
        }
        let searched = self.held.len();
        self.partial.extend_from_slice(&bytes);
        decode(&mut self.partial, &mut self.held);
        if stops.strings.is_empty() {
            return Piece { text: std::mem::take(&mut self.held), stopped_by: None };
        }
        if may_stop && let Some((from, to, stop)) = stops.first_in(&self.held, searched) {
            self.held.truncate(if stops.include { to } else { from });
            self.partial.clear();
            return Piece { text: std::mem::take(&mut self.held), stopped_by: Some(stop.to_owned()) };
        }
        let keep = stops.beginning_at_end_of(&self.held);
        let rest = self.held.split_off(self.held.len() - keep);
        Piece { text: std::mem::replace(&mut self.held, rest), stopped_by: None }
    }

    /// No more tokens: what was held back. A character that never became whole reads as U+FFFD.
    pub fn finish(&mut self) -> String {
        if !std::mem::take(&mut self.partial).is_empty() {
            self.held.push(char::REPLACEMENT_CHARACTER);
        }
        std::mem::take(&mut self.held)
    }
}

/// Moves whole characters; what can't become one reads as U+FFFD, as in `String::from_utf8_lossy`.
fn decode(bytes: &mut Vec<u8>, text: &mut String) {
    let mut done = 0;
    loop {
        match std::str::from_utf8(&bytes[done..]) {
            Ok(whole) => {
                text.push_str(whole);
                done = bytes.len();
                break;
            }
            Err(error) => {
                let valid = error.valid_up_to();
                text.push_str(&String::from_utf8_lossy(&bytes[done..][..valid]));
                done += valid;
                let Some(wrong) = error.error_len() else { break };
                text.push(char::REPLACEMENT_CHARACTER);
                done += wrong;
            }
        }
    }
    bytes.drain(..done);
}

impl StopStrings {
    /// The stop string that becomes whole first after `searched` bytes; of several at one place the longest. Where it
    /// begins and ends.
    fn first_in(&self, text: &str, searched: usize) -> Option<(usize, usize, &str)> {
        let found = self.strings.iter().filter_map(|stop| {
            // One that ended before was looked for before, or was not to stop anything.
            let mut from = floor_boundary(text, (searched + 1).saturating_sub(stop.len()));
            loop {
                let at = from + text[from..].find(stop.as_str())?;
                if at + stop.len() > searched {
                    return Some((at, at + stop.len(), stop.as_str()));
                }
                from = at + text[at..].chars().next().map_or(1, char::len_utf8);
            }
        });
        found.min_by_key(|(from, to, _)| (*to, *from))
    }

    /// Bytes at the end of a text that a stop string begins with.
    fn beginning_at_end_of(&self, text: &str) -> usize {
        let of = |stop: &String| {
            let longest = text.len().min(stop.len() - 1);
            (1..=longest).rev().find(|length| text.as_bytes().ends_with(&stop.as_bytes()[..*length])).unwrap_or(0)
        };
        let most = self.strings.iter().map(of).max().unwrap_or(0);
        // Bytes that are equal to a string's beginning are whole characters of it, or the beginning of one.
        text.len() - floor_boundary(text, text.len() - most)
    }
}

/// The last place up to `at` where a character begins.
fn floor_boundary(text: &str, at: usize) -> usize {
    (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Tokens of any bytes; decodes as all byte-level tokenizers do. The last one is special.
    struct Pieces {
        tokens: Vec<Vec<u8>>,
        strips_first_space: bool,
    }

    impl Vocabulary for Pieces {
        fn size(&self) -> usize {
            self.tokens.len() + 1
        }

        fn decode(&self, ids: &[u32]) -> String {
            let bytes: Vec<u8> = ids.iter().filter_map(|id| self.bytes(*id)).flatten().collect();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            match text.strip_prefix(' ') {
                Some(rest) if self.strips_first_space => rest.to_owned(),
                _ => text,
            }
        }

        fn bytes(&self, id: u32) -> Option<Vec<u8>> {
            self.tokens.get(id as usize).cloned()
        }

        fn encode(&self, _: &str) -> Vec<u32> {
            Vec::new()
        }

        fn ends(&self) -> &[u32] {
            &[]
        }
    }

    /// A text of few different characters, so that stop strings are met, cut into tokens at any bytes.
    fn answer() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let piece = prop_oneof![
            6 => "[ab ]{1,3}".prop_map(String::into_bytes),
            2 => Just("é".as_bytes().to_vec()),
            2 => Just("👩‍🚀".as_bytes().to_vec()),
            1 => prop::collection::vec(any::<u8>(), 1..3),
        ];
        let cuts = prop::collection::vec(1..5_usize, 1..40);
        (prop::collection::vec(piece, 1..30), cuts).prop_map(|(pieces, cuts)| {
            let mut bytes: &[u8] = &pieces.concat();
            let mut tokens = Vec::new();
            for cut in cuts.iter().cycle() {
                if bytes.is_empty() {
                    break;
                }
                let (token, rest) = bytes.split_at(bytes.len().min(*cut));
                tokens.push(token.to_vec());
                bytes = rest;
            }
            tokens
        })
    }

    fn stops() -> impl Strategy<Value = StopStrings> {
        let stop = prop_oneof![4 => "[ab ]{2,4}", 1 => Just("é".to_owned()), 1 => Just("a👩".to_owned())];
        (prop::collection::vec(stop, 0..3), any::<bool>())
            .prop_map(|(strings, include)| StopStrings { strings, include })
    }

    /// The whole text, cut after the fact: at the stop string that is whole first, reading character by character, if
    /// that isn't before a text of `from` bytes is there.
    fn cut(text: &str, stops: &StopStrings, from: usize) -> (String, Option<String>) {
        for (at, character) in text.char_indices() {
            let read = &text[..at + character.len_utf8()];
            let whole = stops.strings.iter().filter(|stop| read.len() > from && read.ends_with(stop.as_str()));
            if let Some(stop) = whole.max_by_key(|stop| stop.len()) {
                let end = if stops.include { read.len() } else { read.len() - stop.len() };
                return (read[..end].to_owned(), Some(stop.clone()));
            }
        }
        (text.to_owned(), None)
    }

    proptest! {
        #[test]
        fn pieces_are_the_whole_text_cut_at_the_stop(
            tokens in answer(), stops in stops(), strips_first_space: bool, min in 0..6_usize,
        ) {
            let vocabulary = Pieces { tokens, strips_first_space };
            let ids: Vec<u32> = (0..vocabulary.tokens.len() as u32).collect();
            let mut text = Text::default();
            // What is shown can't be taken back, so it is right at the end only if it was at every token.
            let mut shown = String::new();
            let mut stopped_by = None;
            for id in &ids {
                let piece = text.push(*id, &vocabulary, &stops, *id as usize >= min);
                shown.push_str(&piece.text);
                stopped_by = piece.stopped_by;
                if stopped_by.is_some() {
                    break;
                }
            }
            shown.push_str(&text.finish());
            // Where the text stood when it could end: characters that were whole by then.
            let mut early = Text::default();
            let none = StopStrings::default();
            let from = ids.iter().take(min).map(|id| early.push(*id, &vocabulary, &none, false).text.len()).sum();
            let whole = vocabulary.decode(&ids);
            // The last character may be U+FFFD only because the tokens ended, which stops nothing.
            let (expected, expected_stop) = cut(&whole, &stops, from);
            prop_assert_eq!((shown, stopped_by), (expected, expected_stop));
        }
    }

    #[test]
    fn special_tokens_have_no_text_and_a_half_character_waits() {
        let vocabulary = Pieces { tokens: vec![vec![0xF0, 0x9F], vec![0x91, 0xA9, b'!']], strips_first_space: false };
        let mut text = Text::default();
        let pieces = [0, 2, 1].map(|id| text.push(id, &vocabulary, &StopStrings::default(), true).text);
        assert_eq!(pieces, ["", "", "👩!"]);
        assert_eq!(text.push(0, &vocabulary, &StopStrings::default(), true).text, "");
        assert_eq!(text.finish(), "\u{FFFD}");
    }
}
