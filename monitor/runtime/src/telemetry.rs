//! Structured logs whose level can be changed while the process runs.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};

/// Why logging could not be started or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter's text was refused.
    #[error("failed to parse the log filter {filter:?}")]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// A subscriber is installed already.
    #[error("failed to install the log subscriber")]
    Install(#[source] tracing_subscriber::util::TryInitError),
    /// The subscriber is gone.
    #[error("failed to change the log filter")]
    Reload(#[source] reload::Error),
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line; what runs in a cluster.
    Json,
    /// Text for people at a terminal.
    Text,
}

/// Changes the level of a running process.
#[derive(Clone)]
pub struct LogControl {
    handle: reload::Handle<EnvFilter, Registry>,
    current: Arc<Mutex<String>>,
}

impl fmt::Debug for LogControl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("LogControl")
            .field("filter", &self.filter())
            .finish()
    }
}

impl LogControl {
    /// Replaces the filter, for example by `debug` or `info,kanchi_broker=trace`.
    pub fn set(&self, filter: &str) -> Result<(), Error> {
        let parsed = parse(filter)?;
        self.handle.reload(parsed).map_err(Error::Reload)?;
        filter
            .trim()
            .clone_into(&mut self.current.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }

    /// Returns the filter in force.
    pub fn filter(&self) -> String {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Installs the process-wide subscriber; logs go to standard output.
pub fn init(format: LogFormat, filter: &str) -> Result<LogControl, Error> {
    let (filter_layer, handle) = reload::Layer::new(parse(filter)?);
    let registry = tracing_subscriber::registry().with(filter_layer);
    match format {
        LogFormat::Json => registry
            .with(
                tracing_subscriber::fmt::layer()
                    .json()
                    .flatten_event(true)
                    .with_span_list(false),
            )
            .try_init(),
        LogFormat::Text => registry.with(tracing_subscriber::fmt::layer()).try_init(),
    }
    .map_err(Error::Install)?;
    Ok(LogControl {
        handle,
        current: Arc::new(Mutex::new(filter.trim().to_owned())),
    })
}

/// Checks a filter without installing it.
pub fn check_filter(filter: &str) -> Result<(), Error> {
    parse(filter).map(|_| ())
}

fn parse(filter: &str) -> Result<EnvFilter, Error> {
    let filter = filter.trim();
    // `EnvFilter` accepts an empty filter and then shows errors only, which nobody means.
    let filter = if filter.is_empty() { "info" } else { filter };
    // lapin calls it an error when a queue does not exist, once for each look at it; what matters is told by us. `lapin=info`
    // in the filter brings it back.
    let whole = format!("lapin=off,{filter}");
    EnvFilter::builder().parse(whole).map_err(|source| Error::Filter {
        filter: filter.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_a_filter_it_cannot_read() {
        assert!(check_filter("kanchi_broker=loudly").is_err());
        assert!(check_filter("info,kanchi_broker=trace").is_ok());
    }

    #[test]
    fn a_library_that_calls_everything_an_error_is_heard_on_demand_only() {
        let enabled = |filter: &str| {
            let subscriber = tracing_subscriber::registry().with(parse(filter).unwrap());
            tracing::subscriber::with_default(
                subscriber,
                || tracing::enabled!(target: "lapin::channel", tracing::Level::ERROR),
            )
        };
        assert!(!enabled("info"));
        assert!(enabled("info,lapin=error"));
    }

    #[test]
    fn changes_the_level_of_a_running_subscriber() {
        let (layer, handle) = reload::Layer::new(parse("info").unwrap());
        let control = LogControl {
            handle,
            current: Arc::new(Mutex::new("info".into())),
        };
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            assert!(!tracing::enabled!(tracing::Level::DEBUG));
            control.set("debug").unwrap();
            assert!(tracing::enabled!(tracing::Level::DEBUG));
            assert_eq!(control.filter(), "debug");
            assert!(control.set("a=b=c=d").is_err());
            assert_eq!(control.filter(), "debug");
        });
    }
}
