//! Who this node is: one ed25519 seed per data directory.
//!
//! The seed is the TLS leaf's key, the libp2p key and the key that signs gossip values, so a node has one name
//! everywhere: the text form of its PeerId. Certificates and what they prove are in `tls`; membership is not decided here.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use ed25519_dalek::{Signature, Signer, SigningKey, Verifier, VerifyingKey, pkcs8::EncodePrivateKey};
use libp2p::{PeerId, identity};
use rand::RngCore;
use thiserror::Error;

use crate::{durable_file, names::NodeId};

/// File in the data directory that holds the seed.
pub const KEY_FILE: &str = "node.key";
/// Marks the file's format, so that a later one can be told apart.
const KEY_FILE_MARK: &str = "mloc-node-key-1:";

/// Why a node's key could not be had.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// The file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The key file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is there but is no key of ours.
    #[error(
        "{0}: not a node key (expected `{KEY_FILE_MARK}` and 64 hex digits); restore it from a copy, or use an empty data directory to become a new node"
    )]
    NotAKey(PathBuf),
}

/// This node's key and the name that follows from it.
pub struct NodeIdentity {
    signing: SigningKey,
    node: NodeId,
    peer: PeerId,
}

impl NodeIdentity {
    /// Reads the key of `data_dir`, minting it (mode 0600) when there is none.
    pub fn load_or_create(data_dir: &Path) -> Result<Self, IdentityError> {
        let path = data_dir.join(KEY_FILE);
        let at = |source| IdentityError::File { path: path.clone(), source };
        fs::create_dir_all(data_dir).map_err(at)?;
        if !path.exists() {
            let mut seed = [0; 32];
            rand::rng().fill_bytes(&mut seed);
            Self::from_seed(seed).keep(data_dir).map_err(at)?;
        }
        // Read back in every case: if another process was faster, its key is the node's key.
        let text = fs::read_to_string(&path).map_err(at)?;
        let seed = text.trim_end().strip_prefix(KEY_FILE_MARK).and_then(|digits| {
            let mut seed = [0; 32];
            hex::decode_to_slice(digits, &mut seed).ok().map(|()| seed)
        });
        seed.map(Self::from_seed).ok_or(IdentityError::NotAKey(path))
    }

    /// The node whose seed this is.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        let signing = SigningKey::from_bytes(&seed);
        let peer = peer_of_key(&signing.verifying_key());
        Self { node: NodeId::new(peer.to_base58()), peer, signing }
    }

    /// Writes the key's file unless there is one (mode 0600). Says whether it did.
    pub(crate) fn keep(&self, data_dir: &Path) -> io::Result<bool> {
        let text = format!("{KEY_FILE_MARK}{}\n", hex::encode(self.signing.to_bytes()));
        durable_file::create(&data_dir.join(KEY_FILE), text.as_bytes(), 0o600)
    }

    /// The node's name.
    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// The node's name as libp2p writes it.
    pub fn peer_id(&self) -> PeerId {
        self.peer
    }

    /// Signs `message` (ed25519, 64 bytes).
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.signing.sign(message).to_bytes()
    }

    /// A secret of this node for one purpose.
    pub(crate) fn derive(&self, purpose: &[u8]) -> [u8; 32] {
        let mut key = [0; 32];
        #[expect(clippy::expect_used, reason = "32 bytes are far below HKDF's limit of 255 blocks")]
        hkdf::Hkdf::<sha2::Sha256>::new(Some(b"mloc/v1"), self.signing.as_bytes())
            .expand(purpose, &mut key)
            .expect("32 bytes are within HKDF's limit");
        key
    }

    /// The key for the libp2p swarm.
    pub(crate) fn libp2p_keypair(&self) -> identity::Keypair {
        #[expect(clippy::expect_used, reason = "32 bytes are a valid ed25519 secret by definition")]
        identity::Keypair::ed25519_from_bytes(self.signing.to_bytes()).expect("32 bytes are an ed25519 key")
    }

    /// The key in PKCS#8 for the TLS leaf.
    pub(crate) fn pkcs8(&self) -> Vec<u8> {
        pkcs8_of_seed(&self.signing.to_bytes())
    }
}

