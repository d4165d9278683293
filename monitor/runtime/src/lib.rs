//! Telemetry, the admin server (live, ready, metrics, log level) and shutdown.
