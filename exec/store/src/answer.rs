//! What opendal's errors hold of a server's own words.

/// What an object store said.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Its code, such as `NoSuchBucket`; `None` when the words are not a server's.
    pub code: Option<String>,
    /// HTTP's status, when there was an answer.
    pub status: Option<u16>,
    words: String,
}

impl Answer {
    /// opendal has a server's answer only as the `Debug` text of its own structs, and the status in that of the head.
    pub fn of(error: &opendal::Error) -> Self {
        let text = error.message();
        let status = (|| error.to_string().split_once("Parts { status: ")?.1.get(..3)?.parse().ok())();
        let field = |name: &str| {
            let rest = text.split_once(&format!(" {name}: \""))?.1;
            rest.split_once('"').map(|(value, _)| value.to_owned()).filter(|v| !v.is_empty())
        };
        if text.starts_with("S3Error {") || text.starts_with("AzblobError {") {
            return Self { code: field("code"), status, words: field("message").unwrap_or_default() };
        }
        if text.starts_with("GcsErrorResponse {") {
            return Self { code: field("reason"), status, words: field("message").unwrap_or_default() };
        }
        let words = match text.trim() {
            // A page for browsers, of something in between.
            page if page.starts_with('<') => "a page for browsers; is this the endpoint?".into(),
            "" => error.kind().to_string(),
            text => text.to_owned(),
        };
        let words = match std::error::Error::source(error).map(root_cause) {
            Some(cause) if !words.contains(&cause) => format!("{words}: {cause}"),
            _ => words,
        };
        Self { code: None, status, words }
    }

    /// Whether it has that code.
    pub fn is(&self, code: &str) -> bool {
        self.code.as_deref() == Some(code)
    }

    /// For the user.
    pub fn text(&self) -> String {
        // Azure adds a request's id and time, which say nothing to the reader and are never twice the same.
        let words = self.words.split(" RequestId:").next().unwrap_or_default().trim();
        match (&self.code, self.status) {
            (Some(code), _) if words.is_empty() => code.clone(),
            (Some(code), _) => format!("{code}: {words}"),
            (None, Some(status)) if words.is_empty() => format!("HTTP {status}"),
            (None, Some(status)) => format!("HTTP {status}: {words}"),
            (None, None) => words.to_owned(),
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
        assert!(crate::s3::S3.denial(&answer).1.contains("AWS_SECRET_ACCESS_KEY"));
        let said = r#"S3Error { code: "AccessDenied", message: "Access Denied", resource: "", request_id: "1" }"#;
        assert!(!crate::s3::S3.denial(&Answer::of(&Error::new(ErrorKind::PermissionDenied, said))).0);

        let said = r#"AzblobError { code: "AuthenticationFailed", message: "Server failed to authenticate. RequestId:7 Time:8" }"#;
        let answer = Answer::of(&Error::new(ErrorKind::PermissionDenied, said));
        assert_eq!(answer.text(), "AuthenticationFailed: Server failed to authenticate.");
        assert!(crate::azblob::AZBLOB.denial(&answer).0);

        let said = r#"GcsErrorResponse { error: GcsError { code: 401, message: "Invalid Credentials", errors: [GcsErrorDetail { domain: "global", location: "Authorization", location_type: "header", message: "Invalid Credentials", reason: "authError" }] } }"#;
        let answer = Answer::of(&Error::new(ErrorKind::Unexpected, said));
        assert_eq!(answer.text(), "authError: Invalid Credentials");
        assert!(crate::gcs::GCS.denies(&answer));

        let answer = Answer::of(&Error::new(ErrorKind::Unexpected, "").set_source(std::io::Error::other("gone")));
        assert_eq!((answer.code.clone(), answer.text()), (None, "Unexpected: gone".into()));
        let head = http_error(403);
        assert_eq!((head.status, head.text()), (Some(403), "HTTP 403: PermissionDenied".into()));
    }

    /// As opendal tells of an answer without a body.
    fn http_error(status: u16) -> Answer {
        let context = format!("Parts {{ status: {status}, version: HTTP/1.1, headers: {{}} }}");
        Answer::of(&Error::new(ErrorKind::PermissionDenied, "").with_context("response", context))
    }
}
