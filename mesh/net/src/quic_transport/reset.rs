//! Stateless resets that outlive the process.
//!
//! A peer of a killed node goes on sending to it. When the node is back on its port, QUIC lets it answer such packets with a
//! reset, which the peer believes only if it was made with the key of before. So the key follows from the node's own key,
//! and a restarted node is found at once; with quinn's random key its peers would wait for the idle timeout.

use std::{sync::Arc, time::Duration};

use hkdf::Hkdf;
use quinn::{
    ConnectionId, ConnectionIdGenerator, EndpointConfig,
    crypto::{CryptoError, HmacKey},
};
use sha2::Sha256;

const CONNECTION_ID_BYTES: usize = 8;
const SIGNATURE_BYTES: usize = 32;

/// quinn's settings of the endpoint whose resets are made with `key`.
pub(crate) fn endpoint_config(key: [u8; 32]) -> EndpointConfig {
    let mut config = EndpointConfig::new(Arc::new(ResetKey(key)));
    config.cid_generator(|| Box::new(AnyId));
    config
}

struct ResetKey([u8; 32]);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature: &mut [u8]) {
        #[expect(clippy::expect_used, reason = "32 bytes of key and of output are within HKDF's bounds")]
        Hkdf::<Sha256>::from_prk(&self.0)
            .expect("32 bytes are a key for HKDF-SHA256")
            .expand(data, signature)
            .expect("32 bytes are within HKDF's limit");
    }

    fn signature_len(&self) -> usize {
        SIGNATURE_BYTES
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let mut expected = [0; SIGNATURE_BYTES];
        self.sign(data, &mut expected);
        let differing = expected.iter().zip(signature).fold(0, |bits, (a, b)| bits | (a ^ b));
        match signature.len() == SIGNATURE_BYTES && std::hint::black_box(differing) == 0 {
            true => Ok(()),
            false => Err(CryptoError),
        }
    }
}

/// Random ids. quinn's own carry a checksum under a key of the process, and packets with ids of another are not answered.
struct AnyId;

impl ConnectionIdGenerator for AnyId {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&rand::random::<[u8; CONNECTION_ID_BYTES]>())
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
