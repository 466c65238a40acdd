//! Mutual TLS inside a mesh: the authority derived from the join token, this node's leaf, and what a peer's leaf proves.
//!
//! A good certificate proves that its holder has the token, and which key it holds. It proves no name in the SAN: any
//! token holder can mint any certificate, so a peer's name is its leaf's public key and nothing else.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, date_time_ymd,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error as TlsError, RootCertStore, ServerConfig,
    SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    version::TLS13,
};
use thiserror::Error;
use x509_parser::{oid_registry::OID_SIG_ED25519, prelude::FromDer};

use crate::{
    identity::{NodeIdentity, node_of_public_key, pkcs8_of_seed},
    names::{MeshId, NodeId},
    token::JoinToken,
};

/// One SAN shared by all members: whoever dials a seed knows only an address.
pub(crate) const SERVER_NAME: &str = "mesh.mloc.internal";
const AUTHORITY_NAME: &str = "mloc mesh ";

/// Makes ring the process's TLS provider. Call first in `main`, in the child process and in tests: libp2p links aws-lc-rs
/// beside it, and with two linked and none chosen, a library that asks for "the default" panics.
pub fn install_crypto_provider() {
    // Fails only when one is installed already, which is what we want.
    let _installed_before = provider_value().install_default();
}

fn provider_value() -> CryptoProvider {
    rustls::crypto::ring::default_provider()
}

/// Why the mesh's certificates could not be made.
#[derive(Debug, Error)]
pub enum MeshTlsError {
    /// The certificate could not be built.
    #[error("cannot make the mesh certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// rustls does not like what we built.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] TlsError),
    /// The verifier cannot be built.
    #[error("cannot set up certificate checks: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// No token was given.
    #[error("no join token: a node without one can neither be a member nor ask to become one")]
    NoToken,
}

/// What a node needs to open and to accept mesh connections.
#[derive(Clone)]
pub struct MeshTls {
    mesh: MeshId,
    roots: Arc<RootCertStore>,
    leaf: CertificateDer<'static>,
    key: Vec<u8>,
    reset_key: [u8; 32],
}

impl MeshTls {
    /// `tokens`: the current one first, it signs our leaf; others are still believed (after a rotation).
    pub fn new(identity: &NodeIdentity, tokens: &[JoinToken]) -> Result<Self, MeshTlsError> {
        let current = tokens.first().ok_or(MeshTlsError::NoToken)?;
        let mut roots = RootCertStore::empty();
        for token in tokens {
            roots.add(authority(token)?.der().clone())?;
        }
        let mut params = CertificateParams::new(vec![SERVER_NAME.to_owned()])?;
        valid_always(&mut params);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let key = identity.pkcs8();
        let authority = authority(current)?;
        let leaf = params.signed_by(&key_pair(&key)?, &authority)?;
        let reset_key = identity.derive(b"quic-stateless-reset");
        Ok(Self { mesh: current.mesh().clone(), roots: Arc::new(roots), leaf: leaf.der().clone(), key, reset_key })
    }

    /// The mesh these certificates are for.
    pub fn mesh(&self) -> &MeshId {
        &self.mesh
    }

    /// Key of the endpoint's stateless resets: the same in all processes of a node.
    pub(crate) fn reset_key(&self) -> [u8; 32] {
        self.reset_key
    }

    /// For accepting: the peer must show a leaf of this mesh.
    pub(crate) fn server(&self, protocols: &[&[u8]]) -> Result<ServerConfig, MeshTlsError> {
        let provider = Arc::new(provider_value());
        let inner = WebPkiClientVerifier::builder_with_provider(self.roots.clone(), provider.clone()).build()?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::new(ClientOfMesh { inner, mesh: self.mesh.clone() }))
            .with_single_cert(vec![self.leaf.clone()], self.private_key())?;
        config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
        Ok(config)
    }

    /// For dialling: the peer must show a leaf of this mesh.
    pub(crate) fn client(&self, protocol: &[u8]) -> Result<ClientConfig, MeshTlsError> {
        let provider = Arc::new(provider_value());
        let inner = WebPkiServerVerifier::builder_with_provider(self.roots.clone(), provider.clone()).build()?;
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .dangerous() // in name only: our verifier asks the standard one and adds the reason to its refusal
            .with_custom_certificate_verifier(Arc::new(ServerOfMesh { inner, mesh: self.mesh.clone() }))
            .with_client_auth_cert(vec![self.leaf.clone()], self.private_key())?;
        config.alpn_protocols = vec![protocol.to_vec()];
        Ok(config)
    }

    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.clone().into())
    }
}

