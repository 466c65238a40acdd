//! The HTTP client of a node: one for all its transfers, with ring's TLS and the node's patience.

use opendal::HttpTransporter;
use opendal_http_transport_reqwest::ReqwestTransport;
use reqwest::{RequestBuilder, Response, StatusCode, Url, header::LOCATION};

use crate::{answer::root_cause, error::StoreError, patience::Patience};

/// Redirects in a row: more are a circle.
const HOPS_MAX: usize = 10;

/// The HTTP client of a node, shared by all its transfers. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Client {
    /// Follows redirects, without the account's token where they lead to another host: for large files of repositories.
    pub http: reqwest::Client,
    /// Follows no redirects: [`Client::send`] does.
    unled: reqwest::Client,
    /// Follows them too, for opendal.
    pub transport: HttpTransporter,
    /// Why `https://` cannot be spoken, when it cannot.
    no_tls: Option<String>,
}

impl Client {
    /// Makes the client. TLS is ring's, whatever else is in the tree; a machine without root certificates still
    /// speaks to `http://` endpoints.
    pub fn new(patience: &Patience) -> Result<Self, StoreError> {
        // Main has done this already; a test may not have. Installed twice, the first one stays.
        drop(rustls::crypto::ring::default_provider().install_default());
        let client = || {
            reqwest::Client::builder()
                .connect_timeout(patience.connect)
                .read_timeout(patience.silence)
                .user_agent(concat!("mloc/", env!("CARGO_PKG_VERSION")))
        };
        let unready = |e: reqwest::Error| StoreError::Unready {
            found: root_cause(&e),
            hint: "the HTTP client could not be made: check proxy variables",
        };
        let (http, no_tls) = match client().build() {
            Ok(client) => (client, None),
            Err(e) => (client().tls_certs_only([]).build().map_err(unready)?, Some(root_cause(&e))),
        };
        let unled = client().redirect(reqwest::redirect::Policy::none());
        let unled = if no_tls.is_some() { unled.tls_certs_only([]) } else { unled };
        let unled = unled.build().map_err(unready)?;
        Ok(Self { unled, transport: HttpTransporter::new(ReqwestTransport::new(http.clone())), http, no_tls })
    }

    /// Sends a request and follows where it is sent on to, hop by hop: `fill` makes each of them, so that it shows an account
    /// to that account's host alone. Says where it ended. Tries once. Where it leads is not shown: such a URL may be signed.
    pub async fn send(
        &self,
        place: &str,
        url: &Url,
        fill: &(dyn Fn(&reqwest::Client, &Url) -> Result<RequestBuilder, StoreError> + Sync),
    ) -> Result<(Url, Response), StoreError> {
        let refused = |found: String| StoreError::Refused { place: place.to_owned(), found };
        let mut url = url.clone();
        for _ in 0..=HOPS_MAX {
            let answer = fill(&self.unled, &url)?.send().await.map_err(|e| broken(place, &url, &e))?;
            let status = answer.status();
            if !status.is_redirection() || status == StatusCode::NOT_MODIFIED {
                return Ok((url, answer));
            }
            let to = answer.headers().get(LOCATION).and_then(|to| to.to_str().ok()).and_then(|to| url.join(to).ok());
            let to = to.ok_or_else(|| refused(format!("HTTP {status}, and no place to go to")))?;
            match (url.scheme(), to.scheme()) {
                (_, "https") => self.speaks(to.as_str())?,
                ("http", "http") => {}
                // What was asked for in secret, and a signed URL, would be read by whoever is on the line.
                (from, scheme) => {
                    let host = to.host_str().unwrap_or_default();
                    return Err(refused(format!("it leads from {from} to {scheme} at {host}")));
                }
            }
            url = to;
        }
        Err(refused(format!("it leads from redirect to redirect, {HOPS_MAX} times")))
    }

    /// Whether this node can speak to an endpoint at all: `https://` needs root certificates.
    pub fn speaks(&self, endpoint: &str) -> Result<(), StoreError> {
        match &self.no_tls {
            Some(found) if !endpoint.starts_with("http://") => Err(StoreError::Unready {
                found: found.clone(),
                hint: "https needs root certificates on this node: install ca-certificates, or set SSL_CERT_FILE",
            }),
            _ => Ok(()),
        }
    }
}

/// A line to a server that broke, or never was.
pub(crate) fn broken(place: &str, url: &Url, error: &reqwest::Error) -> StoreError {
    let endpoint = url.origin().ascii_serialization();
    StoreError::Unreachable { place: place.to_owned(), endpoint, tries: 1, found: root_cause(error) }
}
