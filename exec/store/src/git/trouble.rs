//! What goes wrong between this node and a git server, as one of ours. The library's errors are trees of causes of many
//! kinds; what decides is looked up in them by type, and the words are the innermost ones.

use std::{error::Error, io};

use super::address::{Address, Way};
use crate::error::StoreError;

/// How deep causes are followed.
const DEPTH_MAX: usize = 24;

/// What an error of the library comes to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// Status of an HTTP answer.
    pub status: Option<u16>,
    /// The other side wants to know who asks.
    pub denied: bool,
    /// The other side is a git server and said this instead of an answer.
    pub server: Option<String>,
    /// The program that would have carried it cannot be started.
    pub program: Option<String>,
    /// What the system said of the line or of the disk.
    pub io: Option<io::ErrorKind>,
    /// Nothing was answered: no name, no connection, or too long a silence.
    pub broken: bool,
    /// The innermost words.
    pub words: String,
}

impl Told {
    /// Reads an error.
    pub fn of(error: &(dyn Error + 'static)) -> Self {
        let mut told = Self::default();
        told.look(error, 0);
        if told.words.is_empty() {
            told.words = error.to_string();
        }
        told
    }

    fn look(&mut self, error: &(dyn Error + 'static), depth: usize) {
        use gix_transport::client;
        if depth > DEPTH_MAX {
            return;
        }
        if let Some(tree) = error.downcast_ref::<gix_error::Error>() {
            for inner in tree.iter_errors() {
                if !inner.is::<gix_error::Error>() {
                    self.look(inner, depth + 1);
                }
            }
            return;
        }
        let words = error.to_string();
        if !words.is_empty() {
            self.words = words;
        }
        if let Some(e) = error.downcast_ref::<reqwest::Error>() {
            self.status = self.status.or(e.status().map(|status| status.as_u16()));
            self.broken |= e.is_connect() || e.is_timeout() || e.is_body();
        } else if let Some(said) = error.downcast_ref::<gix_transport::packetline::read::Error>() {
            self.server = Some(said.message.to_string());
        } else if error.is::<client::AuthenticationRequired>() {
            self.denied = true;
        } else if let Some(client::Error::InvokeProgram { command, .. }) = error.downcast_ref() {
            self.program = Some(command.to_string_lossy().into_owned());
        } else if let Some(e) = error.downcast_ref::<io::Error>() {
            self.denied |= e.kind() == io::ErrorKind::PermissionDenied;
            if e.kind() != io::ErrorKind::Other {
                self.io = self.io.or(Some(e.kind()));
            }
            // `source()` of such an error is its inner one's, not the inner one.
            if let Some(inner) = e.get_ref() {
                return self.look(inner, depth + 1);
            }
        }
        if let Some(inner) = error.source() {
            self.look(inner, depth + 1);
        }
    }

    /// What a git server said instead of an answer, also where the library took it for the head of a section.
    pub fn said(&self) -> Option<String> {
        let inside = || self.words.split_once("\"ERR ").map(|(_, said)| said.trim_end_matches('"').to_owned());
        self.server.clone().or_else(inside)
    }

    /// Whether the line failed, and another try may do.
    fn is_line(&self) -> bool {
        use io::ErrorKind::*;
        let line = |kind| {
            matches!(
                kind,
                ConnectionRefused
                    | ConnectionReset
                    | ConnectionAborted
                    | NotConnected
                    | HostUnreachable
                    | NetworkUnreachable
                    | TimedOut
                    | WouldBlock
                    | BrokenPipe
                    | UnexpectedEof
                    | Interrupted
            )
        };
        self.broken || self.status.is_some_and(|s| s >= 500 || s == 429 || s == 408) || self.io.is_some_and(line)
    }
}

/// An error of opening a repository or of asking for its names.
pub(super) fn opening(address: &Address, has_account: bool, told: Told) -> StoreError {
    let place = address.url.clone();
    if let Some(program) = told.program {
        return StoreError::Unready {
            found: format!("{place}: `{program}` cannot be started"),
            hint: "install an ssh client on this node, or name the repository by its https:// URL",
        };
    }
    if let Some(said) = told.said() {
        return none(place, format!("there is no such repository, or it is not served: {said}"));
    }
    if told.denied || matches!(told.status, Some(401 | 403)) {
        let found = match (address.way, told.status, has_account) {
            (Way::Ssh, ..) => told.words,
            (_, Some(403), _) => "it is refused (HTTP 403)".into(),
            (.., true) => "this node's token is not taken (HTTP 401)".into(),
            (.., false) => "it wants to know who asks, and this node has no token for it (HTTP 401)".into(),
        };
        return denied(address, has_account, found);
    }
    match told.status {
        Some(404 | 410) => {
            return none(place, format!("there is no such repository (HTTP {})", told.status.unwrap_or(404)));
        }
        Some(status) if !told.is_line() => {
            return none(place, format!("no git repository answers here (HTTP {status})"));
        }
        _ => {}
    }
    if told.is_line() {
        return StoreError::Unreachable { place, endpoint: address.host.clone(), tries: 1, found: told.words };
    }
    if address.way == Way::Ssh {
        // The program's own words are for people; it has one exit status for all of it.
        return StoreError::Unreachable { place, endpoint: address.host.clone(), tries: 1, found: told.words };
    }
    none(place, format!("no git repository answers here: {}", told.words))
}

fn none(place: String, found: String) -> StoreError {
    StoreError::NotFound { place, found, hint: "check the repository's URL".into() }
}

/// No access, by what was tried.
pub(super) fn denied(address: &Address, has_account: bool, found: String) -> StoreError {
    let hint = match (address.way, has_account) {
        (Way::Ssh, _) => {
            "the worker's own ssh key needs read access, and its known_hosts must know the host; or name the repository by its https:// URL"
        }
        (_, true) => "the token for this host under store.git in node.yaml needs read access to the repository",
        (_, false) => {
            "give the worker a token for this host under store.git in node.yaml; or check the URL: many servers say the same of repositories that do not exist"
        }
    };
    StoreError::Denied { place: address.url.clone(), found, hint, here: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_decides_is_found_however_deep() {
        let inner = io::Error::new(io::ErrorKind::ConnectionRefused, "refused");
        let wrapped = io::Error::other(gix_error::Error::from_error(io::Error::other(inner)));
        let told = Told::of(&wrapped);
        assert_eq!(
            (told.io, told.is_line(), told.words.as_str()),
            (Some(io::ErrorKind::ConnectionRefused), true, "refused")
        );
        let told = Told { words: "Unknown or unsupported header: \"ERR not our ref\"".into(), ..Told::default() };
        assert_eq!(told.said().as_deref(), Some("not our ref"));
        let told = Told::of(&io::Error::new(io::ErrorKind::StorageFull, "full"));
        assert!(told.io == Some(io::ErrorKind::StorageFull) && !told.is_line());
    }
}
