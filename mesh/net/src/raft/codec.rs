//! How values become bytes, on disk and on the wire: one version byte, then CBOR.
//!
//! CBOR and not JSON, because keys of the ledger's maps need not be text. The version byte is what lets a later build
//! read what this one wrote: when a stored type changes shape, [`FORMAT`] rises and [`decode`] gets an arm that reads
//! the older shape and converts it.

use serde::{Serialize, de::DeserializeOwned};

/// The version this build writes.
pub(super) const FORMAT: u8 = 1;

/// A value that could not be written or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Nothing there, not even the version.
    #[error("{what}: no bytes")]
    Empty {
        /// What was being read.
        what: &'static str,
    },
    /// Written by a later build.
    #[error("{what}: written in format {found}, this build reads up to {FORMAT} (hint: start the newer mloc again)")]
    Newer {
        /// What was being read.
        what: &'static str,
        /// The version byte.
        found: u8,
    },
    /// Not the value that was expected.
    #[error("{what}: {detail}")]
    Malformed {
        /// What was being read or written.
        what: &'static str,
        /// What the decoder says.
        detail: String,
    },
}

impl From<CodecError> for std::io::Error {
    fn from(error: CodecError) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, error)
    }
}

pub(super) fn encode<T: Serialize>(what: &'static str, value: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = vec![FORMAT];
    ciborium::into_writer(value, &mut bytes)
        .map_err(|error| CodecError::Malformed { what, detail: error.to_string() })?;
    Ok(bytes)
}

pub(super) fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, CodecError> {
    let (version, body) = bytes.split_first().ok_or(CodecError::Empty { what })?;
    match *version {
        // The seam for migrations: an older format gets an arm here that reads its own types and converts.
        FORMAT => {
            ciborium::from_reader(body).map_err(|error| CodecError::Malformed { what, detail: error.to_string() })
        }
        found => Err(CodecError::Newer { what, found }),
    }
}

/// Bytes that stay bytes: serde would write a `Vec<u8>` as a list of numbers, twice the size.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Blob(pub Vec<u8>);

impl std::fmt::Debug for Blob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for Blob {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for Blob {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl serde::de::Visitor<'_> for Bytes {
            type Value = Blob;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a byte string")
            }
            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Blob, E> {
                Ok(Blob(bytes.to_vec()))
            }
            fn visit_byte_buf<E: serde::de::Error>(self, bytes: Vec<u8>) -> Result<Blob, E> {
                Ok(Blob(bytes))
            }
        }
        d.deserialize_byte_buf(Bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_and_strangers_are_named() {
        let bytes = encode("pair", &(7u64, "x")).unwrap();
        assert_eq!(decode::<(u64, String)>("pair", &bytes).unwrap(), (7, "x".to_owned()));
        assert_eq!(decode::<u64>("pair", &[]), Err(CodecError::Empty { what: "pair" }));
        assert_eq!(decode::<u64>("pair", &[9, 1]), Err(CodecError::Newer { what: "pair", found: 9 }));
        assert!(matches!(decode::<u64>("pair", &bytes), Err(CodecError::Malformed { .. })));
    }

    #[test]
    fn a_blob_costs_its_own_size() {
        let blob = Blob(vec![0xff; 100_000]);
        let bytes = encode("blob", &blob).unwrap();
        assert!(bytes.len() < 100_010, "{} bytes", bytes.len());
        assert_eq!(decode::<Blob>("blob", &bytes).unwrap(), blob);
    }
}
