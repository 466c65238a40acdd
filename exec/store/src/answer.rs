//! What opendal's errors hold of an S3 server's own words, and what a user can do about them.

/// What an S3 server said.
pub(crate) struct Answer {
    /// Its code, such as `NoSuchBucket`; `None` when the words are not a server's.
    pub code: Option<String>,
    words: String,
}

impl Answer {
    /// opendal has the server's XML only as the `Debug` text of its own struct.
    pub fn of(error: &opendal::Error) -> Self {
        let text = error.message();
        let field = |name: &str| {
            let rest = text.split_once(&format!("{name}: \""))?.1;
            rest.split_once('"').map(|(value, _)| value.to_owned()).filter(|v| !v.is_empty())
        };
        if text.starts_with("S3Error") {
            return Self { code: field("code"), words: field("message").unwrap_or_default() };
        }
        let words = if text.is_empty() { error.kind().to_string() } else { text.to_owned() };
        let words = match std::error::Error::source(error).map(root_cause) {
            Some(cause) if !words.contains(&cause) => format!("{words}: {cause}"),
            _ => words,
        };
        Self { code: None, words }
    }

    /// For the user.
    pub fn text(&self) -> String {
        match &self.code {
            Some(code) => format!("{code}: {}", self.words),
            None => self.words.clone(),
        }
    }

    /// Whether access was denied for this node's own credentials or clock, not for what they may not do.
    pub fn blames_node(&self) -> bool {
        const OWN: [&str; 5] =
            ["RequestTimeTooSkewed", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"];
        self.code.as_deref().is_some_and(|code| OWN.contains(&code))
    }

    /// What would work, when access was denied.
    pub fn hint(&self) -> &'static str {
        match self.code.as_deref() {
            Some("RequestTimeTooSkewed") => "set this node's clock",
            Some("InvalidAccessKeyId") => {
                "this endpoint does not know the access key id: check the worker's AWS_ACCESS_KEY_ID or s3.accessKeyIdFile in node.yaml"
            }
            Some("SignatureDoesNotMatch") => {
                "the secret does not belong to the access key id: check the worker's AWS_SECRET_ACCESS_KEY or s3.secretAccessKeyFile in node.yaml"
            }
            Some("ExpiredToken") => {
                "give the worker fresh credentials: AWS_SESSION_TOKEN, or s3.sessionTokenFile in node.yaml"
            }
            _ => {
                "the worker's credentials (AWS_* variables or s3 in node.yaml) need list, read and, for destinations, write on this path"
            }
        }
    }
}

/// Whether a request was never sent because there is nothing to sign it with, and will be nothing.
pub(crate) fn unsigned(error: &opendal::Error) -> bool {
    let causes = std::iter::successors(std::error::Error::source(error), |e| e.source());
    causes.filter_map(|e| e.downcast_ref::<reqsign_core::Error>()).any(|e| !e.is_retryable())
}

/// The innermost cause of an error, which names what really happened ("connection refused").
pub(crate) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

#[cfg(test)]
mod tests {
    use opendal::{Error, ErrorKind};

    use super::*;

    #[test]
    fn the_servers_words_are_found() {
        let said = r#"S3Error { code: "SignatureDoesNotMatch", message: "It does not match.", resource: "", request_id: "1" }"#;
        let answer = Answer::of(&Error::new(ErrorKind::PermissionDenied, said));
        assert_eq!(answer.text(), "SignatureDoesNotMatch: It does not match.");
        assert!(answer.hint().contains("AWS_SECRET_ACCESS_KEY") && answer.blames_node());
        let said = r#"S3Error { code: "AccessDenied", message: "Access Denied", resource: "", request_id: "1" }"#;
        assert!(!Answer::of(&Error::new(ErrorKind::PermissionDenied, said)).blames_node());
        let answer = Answer::of(&Error::new(ErrorKind::Unexpected, "").set_source(std::io::Error::other("gone")));
        assert_eq!((answer.code, answer.words.as_str()), (None, "Unexpected: gone"));
    }
}