impl std::fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NodeIdentity({})", self.node)
    }
}

/// An ed25519 seed in PKCS#8.
pub(crate) fn pkcs8_of_seed(seed: &[u8; 32]) -> Vec<u8> {
    #[expect(clippy::expect_used, reason = "encoding 32 bytes into a fixed structure has no failing input")]
    let der = SigningKey::from_bytes(seed).to_pkcs8_der().expect("an ed25519 key encodes");
    der.as_bytes().to_vec()
}

/// The name of the node that holds this ed25519 public key (32 bytes), if they are one.
pub(crate) fn node_of_public_key(bytes: &[u8]) -> Option<NodeId> {
    let key = VerifyingKey::from_bytes(bytes.try_into().ok()?).ok()?;
    Some(NodeId::new(peer_of_key(&key).to_base58()))
}

/// Whether `signature` over `message` was made by the node of that name. The name itself carries the public key.
pub fn signed_by(node: &NodeId, message: &[u8], signature: &[u8; 64]) -> bool {
    let Some(key) = public_key_of(node) else { return false };
    key.verify(message, &Signature::from_bytes(signature)).is_ok()
}

/// The PeerId a node's name stands for; `None` when it is no PeerId of an ed25519 key.
pub fn peer_id_of(node: &NodeId) -> Option<PeerId> {
    let peer: PeerId = node.as_str().parse().ok()?;
    public_key_of(node).map(|_| peer)
}

fn public_key_of(node: &NodeId) -> Option<VerifyingKey> {
    let peer: PeerId = node.as_str().parse().ok()?;
    // An ed25519 PeerId is the key itself under the identity hash (code 0).
    let hash: &libp2p::multihash::Multihash<64> = peer.as_ref();
    if hash.code() != 0 {
        return None;
    }
    let key = identity::PublicKey::try_decode_protobuf(hash.digest()).ok()?.try_into_ed25519().ok()?;
    VerifyingKey::from_bytes(&key.to_bytes()).ok()
}

fn peer_of_key(key: &VerifyingKey) -> PeerId {
    #[expect(clippy::expect_used, reason = "both crates accept the same 32 bytes")]
    let key = identity::ed25519::PublicKey::try_from_bytes(key.as_bytes()).expect("an ed25519 public key");
    identity::PublicKey::from(key).to_peer_id()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_data_directory_keeps_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let first = NodeIdentity::load_or_create(dir.path()).unwrap();
        let again = NodeIdentity::load_or_create(dir.path()).unwrap();
        assert_eq!(first.node(), again.node());
        let mode = fs::metadata(dir.path().join(KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside the key");
    }

    #[test]
    fn a_damaged_key_is_said_and_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(KEY_FILE), "mloc-node-key-1:abcd\n").unwrap();
        let error = NodeIdentity::load_or_create(dir.path()).unwrap_err();
        assert!(error.to_string().contains("not a node key"), "{error}");
        assert_eq!(fs::read_to_string(dir.path().join(KEY_FILE)).unwrap(), "mloc-node-key-1:abcd\n");
    }

    #[test]
    fn a_signature_is_checked_against_the_name_alone() {
        let (a, b) = (NodeIdentity::from_seed([1; 32]), NodeIdentity::from_seed([2; 32]));
        let signature = a.sign(b"x");
        assert!(signed_by(a.node(), b"x", &signature));
        assert!(!signed_by(a.node(), b"y", &signature));
        assert!(!signed_by(b.node(), b"x", &signature));
        assert!(!signed_by(&NodeId::new("nobody"), b"x", &signature));
    }

    #[test]
    fn libp2p_and_tls_give_the_same_name() {
        let a = NodeIdentity::from_seed([7; 32]);
        assert_eq!(a.libp2p_keypair().public().to_peer_id(), a.peer_id());
        assert_eq!(peer_id_of(a.node()), Some(a.peer_id()));
        let public = a.signing.verifying_key();
        assert_eq!(node_of_public_key(public.as_bytes()).as_ref(), Some(a.node()));
    }
}
