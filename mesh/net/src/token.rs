//! The join token: what one needs to ask a mesh to be let in.
//!
//! `mloc1-<mesh id>-<64 hex digits>`. Whoever holds it can derive the mesh's certificate authority, so it is kept out of
//! arguments (other users see them), logs and errors. Holding it lets a node ask; the member table decides.

use std::{fmt, fs, io, path::Path, str::FromStr};

use rand::RngCore;
use thiserror::Error;

use crate::names::MeshId;

/// Environment variable a token may come by.
pub const TOKEN_VARIABLE: &str = "MLOC_JOIN_TOKEN";
const PREFIX: &str = "mloc1";
/// Hex digits of a mesh id: 64 random bits, enough that two meshes never meet under one id.
const MESH_ID_DIGITS: usize = 16;
const SECRET_BYTES: usize = 32;
/// A token file is one line; anything larger is some other file.
const FILE_BYTES_MAX: u64 = 4096;

/// Why a text is no join token. Never shows the text: most of it may be a good secret.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TokenError {
    /// Nothing there.
    #[error("the join token is empty (hint: every member has it in its data directory as join.token)")]
    Empty,
    /// Does not start as tokens do.
    #[error("not a join token: it must start with `{PREFIX}-` and look like `{PREFIX}-<mesh id>-<secret>`")]
    Prefix,
    /// Not three parts.
    #[error(
        "the join token has {found} parts between dashes, expected 3 (`{PREFIX}-<mesh id>-<secret>`); was it cut when copied?"
    )]
    Parts {
        /// How many were found.
        found: usize,
    },
    /// A part has the wrong length.
    #[error("the join token's {part} has {found} characters, expected {expected}; was it cut when copied?")]
    Length {
        /// Which part.
        part: &'static str,
        /// Characters found.
        found: usize,
        /// Characters expected.
        expected: usize,
    },
    /// A character no token contains.
    #[error("the join token's {part} has a character at position {position} that is not one of 0-9 a-f")]
    Character {
        /// Which part.
        part: &'static str,
        /// Position in that part, from 1.
        position: usize,
    },
    /// Asked for by environment, but not set there.
    #[error("the environment variable {0} is not set")]
    NotSet(String),
    /// The file could not be read.
    #[error("{path}: {reason}")]
    File {
        /// Which file.
        path: String,
        /// Why not.
        reason: String,
    },
}

/// A mesh's id and its secret.
#[derive(Clone)]
pub struct JoinToken {
    mesh: MeshId,
    secret: [u8; SECRET_BYTES],
}

impl JoinToken {
    /// A token for a mesh that is to be founded: a fresh id and a fresh secret. Minted by whoever founds alone, or beforehand
    /// for nodes that found together (`bootstrapExpect`).
    pub fn found(chance: &mut impl RngCore) -> Self {
        let mut mesh = [0; MESH_ID_DIGITS / 2];
        chance.fill_bytes(&mut mesh);
        Self::rotate(MeshId::new(hex::encode(mesh)), chance)
    }

    /// A fresh secret for a mesh that exists. What uses it ([`crate::tls`], the gossip endpoint) takes several tokens at
    /// once, so that old and new overlap; handing a new one to all members is not done by any command yet.
    pub fn rotate(mesh: MeshId, chance: &mut impl RngCore) -> Self {
        let mut secret = [0; SECRET_BYTES];
        chance.fill_bytes(&mut secret);
        Self { mesh, secret }
    }

    /// Reads the token from a file that holds nothing else.
    pub fn from_file(path: &Path) -> Result<Self, TokenError> {
        let failed = |reason: String| TokenError::File { path: path.display().to_string(), reason };
        let size = fs::metadata(path).map_err(|e: io::Error| failed(e.to_string()))?.len();
        if size > FILE_BYTES_MAX {
            return Err(failed(format!("{size} bytes are too many for a join token")));
        }
        let text = fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
        text.trim().parse().map_err(|e: TokenError| failed(e.to_string()))
    }

    /// Reads the token from an environment variable (usually [`TOKEN_VARIABLE`]).
    pub fn from_env(variable: &str) -> Result<Self, TokenError> {
        let text = std::env::var(variable).map_err(|_| TokenError::NotSet(variable.to_owned()))?;
        text.trim().parse()
    }

    /// The mesh this token is for.
    pub fn mesh(&self) -> &MeshId {
        &self.mesh
    }

