//! One token ends everything.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Why signals cannot be received.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused the handler.
    #[error("failed to listen for signals")]
    Listen(#[source] std::io::Error),
}

/// Returns a token that is cancelled by SIGTERM or SIGINT. Must be called inside a tokio runtime.
///
/// A second signal ends the process at once with code 130: whoever sends it does not want to wait for the drain.
pub fn on_signal() -> Result<CancellationToken, Error> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Listen)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Listen)?;
    let token = CancellationToken::new();
    let cancel = token.clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "draining; a second signal ends at once");
        cancel.cancel();
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::warn!("ended by a second signal before the drain was over");
        std::process::exit(130);
    });
    Ok(token)
}
