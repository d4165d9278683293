//! Telemetry, the admin server (live, ready, metrics, log level) and shutdown.
//!
//! Both executables, the operator and the monitor, are built on this crate. It knows nothing of Celery, Kubernetes or
//! Postgres: it must not depend on any other crate of the workspace.
//!
//! ```no_run
//! use std::sync::Arc;
//! use kanchi_runtime::{AdminServer, BuildInfo, Health, LogFormat, telemetry, shutdown};
//!
//! # async fn program() -> Result<(), Box<dyn std::error::Error>> {
//! let log = telemetry::init(LogFormat::Json, "info")?;
//! BuildInfo::of("kanchi-monitor").log();
//! let shutdown = shutdown::on_signal()?;
//! let mut registry = prometheus_client::registry::Registry::default();
//! kanchi_runtime::process::register(&mut registry, BuildInfo::of("kanchi-monitor"));
//! let health = Health::new();
//! let admin = AdminServer::bind("0.0.0.0:8080".parse()?, Arc::new(registry), health.clone(), log).await?;
//! let admin = tokio::spawn(admin.run(shutdown.clone()));
//! health.set_ready();
//! # admin.await??;
//! # Ok(())
//! # }
//! ```

pub mod admin;
pub mod build_info;
pub mod clock;
pub mod field;
pub mod health;
pub mod process;
pub mod shutdown;
pub mod telemetry;

pub use admin::AdminServer;
pub use build_info::BuildInfo;
pub use health::{Health, Pulse};
pub use telemetry::{LogControl, LogFormat};