    /// The whole token as text. Only for its file, and for a person at a terminal.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}-{}-{}", self.mesh, hex::encode(self.secret))
    }

    /// A key for one purpose, the same on every member and useless for any other purpose.
    pub fn derive(&self, purpose: &[u8]) -> [u8; 32] {
        let info = [purpose, b"/", self.mesh.as_str().as_bytes()].concat();
        self.expand(&info)
    }

    /// Seed of the mesh's certificate authority: HKDF over the secret, bound to the mesh id.
    pub(crate) fn authority_seed(&self) -> [u8; 32] {
        self.expand(&[b"mesh-ca-ed25519/", self.mesh.as_str().as_bytes()].concat())
    }

    fn expand(&self, info: &[u8]) -> [u8; 32] {
        let mut key = [0; 32];
        #[expect(clippy::expect_used, reason = "32 bytes are far below HKDF's limit of 255 blocks")]
        hkdf::Hkdf::<sha2::Sha256>::new(Some(b"mloc/v1"), &self.secret)
            .expand(info, &mut key)
            .expect("32 bytes are within HKDF's limit");
        key
    }
}

/// In constant time: how long it takes says nothing about where two secrets differ.
impl PartialEq for JoinToken {
    fn eq(&self, other: &Self) -> bool {
        let differing = self.secret.iter().zip(&other.secret).fold(0, |bits, (a, b)| bits | (a ^ b));
        (self.mesh == other.mesh) & (std::hint::black_box(differing) == 0)
    }
}
impl Eq for JoinToken {}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        if text.is_empty() {
            return Err(TokenError::Empty);
        }
        let parts: Vec<&str> = text.split('-').collect();
        if parts[0] != PREFIX {
            return Err(TokenError::Prefix);
        }
        let [_, mesh, secret] = parts[..] else { return Err(TokenError::Parts { found: parts.len() }) };
        check_hex("mesh id", mesh, MESH_ID_DIGITS)?;
        check_hex("secret", secret, SECRET_BYTES * 2)?;
        let mut bytes = [0; SECRET_BYTES];
        hex::decode_to_slice(secret, &mut bytes).map_err(|_| TokenError::Length {
            part: "secret",
            found: secret.len(),
            expected: SECRET_BYTES * 2,
        })?;
        Ok(Self { mesh: MeshId::new(mesh), secret: bytes })
    }
}

fn check_hex(part: &'static str, text: &str, expected: usize) -> Result<(), TokenError> {
    if let Some(position) = text.chars().position(|c| !matches!(c, '0'..='9' | 'a'..='f')) {
        return Err(TokenError::Character { part, position: position + 1 });
    }
    if text.len() != expected {
        return Err(TokenError::Length { part, found: text.len(), expected });
    }
    Ok(())
}

/// Without the secret.
impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}-{}-<secret>", self.mesh)
    }
}

/// Without the secret.
impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let token = JoinToken::found(&mut rand::rng());
        let again: JoinToken = token.reveal().parse().unwrap();
        assert_eq!(token, again);
        assert_eq!(token.authority_seed(), again.authority_seed());
        let rotated = JoinToken::rotate(token.mesh().clone(), &mut rand::rng());
        assert_ne!(token, rotated);
        assert_ne!(token.authority_seed(), rotated.authority_seed());
    }

    #[test]
    fn no_output_shows_the_secret() {
        let token = JoinToken::found(&mut rand::rng());
        let text = token.reveal();
        let secret = text.rsplit('-').next().unwrap();
        assert!(!format!("{token} {token:?}").contains(secret));
        let cut = &text[..text.len() - 1];
        let error = cut.parse::<JoinToken>().unwrap_err();
        assert!(!format!("{error} {error:?}").contains(&secret[..8]), "{error}");
    }

    #[test]
    fn each_fault_is_said() {
        let mesh = "0123456789abcdef";
        let secret = "ab".repeat(32);
        let said = |text: &str| text.parse::<JoinToken>().unwrap_err().to_string();
        assert!(said("").contains("empty"));
        assert!(said("hunter2").contains("must start with `mloc1-`"));
        assert!(said(&format!("mloc1-{mesh}")).contains("2 parts"));
        assert!(said(&format!("mloc1-{mesh}-{secret}-")).contains("4 parts"));
        assert!(said(&format!("mloc1-{mesh}-{}", &secret[1..])).contains("63 characters, expected 64"));
        assert!(said(&format!("mloc1-{mesh}-{}", secret.to_uppercase())).contains("position 1"));
        assert!(said(&format!("mloc1-{}-{secret}", &mesh[2..])).contains("mesh id has 14"));
        assert!(said(&format!(" mloc1-{mesh}-{secret}")).contains("must start"));
    }

    #[test]
    fn from_a_file_with_a_trailing_newline() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let token = JoinToken::found(&mut rand::rng());
        fs::write(&path, format!("{}\n", token.reveal())).unwrap();
        assert_eq!(JoinToken::from_file(&path).unwrap(), token);
        let missing = JoinToken::from_file(&dir.path().join("none")).unwrap_err();
        assert!(missing.to_string().contains("none: "), "{missing}");
    }
}
