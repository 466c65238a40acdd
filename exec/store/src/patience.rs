//! How long a transfer goes on without progress, and the loop that goes on so long.

use std::time::Duration;

use crate::error::StoreError;

/// Longest wait that a server may ask for: the Hub counts in windows of five minutes. Past that the scheduler waits.
const ASKED_WAIT_MAX: Duration = Duration::from_secs(300);

/// How long a transfer bears with a bad line before it gives the attempt back to the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Tries in a row that brought nothing; any progress starts the count again.
    pub tries: u32,
    /// Wait before the second try; doubles each time.
    pub first_wait: Duration,
    /// Longest wait.
    pub longest_wait: Duration,
    /// Time to open a connection.
    pub connect: Duration,
    /// Silence on an open connection. Covers the sending of one part (8 MiB) too: 70 kB/s and less is given up.
    pub silence: Duration,
}

impl Default for Patience {
    /// Six tries over some six seconds: a blip is borne here, an outage is the scheduler's to wait out.
    fn default() -> Self {
        Self {
            tries: 6,
            first_wait: Duration::from_millis(200),
            longest_wait: Duration::from_secs(10),
            connect: Duration::from_secs(10),
            silence: Duration::from_secs(120),
        }
    }
}

impl Patience {
    /// The wait after so many failures in a row; `None` when it is enough.
    pub fn wait_after(&self, failures: u32) -> Option<Duration> {
        let doublings = failures.saturating_sub(1).min(16);
        (failures < self.tries).then(|| (self.first_wait * 2u32.pow(doublings)).min(self.longest_wait))
    }

    /// The same after this failure; `None` too where another try here would change nothing. A server's own wait is kept,
    /// when it is not too long.
    pub(crate) fn wait_for(&self, error: &StoreError, failures: u32) -> Option<Duration> {
        let ours = self.wait_after(failures)?;
        match error {
            StoreError::Unreachable { .. } => Some(ours),
            StoreError::Busy { wait, .. } => Some(wait.unwrap_or(ours)).filter(|wait| *wait <= ASKED_WAIT_MAX),
            _ => None,
        }
    }
}

/// Does something again while the line is what fails, or a server has had enough for now, and patience lasts.
pub(crate) async fn patiently<T, W: Future<Output = Result<T, StoreError>>>(
    patience: Patience,
    work: impl Fn() -> W,
) -> Result<T, StoreError> {
    let mut failures = 0;
    loop {
        let error = match work().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        failures += 1;
        let Some(wait) = patience.wait_for(&error, failures) else { return Err(error.after(failures)) };
        tracing::debug!(%error, ?wait, "again");
        tokio::time::sleep(wait).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_doubles_and_ends() {
        let patience = Patience { tries: 4, longest_wait: Duration::from_millis(500), ..Patience::default() };
        let waits: Vec<_> = (1..=4).map(|n| patience.wait_after(n).map(|w| w.as_millis())).collect();
        assert_eq!(waits, [Some(200), Some(400), Some(500), None]);
    }

    #[test]
    fn only_the_line_and_a_servers_own_wait_are_borne() {
        let patience = Patience::default();
        let place = || "p".to_owned();
        let lost = StoreError::Unreachable { place: place(), endpoint: place(), tries: 1, found: place() };
        let busy = |seconds| StoreError::Busy {
            place: place(),
            found: place(),
            hint: "",
            wait: Some(Duration::from_secs(seconds)),
        };
        assert_eq!(patience.wait_for(&lost, 1), Some(patience.first_wait));
        assert_eq!(patience.wait_for(&busy(299), 1), Some(Duration::from_secs(299)));
        assert_eq!(patience.wait_for(&busy(301), 1), None);
        assert_eq!(patience.wait_for(&StoreError::Empty { place: place() }, 1), None);
        assert_eq!(patience.wait_for(&lost, patience.tries), None);
    }
}
