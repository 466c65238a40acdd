//! Real servers of other clouds, started by the fixture scripts on ports of their own choosing.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use mloc_core::task::spec::Location;
use mloc_store::{Secret, StoreConfig};
use reqwest::{Client, Method, Response};

/// A server; it ends with this value.
pub struct Server {
    child: Child,
    /// `http://127.0.0.1:PORT`.
    pub endpoint: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It ends when its standard input does; nothing is lost if it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Server {
    /// Starts one. `None`, and a line that is counted, where it cannot be had.
    fn start(script: &str, what: &str) -> Option<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/servers").join(script);
        let child =
            Command::new(script).arg(env!("CARGO_TARGET_TMPDIR")).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.expect("the server's script starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("its output is piped");
        BufReader::new(stdout).read_line(&mut line).expect("its output can be read");
        let server = Self { child, endpoint: line.trim().to_owned() };
        if server.endpoint.is_empty() {
            super::skip(&format!("{what} is neither installed nor to be had from its registry"));
            return None;
        }
        Some(server)
    }
}

async fn call(method: Method, url: String, body: Vec<u8>) -> Response {
    drop(rustls::crypto::ring::default_provider().install_default());
    Client::new().request(method, url).body(body).send().await.expect("the server answers")
}

/// gcp-storage-emulator, with bucket `mloc-test`. It looks at no credentials and enforces no preconditions.
pub struct Gcs(pub Server);

impl Gcs {
    pub fn start() -> Option<Self> {
        Server::start("gcs.sh", "gcp-storage-emulator 2026.7.19 (PyPI)").map(Self)
    }

    pub async fn put(&self, key: &str, bytes: &[u8]) {
        let name = key.replace('/', "%2F");
        let url = format!("{}/upload/storage/v1/b/mloc-test/o?uploadType=media&name={name}", self.0.endpoint);
        assert!(call(Method::POST, url, bytes.to_vec()).await.status().is_success());
    }

    /// A place in its bucket.
    pub fn at(&self, path: &str) -> Location {
        at_gcs(&self.0.endpoint, path)
    }

    pub fn config(config: StoreConfig) -> StoreConfig {
        let mut config = config;
        config.gcs.token = Some(Secret::new("ya29.hunter2"));
        config
    }
}

/// A place in bucket `mloc-test` of Google Cloud Storage behind an endpoint.
pub fn at_gcs(endpoint: &str, path: &str) -> Location {
    Location::Gcs { bucket: "mloc-test".into(), path: path.into(), endpoint: Some(endpoint.into()) }
}

/// Azurite, with containers `mloc-test` and `mloc-private`.
pub struct Azurite(pub Server);

/// The key that everybody knows.
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

impl Azurite {
    pub fn start() -> Option<Self> {
        Server::start("azurite.sh", "azurite 3.37.0 (npm)").map(Self)
    }

    /// A place in a container.
    pub fn at(&self, container: &str, path: &str) -> Location {
        Location::Azblob {
            container: container.into(),
            path: path.into(),
            account: Some("devstoreaccount1".into()),
            endpoint: Some(format!("{}/devstoreaccount1", self.0.endpoint)),
        }
    }

    /// Names of what is in the container that all may read.
    pub async fn keys(&self) -> Vec<String> {
        let url = format!("{}/devstoreaccount1/mloc-test?restype=container&comp=list", self.0.endpoint);
        let xml = call(Method::GET, url, vec![]).await.text().await.unwrap();
        xml.split("<Name>").skip(1).map(|part| part.split("</Name>").next().unwrap().to_owned()).collect()
    }

    pub fn config(config: StoreConfig) -> StoreConfig {
        let mut config = config;
        config.azblob.account_key = Some(Secret::new(KEY));
        config
    }
}
