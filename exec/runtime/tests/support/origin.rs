//! Where sources come from: an S3 server on this machine (moto, by the fixture script), and nodes that pull from it.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use mloc_core::task::{
    TaskSpec,
    spec::{Location, Model},
};
use mloc_runtime::WorkerSettings;
use mloc_store::{CacheConfig, Patience, Secret, Store, StoreConfig};

use crate::support::{Folders, Node, spec};

/// The server; it ends with this value.
pub struct Origin {
    child: Child,
    address: String,
}

impl Drop for Origin {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Origin {
    /// Starts one with a bucket. `None`, and a line that is counted, where it cannot be had.
    pub fn start() -> Option<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/servers/moto.sh");
        let mut child = Command::new(script)
            .arg(env!("CARGO_TARGET_TMPDIR"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("tests/fixtures/servers/moto.sh starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut line).expect("it can be read");
        let origin = Self { child, address: line.trim().trim_start_matches("http://").to_owned() };
        if origin.address.is_empty() {
            let here = std::thread::current();
            let line = format!("SKIP {}: no S3 server: moto[server] is not to be had", here.name().unwrap_or("a test"));
            writeln!(std::io::stderr(), "{line}").expect("stderr can be written");
            assert!(std::env::var_os("MLOC_NO_SKIP").is_none_or(|v| v != "1"), "{line}");
            return None;
        }
        origin.put("", &mut std::io::empty(), 0);
        Some(origin)
    }

    /// Puts an object into its bucket.
    pub fn put(&self, key: &str, from: &mut dyn Read, bytes: u64) {
        let mut line = TcpStream::connect(&self.address).expect("it listens");
        let head = format!(
            "PUT /models/{key} HTTP/1.1\r\nHost: {}\r\nContent-Length: {bytes}\r\nConnection: close\r\n\
             Authorization: AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/20260101/us-east-1/s3/aws4_request, \
             SignedHeaders=host, Signature=0\r\n\r\n",
            self.address
        );
        line.write_all(head.as_bytes()).expect("it takes a request");
        std::io::copy(from, &mut line).expect("it takes a body");
        let mut answer = String::new();
        line.read_to_string(&mut answer).expect("it answers");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    /// A task that takes this prefix as its model.
    pub fn taking(&self, key: &str, mode: &str) -> TaskSpec {
        let mut spec = spec(1, mode);
        let endpoint = Some(format!("http://{}", self.address));
        let source = Location::S3 { bucket: "models".into(), path: key.into(), endpoint, region: None };
        spec.model = Some(Model { source, adapter: None, reference: None, value: None });
        spec
    }
}

/// A node's way to it, with little patience.
pub fn store(cache: &Path) -> Arc<Store> {
    let mut config = StoreConfig {
        cache: CacheConfig { dir: cache.to_owned(), ..CacheConfig::default() },
        patience: Patience { tries: 1, ..Patience::default() },
        ..StoreConfig::default()
    };
    config.s3.access_key_id = Some(Secret::new("AKIAEXAMPLE"));
    config.s3.secret_access_key = Some(Secret::new("hunter2"));
    Arc::new(Store::new(config).expect("a client"))
}

/// A node that pulls through it.
pub async fn node(
    data_dir: &Path,
    program: &Path,
    store: &Arc<Store>,
    change: impl FnOnce(&mut WorkerSettings),
) -> Node {
    Node::start_through(data_dir, program, store.clone(), Arc::new(Folders::default()), change).await
}
