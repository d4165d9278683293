//! A client that cannot write without the Lease.
//!
//! The check sits below every caller, so that no path of the program can forget it: a replica that is not the holder,
//! or a holder whose claim ran out while a pass was under way, gets an error instead of a write.

use std::task::{Context, Poll};

use futures::future::{Either, MapErr, Ready, TryFutureExt, ready};
use http::{Method, Request};
use kube::client::ClientBuilder;
use kube::{Client, Config};
use tower::{BoxError, Layer, Service};

use crate::lease::Leadership;

/// The answer to a write without the Lease.
#[derive(Debug, thiserror::Error)]
#[error("failed to write: this replica does not hold the lease")]
pub struct NotLeader;

/// Builds a client whose writes need the Lease.
pub fn gated_client(config: Config, leadership: Leadership) -> Result<Client, kube::Error> {
    Ok(ClientBuilder::try_from(config)?
        .with_layer(&GateLayer { leadership })
        .build())
}

/// Tells whether a call was refused by the gate.
pub fn is_refusal(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Service(source) if source.downcast_ref::<NotLeader>().is_some())
}

#[derive(Clone, Debug)]
struct GateLayer {
    leadership: Leadership,
}

impl<S> Layer<S> for GateLayer {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate {
            inner,
            leadership: self.leadership.clone(),
        }
    }
}

/// The service between the client and the API server.
#[derive(Clone, Debug)]
pub struct Gate<S> {
    inner: S,
    leadership: Leadership,
}

impl<S, B> Service<Request<B>> for Gate<S>
where
    S: Service<Request<B>>,
    S::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Either<Ready<Result<S::Response, BoxError>>, MapErr<S::Future, fn(S::Error) -> BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if writes(request.method()) && !self.leadership.is_leader() {
            return Either::Left(ready(Err(NotLeader.into())));
        }
        Either::Right(self.inner.call(request).map_err(Into::into as fn(S::Error) -> BoxError))
    }
}

fn writes(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reads_pass_without_the_lease() {
        for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            assert!(writes(&method), "{method}");
        }
        assert!(!writes(&Method::GET));
    }
}
