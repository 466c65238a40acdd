//! A program that answers requests: where it is to listen, and what its end means.

use std::net::{Ipv4Addr, TcpListener};

use mloc_exec::{ModuleError, ModuleOutput, RunContext};

use super::{Outcome, conclude};

/// A free port of 127.0.0.1 for the program of a service; `None` for a task that is none. It may be taken by another
/// until the program listens: then that ends, and its next attempt has another one.
pub(super) fn port(ctx: &RunContext) -> Result<Option<u16>, ModuleError> {
    if ctx.run().spec.service.is_none() {
        return Ok(None);
    }
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    let port = free.map_err(|e| ModuleError::Retryable(format!("no port of 127.0.0.1 is free: {e}")))?.port();
    Ok(Some(port))
}

/// A service has no end of its own: whatever ends it unasked is a failure, and worth another try.
pub(super) fn conclude_service(ctx: &mut RunContext, outcome: Outcome) -> Result<ModuleOutput, ModuleError> {
    if ctx.stopping() {
        return Err(ModuleError::Cancelled);
    }
    match conclude(ctx, outcome) {
        Ok(_) => Err(ModuleError::Retryable(
            "the program of a service exited with 0, and a service ends only when it is stopped\nhint: keep its process \
             in the foreground"
                .to_owned(),
        )),
        Err(error) => Err(error),
    }
}
