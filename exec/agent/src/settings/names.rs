//! Names of tools: which letters they have, what patterns mean, which is near.

/// OpenAI's limit.
const LENGTH_MAX: usize = 64;
/// Below it two names are not one name with a slip.
const NEAR: f64 = 0.7;

/// Whether one of the patterns matches: a name, or a beginning with a `*`.
pub fn any_matches(patterns: &[String], name: &str) -> bool {
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(begin) => name.starts_with(begin),
        None => pattern == name,
    })
}

/// OpenAI's API allows it.
pub fn is_allowed(name: &str) -> bool {
    let letter = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    !name.is_empty() && name.len() <= LENGTH_MAX && name.chars().all(letter)
}

/// What a tool of a server is called: of both names, with the letters that are allowed.
///
/// # Errors
/// When that is too long.
pub fn of_server(server: &str, tool: &str) -> Result<String, String> {
    let letter = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let name: String = format!("{server}_{tool}").chars().map(letter).collect();
    match is_allowed(&name) {
        true => Ok(name),
        false => Err(format!("`{name}` is longer than {LENGTH_MAX} letters: give its server a shorter name")),
    }
}

/// The name that was meant, if one is near.
pub fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let scored = known.iter().map(|one| (strsim::jaro_winkler(name, one), *one));
    scored.filter(|(score, _)| *score >= NEAR).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, one)| one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_names_or_beginnings() {
        let patterns = ["files_*".to_owned(), "search".to_owned()];
        for (name, wanted) in [("files_read", true), ("files_", true), ("search", true), ("search_all", false)] {
            assert_eq!(any_matches(&patterns, name), wanted, "{name}");
        }
        assert!(any_matches(&["*".to_owned()], "anything"));
    }

    #[test]
    fn names_of_servers_tools_have_allowed_letters() {
        assert_eq!(of_server("my.files", "read/all"), Ok("my_files_read_all".to_owned()));
        assert!(of_server("s", &"x".repeat(80)).is_err());
    }
}
