//! A real S3 server: moto, started by the fixture script, on a port of its own choosing.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use mloc_core::task::spec::Location;
use mloc_store::{Secret, StoreConfig};

/// The server; it ends with this value.
pub struct Moto {
    child: Child,
    /// `http://127.0.0.1:PORT`.
    pub endpoint: String,
}

impl Drop for Moto {
    fn drop(&mut self) {
        // It ends when its standard input does; nothing is lost if it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Moto {
    /// Starts the server and makes bucket `mloc-test`. `None`, and a line that is counted, where it cannot be had.
    pub async fn start() -> Option<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/servers/moto.sh");
        let child =
            Command::new(script).arg(env!("CARGO_TARGET_TMPDIR")).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.expect("tests/fixtures/servers/moto.sh starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("its output is piped");
        BufReader::new(stdout).read_line(&mut line).expect("its output can be read");
        let moto = Self { child, endpoint: line.trim().to_owned() };
        if moto.endpoint.is_empty() {
            super::skip("no S3 server: moto[server] 5.2.5 is neither installed nor to be had from PyPI");
            return None;
        }
        moto.call(reqwest::Method::PUT, "/mloc-test", Vec::new()).await;
        Some(moto)
    }

    /// A request that is signed only for show: moto looks no closer until [`Moto::check_credentials`].
    pub async fn call(&self, method: reqwest::Method, path: &str, body: Vec<u8>) -> Vec<u8> {
        drop(rustls::crypto::ring::default_provider().install_default());
        let signed = "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/20260101/us-east-1/s3/aws4_request, \
                      SignedHeaders=host, Signature=0";
        let request = reqwest::Client::new().request(method, format!("{}{path}", self.endpoint));
        let request = request.header("authorization", signed).body(body);
        let answer = request.send().await.expect("moto answers");
        let status = answer.status();
        let bytes = answer.bytes().await.expect("moto answers to the end").to_vec();
        assert!(status.is_success(), "{path}: {status} {}", String::from_utf8_lossy(&bytes));
        bytes
    }

    /// Puts an object into bucket `mloc-test`.
    pub async fn put(&self, key: &str, bytes: &[u8]) {
        self.call(reqwest::Method::PUT, &format!("/mloc-test/{key}"), bytes.to_vec()).await;
    }

    /// The keys in bucket `mloc-test`.
    pub async fn keys(&self) -> Vec<String> {
        let xml =
            String::from_utf8(self.call(reqwest::Method::GET, "/mloc-test?list-type=2", Vec::new()).await).unwrap();
        xml.split("<Key>").skip(1).map(|part| part.split("</Key>").next().unwrap().to_owned()).collect()
    }

    /// Keys of uploads in parts that are neither completed nor given up.
    pub async fn uploads(&self) -> Vec<String> {
        let xml = String::from_utf8(self.call(reqwest::Method::GET, "/mloc-test?uploads", Vec::new()).await).unwrap();
        xml.split("<Key>").skip(1).map(|part| part.split("</Key>").next().unwrap().to_owned()).collect()
    }

    /// Removes all objects from bucket `mloc-test`.
    pub async fn clear(&self) {
        for key in self.keys().await {
            self.call(reqwest::Method::DELETE, &format!("/mloc-test/{key}"), Vec::new()).await;
        }
    }

    /// From now on only known credentials are let in, and it knows none.
    pub async fn check_credentials(&self) {
        self.call(reqwest::Method::POST, "/moto-api/reset-auth", b"0".to_vec()).await;
    }
}

/// A place in bucket `mloc-test` behind an endpoint.
pub fn at(endpoint: &str, path: &str) -> Location {
    Location::S3 { bucket: "mloc-test".into(), path: path.into(), endpoint: Some(endpoint.into()), region: None }
}

/// With credentials that moto does not mind.
pub fn with_credentials(mut config: StoreConfig) -> StoreConfig {
    config.s3.access_key_id = Some(Secret::new("AKIAEXAMPLE"));
    config.s3.secret_access_key = Some(Secret::new("hunter2"));
    config
}