/// The name of the node that holds this leaf's key; `None` when the key is not ed25519.
pub(crate) fn node_of_leaf(leaf: &CertificateDer<'_>) -> Option<NodeId> {
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(leaf).ok()?;
    let key = certificate.public_key();
    (key.algorithm.algorithm == OID_SIG_ED25519).then(|| node_of_public_key(&key.subject_public_key.data)).flatten()
}

fn authority(token: &JoinToken) -> Result<CertifiedIssuer<'static, KeyPair>, MeshTlsError> {
    let mut params = CertificateParams::default();
    valid_always(&mut params);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.serial_number = Some(1u64.into());
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("{AUTHORITY_NAME}{}", token.mesh()));
    Ok(CertifiedIssuer::self_signed(params, key_pair(&pkcs8_of_seed(&token.authority_seed()))?)?)
}

/// An edge box may start in 1970 and stay there until it finds a time server.
fn valid_always(params: &mut CertificateParams) {
    params.not_before = date_time_ymd(1970, 1, 1);
    params.not_after = date_time_ymd(4096, 1, 1);
}

fn key_pair(pkcs8: &[u8]) -> Result<KeyPair, MeshTlsError> {
    Ok(KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8.into(), &PKCS_ED25519)?)
}

/// Why a leaf was refused, in words both sides' logs can use.
#[derive(Debug, Error)]
enum LeafRefused {
    #[error("the peer's certificate is of mesh {theirs}, this node is in mesh {ours}")]
    OtherMesh { theirs: String, ours: MeshId },
    #[error("the peer names mesh {ours}, but with another join token (wrong, or rotated since): {cause}")]
    OtherToken { ours: MeshId, cause: TlsError },
    #[error("the peer's certificate is of no mesh: {0}")]
    NoMesh(TlsError),
}

fn refusal(leaf: &CertificateDer<'_>, ours: &MeshId, cause: TlsError) -> TlsError {
    let issuer = x509_parser::certificate::X509Certificate::from_der(leaf).ok().and_then(|(_, certificate)| {
        let name = certificate.issuer().iter_common_name().next()?.as_str().ok()?;
        Some(name.strip_prefix(AUTHORITY_NAME)?.chars().take(64).collect::<String>())
    });
    let reason = match issuer {
        Some(theirs) if theirs == ours.as_str() => LeafRefused::OtherToken { ours: ours.clone(), cause },
        Some(theirs) => LeafRefused::OtherMesh { theirs, ours: ours.clone() },
        None => LeafRefused::NoMesh(cause),
    };
    // `General` because rustls shows any other wrapped error in its debug form.
    TlsError::General(reason.to_string())
}

#[derive(Debug)]
struct ServerOfMesh {
    inner: Arc<WebPkiServerVerifier>,
    mesh: MeshId,
}

impl ServerCertVerifier for ServerOfMesh {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        self.inner
            .verify_server_cert(leaf, intermediates, name, ocsp, now)
            .map_err(|cause| refusal(leaf, &self.mesh, cause))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[derive(Debug)]
struct ClientOfMesh {
    inner: Arc<dyn ClientCertVerifier>,
    mesh: MeshId,
}

impl ClientCertVerifier for ClientOfMesh {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        self.inner.verify_client_cert(leaf, intermediates, now).map_err(|cause| refusal(leaf, &self.mesh, cause))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
