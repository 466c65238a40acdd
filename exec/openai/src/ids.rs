//! Names of answers, calls and items: unique over all servers, since each begins with a random number of its own.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::calls::Format;

/// Makes names.
#[derive(Debug)]
pub struct Ids {
    /// Random.
    server: u64,
    next: AtomicU64,
}

impl Ids {
    /// With a random number.
    pub fn new(server: u64) -> Self {
        Self { server, next: AtomicU64::new(0) }
    }

    /// `prefix` and 24 hexadecimal digits.
    pub fn with(&self, prefix: &str) -> String {
        format!("{prefix}{:016x}{:08x}", self.server, self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// A call's. Mistral's templates take nine letters or digits and nothing else.
    pub fn call(&self, format: Option<Format>) -> String {
        if format != Some(Format::Mistral) {
            return self.with("call_");
        }
        const DIGITS: &[u8; 62] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
        const SPREAD: u64 = 62u64.pow(9);
        let mut number = (self.server.wrapping_add(self.next.fetch_add(1, Ordering::Relaxed))) % SPREAD;
        let mut digit = || {
            let digit = DIGITS[(number % 62) as usize];
            number /= 62;
            char::from(digit)
        };
        (0..9).map(|_| digit()).collect()
    }
}
