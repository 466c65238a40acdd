//! What is wrong with a file, said so that it can be put right: where, what was found, what would work. All of it
//! at once, for a second round over the WAN costs more than a longer list.

use std::fmt;

use serde::Serialize;

/// A place in a text: line and column, both from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct At {
    /// Line.
    pub line: u32,
    /// Column.
    pub column: u32,
}

impl At {
    /// The first character.
    pub const START: At = At { line: 1, column: 1 };
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The key's path, `spec.resources.hardware.memory`; empty when the text as a whole is meant.
    pub path: String,
    /// Where.
    #[serde(flatten)]
    pub at: At,
    /// What stands there.
    pub found: String,
    /// What could stand there.
    pub expected: String,
    /// What to write instead, when that can be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Problem {
    /// A problem without a hint.
    pub fn new(path: impl Into<String>, at: At, found: impl Into<String>, expected: impl Into<String>) -> Self {
        Self { path: path.into(), at, found: found.into(), expected: expected.into(), hint: None }
    }

    /// The same with what to write instead.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Something a user should know about a file that is taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Note {
    /// The key's path.
    pub path: String,
    /// Where.
    #[serde(flatten)]
    pub at: At,
    /// What is to be known.
    pub text: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.at.line, self.at.column, self.path, self.text)
    }
}

/// Everything that is wrong with one file, in the order of its lines. [`Problems::check`] turns it into a result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
pub struct Problems {
    /// The file as the user knows it.
    pub file: String,
    /// The problems; at most [`Problems::LIMIT`] of them.
    pub problems: Vec<Problem>,
    /// How many more there were.
    pub left_off: usize,
}

impl Problems {
    /// A file with more problems than this is no task file, and its list no help.
    pub const LIMIT: usize = 100;

    /// Nothing wrong yet.
    pub fn none(file: &str) -> Self {
        Self { file: file.to_owned(), problems: Vec::new(), left_off: 0 }
    }

    /// Adds one.
    pub fn push(&mut self, problem: Problem) {
        if self.problems.len() < Self::LIMIT {
            self.problems.push(problem);
        } else {
            self.left_off += 1;
        }
    }

    /// The problems, by line.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.problems.iter()
    }

    /// Whether what is pushed now is only counted, so that finding hints for it is work for nothing.
    pub fn is_full(&self) -> bool {
        self.problems.len() >= Self::LIMIT
    }

    /// `value` when nothing is wrong.
    ///
    /// # Errors
    /// All problems, by line.
    pub fn check<T>(mut self, value: Option<T>) -> Result<T, Problems> {
        match value {
            Some(value) if self.problems.is_empty() => Ok(value),
            _ => {
                self.problems.sort_by_key(|p| p.at);
                Err(self)
            }
        }
    }
}

impl<'a> IntoIterator for &'a Problems {
    type Item = &'a Problem;
    type IntoIter = std::slice::Iter<'a, Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{}:{}:{}: ", self.file, problem.at.line, problem.at.column)?;
            if !problem.path.is_empty() {
                write!(f, "{}: ", problem.path)?;
            }
            write!(f, "found {}, expected {}", problem.found, problem.expected)?;
            if let Some(hint) = &problem.hint {
                write!(f, "\n  hint: {hint}")?;
            }
        }
        if self.left_off > 0 {
            write!(f, "\nand {} more", self.left_off)?;
        }
        Ok(())
    }
}

/// A text as a message shows it: in backquotes, control characters escaped, cut to a line.
pub fn show(text: &str) -> String {
    const LONGEST: usize = 60;
    let mut shown = String::new();
    for (i, c) in text.chars().enumerate() {
        if i == LONGEST {
            shown.push('…');
            break;
        }
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    format!("`{shown}`")
}

/// The name nearest to a mistyped one, when one is near.
pub fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |s: &str| s.chars().take(80).filter(|c| *c != '_' && *c != '-').collect::<String>().to_lowercase();
    let typed = plain(typed);
    let scored = known.into_iter().map(|name| {
        let name_plain = plain(name);
        let edits = strsim::damerau_levenshtein(&typed, &name_plain);
        // A third of the word may be wrong; and a word that is a part of the name is near, whatever its length.
        let part = typed.len().min(name_plain.len()) >= 4
            && (name_plain.contains(&typed) || typed.contains(&name_plain))
            || typed.len() >= 3 && name_plain.starts_with(&typed);
        (edits, edits * 3 <= name_plain.chars().count().max(3) || part, name)
    });
    scored.filter(|(_, near, _)| *near).min_by_key(|(edits, ..)| *edits).map(|(.., name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_near() {
        let known = ["learning_rate", "num_train_epochs", "max_length", "r"];
        assert_eq!(nearest("learning_rat", known), Some("learning_rate"));
        assert_eq!(nearest("learningRate", known), Some("learning_rate"));
        assert_eq!(nearest("train_epochs", known), Some("num_train_epochs"));
        assert_eq!(nearest("zebra", known), None);
    }

    #[test]
    fn what_is_shown_is_one_short_line() {
        assert_eq!(show("a\nb\0"), "`a\\nb\\u{0}`");
        assert_eq!(show(&"x".repeat(100)).chars().count(), 63);
    }
}
