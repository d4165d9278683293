//! Calls to the API server: each with a name for messages and a bound in time.

use std::time::Duration;

use kube::core::Status;

use crate::gate;

/// No single call takes longer. The client's own retries (429, 503, 504) happen within.
pub const CALL_LIMIT: Duration = Duration::from_secs(10);

/// A failed call.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused, or could not be reached.
    #[error("failed to {what}")]
    Call {
        /// What was tried.
        what: &'static str,
        /// What came back.
        #[source]
        source: Box<kube::Error>,
    },
    /// No answer in time.
    #[error("failed to {what} within {limit:?}")]
    Timeout {
        /// What was tried.
        what: &'static str,
        /// How long was waited.
        limit: Duration,
    },
}

/// The module's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Awaits a call, bounded by [`CALL_LIMIT`]. `what` completes "failed to …".
pub async fn call<T>(what: &'static str, call: impl Future<Output = kube::Result<T>>) -> Result<T> {
    match tokio::time::timeout(CALL_LIMIT, call).await {
        Ok(answer) => answer.map_err(|source| Error::Call {
            what,
            source: Box::new(source),
        }),
        Err(_elapsed) => Err(Error::Timeout {
            what,
            limit: CALL_LIMIT,
        }),
    }
}

/// Returns what the API server answered, if it did.
fn answer(error: &kube::Error) -> Option<&Status> {
    if let kube::Error::Api(status) = error {
        Some(status)
    } else {
        None
    }
}

impl Error {
    /// Returns the HTTP status of the API server's answer.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Call { source, .. } => answer(source).map(|status| status.code),
            Self::Timeout { .. } => None,
        }
    }

    /// Returns the API server's own words.
    pub fn message(&self) -> Option<&str> {
        match self {
            Self::Call { source, .. } => answer(source).map(|status| status.message.as_str()),
            Self::Timeout { .. } => None,
        }
    }

    /// Tells whether the write was held back because this replica does not lead.
    pub fn is_not_leader(&self) -> bool {
        matches!(self, Self::Call { source, .. } if gate::is_refusal(source))
    }

    /// Tells whether nothing can be created because the namespace is being deleted, with all that is in it.
    pub fn is_namespace_terminating(&self) -> bool {
        let Self::Call { source, .. } = self else { return false };
        let details = answer(source).and_then(|status| status.details.as_ref());
        details.is_some_and(|details| {
            details
                .causes
                .iter()
                .any(|cause| cause.reason == "NamespaceTerminating")
        })
    }

    /// Returns a fixed word for metrics.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Timeout { .. } => "ApiTimeout",
            Self::Call { .. } if self.is_not_leader() => "NotLeader",
            Self::Call { .. } if self.is_namespace_terminating() => "NamespaceTerminating",
            Self::Call { .. } => match self.code() {
                Some(403) => "ApiForbidden",
                Some(404) => "ApiNotFound",
                Some(409) => "ApiConflict",
                Some(422 | 400) => "ApiInvalid",
                Some(429 | 500..=599) => "ApiUnavailable",
                Some(_) => "ApiOther",
                None => "ApiUnreachable",
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_that_is_going_away_is_told_from_missing_rights() {
        let refused = |causes: &str| {
            let status = format!(
                r#"{{ "status": "Failure", "message": "forbidden", "reason": "Forbidden", "code": 403, "details": {{ "causes": [{causes}] }} }}"#
            );
            let status: Status = serde_json::from_str(&status).unwrap_or_default();
            let source = Box::new(kube::Error::Api(Box::new(status)));
            Error::Call {
                what: "apply a child",
                source,
            }
            .category()
        };
        assert_eq!(refused(""), "ApiForbidden");
        let cause = r#"{ "reason": "NamespaceTerminating", "message": "namespace shop is being terminated" }"#;
        assert_eq!(refused(cause), "NamespaceTerminating");
    }
}
