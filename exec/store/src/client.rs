//! The HTTP client of a node: one for all its transfers, with ring's TLS and the node's patience.

use opendal::HttpTransporter;
use opendal_http_transport_reqwest::ReqwestTransport;

use crate::{answer::root_cause, error::StoreError, patience::Patience};

/// The HTTP client of a node, shared by all its transfers. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Client {
    /// Follows redirects, without the account's token where they lead to another host: for large files of repositories.
    pub http: reqwest::Client,
    /// Follows no redirects: for who decides hop by hop whom a token is shown to.
    pub unled: reqwest::Client,
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
