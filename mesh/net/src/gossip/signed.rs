//! Gossip values with their author's signature.
//!
//! chitchat lets any member write any member's keys, so a value counts only with a signature over node, key, generation
//! and a counter: it cannot be moved to another node, key or start, and an older one cannot be passed for the newest.

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD as BASE64};
use thiserror::Error;

use crate::{
    identity::{NodeIdentity, signed_by},
    names::NodeId,
};

/// The largest value with its signature, bytes: all keys of a node must fit a few gossip messages of 64 KiB.
pub const VALUE_BYTES_MAX: usize = 4096;
/// Prefix of what is signed: a signature for gossip is good for nothing else.
const PURPOSE: &str = "mloc-gossip-value/1";
/// First field of the text form.
const FORMAT: &str = "1";

/// What a signature is about, besides the value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    pub node: &'a NodeId,
    pub generation: u64,
    pub key: &'a str,
}

/// Why a gossip value is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum Unbelieved {
    #[error("it is larger than {VALUE_BYTES_MAX} bytes")]
    TooLarge,
    #[error("it is not of the form counter.signature.value")]
    Malformed,
    #[error("its signature is not that of the node it speaks for")]
    Forged,
}

/// The text form: `1.<counter>.<signature>.<value>`.
pub(crate) fn sign(identity: &NodeIdentity, generation: u64, key: &str, counter: u64, value: &str) -> String {
    let subject = Subject { node: identity.node(), generation, key };
    let signature = BASE64.encode(identity.sign(&message(subject, counter, value)));
    format!("{FORMAT}.{counter}.{signature}.{value}")
}

/// Counter and value of a text that the subject's node signed.
pub(crate) fn open<'t>(subject: Subject<'_>, text: &'t str) -> Result<(u64, &'t str), Unbelieved> {
    if text.len() > VALUE_BYTES_MAX {
        return Err(Unbelieved::TooLarge);
    }
    let mut fields = text.splitn(4, '.');
    let mut field = || fields.next().ok_or(Unbelieved::Malformed);
    if field()? != FORMAT {
        return Err(Unbelieved::Malformed);
    }
    let counter = field()?.parse().map_err(|_| Unbelieved::Malformed)?;
    let signature = BASE64.decode(field()?).map_err(|_| Unbelieved::Malformed)?;
    let signature: [u8; 64] = signature.try_into().map_err(|_| Unbelieved::Malformed)?;
    let value = field()?;
    match signed_by(subject.node, &message(subject, counter, value), &signature) {
        true => Ok((counter, value)),
        false => Err(Unbelieved::Forged),
    }
}

/// Every field with its length before it, so that no two subjects give the same bytes.
fn message(subject: Subject<'_>, counter: u64, value: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(value.len() + 160);
    for text in [PURPOSE, subject.node.as_str(), subject.key, value] {
        bytes.extend((text.len() as u64).to_be_bytes());
        bytes.extend(text.as_bytes());
    }
    bytes.extend(subject.generation.to_be_bytes());
    bytes.extend(counter.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_signed_is_believed() {
        let (a, b) = (NodeIdentity::from_seed([1; 32]), NodeIdentity::from_seed([2; 32]));
        let text = sign(&a, 7, "cap", 3, "x.y.z");
        let open = |node: &NodeId, generation, key, text: &str| {
            super::open(Subject { node, generation, key }, text).map(|(counter, value)| (counter, value.to_owned()))
        };
        assert_eq!(open(a.node(), 7, "cap", &text), Ok((3, "x.y.z".into())));
        assert_eq!(open(b.node(), 7, "cap", &text), Err(Unbelieved::Forged));
        assert_eq!(open(a.node(), 8, "cap", &text), Err(Unbelieved::Forged));
        assert_eq!(open(a.node(), 7, "load", &text), Err(Unbelieved::Forged));
        assert_eq!(open(a.node(), 7, "cap", &text.replace("x.y", "x.Y")), Err(Unbelieved::Forged));
        assert_eq!(open(a.node(), 7, "cap", &text.replacen("1.3.", "1.4.", 1)), Err(Unbelieved::Forged));
        assert_eq!(open(a.node(), 7, "cap", "1.3.zz"), Err(Unbelieved::Malformed));
        assert_eq!(open(a.node(), 7, "cap", ""), Err(Unbelieved::Malformed));
        assert_eq!(open(a.node(), 7, "cap", &"1".repeat(5000)), Err(Unbelieved::TooLarge));
    }
}
