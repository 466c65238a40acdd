//! Who may call a listener, decided from a request's headers alone.
//!
//! A loopback listener trusts the machine's own users, and a web page they look at is none of them. A page can send
//! requests here in two ways, and both show in headers that scripts can't forge: by a foreign name that was made to
//! resolve to 127.0.0.1 (`Host`), and straight across sites (`Origin`). Whoever presents a token needs neither check:
//! a page does not know it.

use std::net::{Ipv4Addr, Ipv6Addr};

use axum::{
    Json,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::{
    Caller, ControlError, UserTokens,
    routes::{CALLER_HEADER, TAKEN_BY_HEADER},
};

/// Who may call a listener without a token.
#[derive(Clone, Debug)]
pub enum Access {
    /// Loopback: the machine's own users are the admin unless they present a token.
    Trusted(UserTokens),
    /// Anything else: a token or 401.
    TokenOnly(UserTokens),
}

impl Access {
    /// The caller whom a request's headers name.
    ///
    /// # Errors
    /// [`ControlError::Unauthorized`] without a good token where one is needed, [`ControlError::Forbidden`] for what a
    /// web page of another site sent.
    pub fn caller(&self, path: &str, headers: &HeaderMap) -> Result<Caller, ControlError> {
        let (Self::Trusted(tokens) | Self::TokenOnly(tokens)) = self;
        // Clients of OpenAI's API can't be without a key: where none is needed, what is plainly none of ours says nothing.
        let lenient = matches!(self, Self::Trusted(_)) && (path.starts_with("/v1/") || path.starts_with("/services/"));
        // Some send `Bearer` alone where they were given no key.
        let said = if lenient && is_empty_bearer(headers) { None } else { bearer(headers)? };
        if let Some(token) = said.filter(|token| !lenient || UserTokens::looks_like_one(token)) {
            return tokens.check(token);
        }
        match self {
            Self::Trusted(_) => from_this_machine(headers).map(|()| Caller::admin()),
            Self::TokenOnly(_) => Err(ControlError::Unauthorized(
                "this address needs `Authorization: Bearer TOKEN`; `mloc token USER` on a member prints one".into(),
            )),
        }
    }
}

/// Middleware: puts the [`Caller`] into the request, or refuses it.
pub(crate) async fn authenticate(State(access): State<Access>, mut request: Request, next: Next) -> Response {
    // Only a member may say who called it and who holds what came along, and members don't come this way.
    request.headers_mut().remove(CALLER_HEADER);
    request.headers_mut().remove(TAKEN_BY_HEADER);
    match access.caller(request.uri().path(), request.headers()) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(refused) if request.uri().path().starts_with("/v1/") => openai_refusal(refused),
        Err(refused) => refused.into_response(),
    }
}

/// For clients of OpenAI's API, in its shape.
fn openai_refusal(refused: ControlError) -> Response {
    let (status, code, message) = match refused {
        ControlError::Unauthorized(message) => (StatusCode::UNAUTHORIZED, "invalid_api_key", message),
        ControlError::Forbidden(message) => (StatusCode::FORBIDDEN, "forbidden", message),
        other => return other.into_response(),
    };
    let error = json!({"message": message, "type": "invalid_request_error", "param": null, "code": code});
    (status, Json(json!({ "error": error }))).into_response()
}

fn is_empty_bearer(headers: &HeaderMap) -> bool {
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let alone = given.next().and_then(|value| value.to_str().ok()).filter(|_| given.next().is_none());
    alone.is_some_and(|value| value.trim().eq_ignore_ascii_case("bearer"))
}

/// The bearer token, if any. A header that holds something else is no "none": its sender meant to be somebody.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, ControlError> {
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let Some(first) = given.next() else { return Ok(None) };
    let one = if given.next().is_none() { first.to_str().ok() } else { None };
    let parts = one.and_then(|text| text.trim().split_once(' '));
    let token = parts.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token.trim());
    token.filter(|token| !token.is_empty()).map(Some).ok_or_else(|| {
        ControlError::Unauthorized("the Authorization header is not one `Bearer TOKEN`: send that, or none".into())
    })
}

fn from_this_machine(headers: &HeaderMap) -> Result<(), ControlError> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if !is_loopback(host) {
        return Err(ControlError::Forbidden(format!(
            "without a token this address answers to localhost, 127.0.0.1 and [::1] only, and the Host header says \
             `{host}`: use one of those names, or send `Authorization: Bearer TOKEN` (`mloc token USER` prints one)"
        )));
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or_default();
    let own = origin.strip_prefix("http://").is_some_and(|from| from.eq_ignore_ascii_case(host));
    if own {
        return Ok(());
    }
    Err(ControlError::Forbidden(format!(
        "without a token no page of another site may call this address, and this request comes from `{origin}`: send \
         `Authorization: Bearer TOKEN` (`mloc token USER` prints one)"
    )))
}

/// Whether a Host header names this machine by a name that no DNS server can hand out.
fn is_loopback(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host();
    let v6 = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match v6 {
        Some(v6) => v6.parse::<Ipv6Addr>().is_ok_and(|ip| ip.is_loopback()),
        None => name.eq_ignore_ascii_case("localhost") || name.parse::<Ipv4Addr>().is_ok_and(|ip| ip.is_loopback()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_a_name_no_dns_server_hands_out() {
        for host in ["localhost", "LOCALHOST:7948", "127.0.0.1:7948", "127.9.9.9", "[::1]", "[::1]:7948"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example:7948", "[::2]", "10.0.0.1"] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn keys_that_say_nothing_are_none_where_clients_of_models_come_and_nobody_needs_one() {
        let tokens = || UserTokens::new([7; 32]);
        let caller = |access: &Access, path: &str, key: &'static str| {
            let headers = [(header::HOST, "localhost"), (header::AUTHORIZATION, key)];
            let headers = headers.map(|(name, value)| (name, axum::http::HeaderValue::from_static(value)));
            access.caller(path, &headers.into_iter().collect()).map(|caller| caller.user)
        };
        let here = Access::Trusted(tokens());
        for key in ["Bearer", "Bearer ", "bearer sk-none", "Bearer EMPTY"] {
            for path in ["/v1/completions", "/services/m/v1/completions"] {
                assert_eq!(caller(&here, path, key).ok(), Some(Caller::admin().user), "{key:?} {path}");
                assert!(caller(&Access::TokenOnly(tokens()), path, key).is_err(), "{key:?} {path}");
            }
            assert!(caller(&here, "/api/v1/tasks", key).is_err(), "{key:?}");
        }
        assert!(caller(&here, "/v1/completions", "Basic eDp5").is_err(), "its sender meant to be somebody");
    }
}
