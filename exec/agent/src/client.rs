//! The HTTP client of an agent: ring's TLS, and no way to another host than the one that was asked.

use std::{collections::BTreeMap, time::Duration};

use reqwest::{
    header::{self, HeaderMap, HeaderName, HeaderValue},
    redirect::Policy,
};

/// A server that does not take a connection within it is away.
const CONNECT: Duration = Duration::from_secs(10);
/// Redirects within one host: more are a circle.
const HOPS_MAX: usize = 5;

/// Makes a client that gives up after as long a silence.
///
/// # Errors
/// What it lacks.
pub fn http(silence: Duration) -> Result<reqwest::Client, String> {
    // Main has done this already; a test may not have. Installed twice, the first one stays.
    drop(rustls::crypto::ring::default_provider().install_default());
    let client = || {
        reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .read_timeout(silence)
            .redirect(same_host())
            .user_agent(concat!("mloc-agent/", env!("CARGO_PKG_VERSION")))
    };
    // A machine without root certificates still speaks to http://.
    let made = client().build().or_else(|_| client().tls_certs_only([]).build());
    made.map_err(|e| format!("the HTTP client could not be made: {}", root_cause(&e)))
}

/// Credentials, and what a tool was allowed, are for the host that was named.
fn same_host() -> Policy {
    Policy::custom(|attempt| {
        let first = attempt.previous().first().map(reqwest::Url::origin);
        if first != Some(attempt.url().origin()) {
            attempt.stop()
        } else if attempt.previous().len() > HOPS_MAX {
            attempt.error("it leads from redirect to redirect")
        } else {
            attempt.follow()
        }
    })
}

/// The words of what is behind an error: reqwest's own say only what was tried.
pub fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(below) = cause.source() {
        cause = below;
    }
    cause.to_string()
}

/// Headers, those as they are and those that variables hold.
///
/// # Errors
/// Which cannot be made.
pub fn headers(fixed: &BTreeMap<String, String>, from_env: &BTreeMap<String, String>) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in fixed {
        let (name, value) = header(name, value)?;
        headers.insert(name, value);
    }
    for (name, variable) in from_env {
        let held = std::env::var(variable).map_err(|_| format!("the variable {variable} is not set"))?;
        let (name, mut value) = header(name, &held)?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers)
}

fn header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), String> {
    let parsed: HeaderName = name.parse().map_err(|_| format!("`{name}` is no header's name"))?;
    // A server may tell by it who may ask, and the connection needs it to be true.
    if [header::HOST, header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONNECTION].contains(&parsed) {
        return Err(format!("the header {name} is the connection's own"));
    }
    // The value may be a secret.
    let value = value.trim().parse().map_err(|_| format!("the value of the header {name} has signs it cannot have"))?;
    Ok((parsed, value))
}

/// A body up to a limit, and whether there was more.
///
/// # Errors
/// When the line breaks.
pub async fn body(mut answer: reqwest::Response, bytes_max: usize) -> Result<(Vec<u8>, bool), reqwest::Error> {
    let mut body = Vec::new();
    while let Some(piece) = answer.chunk().await? {
        let room = bytes_max - body.len();
        if piece.len() > room {
            body.extend_from_slice(&piece[..room]);
            return Ok((body, true));
        }
        body.extend_from_slice(&piece);
    }
    Ok((body, false))
}
