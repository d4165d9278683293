//! The admin server: probes, metrics and the log level.
//!
//! | path | answer |
//! |---|---|
//! | `GET /livez` | 200, or 503 with the names of the tasks that stand still |
//! | `GET /readyz` | 200 once the configuration was read, also while standing by (the text says so), else 503 |
//! | `GET /metrics` | OpenMetrics text |
//! | `GET /log-level`, `PUT /log-level` | the log filter, and its change; from loopback only |

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{Health, LogControl};

/// A filter is a line of text; nothing larger is read.
const MAX_BODY_BYTES: usize = 4096;

/// How long open connections may take to finish once the token is cancelled.
const GRACE: Duration = Duration::from_secs(2);

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Why the admin server is not there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be listened on.
    #[error("failed to listen on {address}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The listener failed.
    #[error("failed to serve the admin port")]
    Serve(#[source] std::io::Error),
}

/// A bound, not yet running admin server.
#[derive(Debug)]
pub struct AdminServer {
    listener: TcpListener,
    address: SocketAddr,
    context: Arc<Context>,
}

#[derive(Debug)]
struct Context {
    registry: Arc<Registry>,
    health: Health,
    log: LogControl,
}

impl AdminServer {
    /// Binds the address; port 0 takes a free one.
    pub async fn bind(
        address: SocketAddr,
        registry: Arc<Registry>,
        health: Health,
        log: LogControl,
    ) -> Result<Self, Error> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| Error::Bind { address, source })?;
        let address = listener
            .local_addr()
            .map_err(|source| Error::Bind { address, source })?;
        Ok(Self {
            listener,
            address,
            context: Arc::new(Context { registry, health, log }),
        })
    }

    /// Returns the bound address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the token is cancelled.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let router = router(self.context).into_make_service_with_connect_info::<SocketAddr>();
        tracing::info!(admin.address = %self.address, "serving probes and metrics");
        let ended = shutdown.clone();
        let server = axum::serve(self.listener, router)
            .with_graceful_shutdown(async move { ended.cancelled().await })
            .into_future();
        // A scraper that keeps its connection open must not hold up the end of the process.
        let overdue = async {
            shutdown.cancelled().await;
            tokio::time::sleep(GRACE).await;
        };
        tokio::select! {
            result = server => result.map_err(Error::Serve),
            () = overdue => Ok(()),
        }
    }
}

fn router(context: Arc<Context>) -> Router {
    Router::new()
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/log-level", get(log_level).put(set_log_level))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(context)
}

async fn live(State(context): State<Arc<Context>>) -> Response {
    let stuck = context.health.stuck();
    if stuck.is_empty() {
        return (StatusCode::OK, "ok\n").into_response();
    }
    (
        StatusCode::SERVICE_UNAVAILABLE,
        format!("standing still: {}\n", stuck.join(", ")),
    )
        .into_response()
}

async fn ready(State(context): State<Arc<Context>>) -> Response {
    if context.health.is_ready() && context.health.is_standing_by() {
        return (StatusCode::OK, "ok, standing by\n").into_response();
    }
    if context.health.is_ready() {
        return (StatusCode::OK, "ok\n").into_response();
    }
    (
        StatusCode::SERVICE_UNAVAILABLE,
        "configuration not read yet, or draining\n",
    )
        .into_response()
}

async fn metrics(State(context): State<Arc<Context>>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &context.registry) {
        Ok(()) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "failed to encode metrics");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn log_level(State(context): State<Arc<Context>>, ConnectInfo(peer): ConnectInfo<SocketAddr>) -> Response {
    if !is_loopback(peer) {
        return from_loopback_only();
    }
    format!("{}\n", context.log.filter()).into_response()
}

async fn set_log_level(
    State(context): State<Arc<Context>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    filter: String,
) -> Response {
    if !is_loopback(peer) {
        return from_loopback_only();
    }
    match context.log.set(&filter) {
        Ok(()) => {
            tracing::info!(log.filter = filter.trim(), "log filter changed");
            StatusCode::NO_CONTENT.into_response()
        }
        Err(error) => {
            let source = std::error::Error::source(&error)
                .map(|source| format!(": {source}"))
                .unwrap_or_default();
            (StatusCode::BAD_REQUEST, format!("{error}{source}\n")).into_response()
        }
    }
}

fn is_loopback(peer: SocketAddr) -> bool {
    peer.ip().to_canonical().is_loopback()
}

/// Inside a pod loopback is reached by `kubectl exec` and `kubectl port-forward`, which Kubernetes authorises.
fn from_loopback_only() -> Response {
    (
        StatusCode::FORBIDDEN,
        "only from loopback, for example through kubectl port-forward\n",
    )
        .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_loopback_in_both_families_and_mapped() {
        for address in ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert!(is_loopback(address.parse().unwrap()), "{address}");
        }
        for address in ["10.0.0.1:1", "[::ffff:10.0.0.1]:1", "[fe80::1]:1"] {
            assert!(!is_loopback(address.parse().unwrap()), "{address}");
        }
    }
}
