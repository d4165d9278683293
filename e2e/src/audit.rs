//! The API server's audit log of the lab: who wrote what, and when.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

use anyhow::Context;
use serde::Deserialize;
use serde_json::Value;

use crate::cluster::setting;

/// A place in the audit log.
#[derive(Clone, Debug)]
pub struct Mark {
    path: PathBuf,
    offset: u64,
}

/// One request, after it was answered.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// `get`, `patch`, `create` …
    pub verb: String,
    /// Path and query; names the field manager of a patch.
    #[serde(rename = "requestURI")]
    pub uri: String,
    /// Who asked.
    pub user: User,
    /// What it was about.
    #[serde(default)]
    pub object_ref: Option<Object>,
    /// How it ended.
    #[serde(default)]
    pub response_status: Option<Status>,
    /// When it came, RFC 3339.
    #[serde(default)]
    pub request_received_timestamp: String,
    #[serde(default)]
    stage: String,
}

/// Who asked.
#[derive(Clone, Debug, Deserialize)]
pub struct User {
    /// For example `system:serviceaccount:kanchi-system:kanchi-operator`.
    #[serde(default)]
    pub username: String,
    /// Among others the pod's name.
    #[serde(default)]
    pub extra: Value,
}

/// What a request was about.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Object {
    /// For example `celerybrokers`.
    pub resource: String,
    /// For example `status`.
    pub subresource: String,
    /// Empty for cluster-scoped objects.
    pub namespace: String,
    /// Empty when the server chose it.
    pub name: String,
}

/// How a request ended.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Status {
    /// HTTP status.
    pub code: u16,
}

impl Mark {
    /// Returns the end of the log as it is now.
    pub fn now() -> anyhow::Result<Self> {
        let path = PathBuf::from(setting("KANCHI_AUDIT_LOG")?);
        let offset = path.metadata().context("failed to look at the audit log")?.len();
        Ok(Self { path, offset })
    }

    /// Returns the finished requests since then.
    pub fn requests(&self) -> anyhow::Result<Vec<Request>> {
        let mut file = File::open(&self.path).context("failed to open the audit log")?;
        file.seek(SeekFrom::Start(self.offset))
            .context("failed to seek in the audit log")?;
        let mut text = String::new();
        file.read_to_string(&mut text).context("failed to read the audit log")?;
        // The last line may be half written.
        let whole = text.rfind('\n').map_or("", |end| text.get(..end).unwrap_or_default());
        let requests = whole
            .lines()
            .map(|line| serde_json::from_str::<Request>(line).context("unexpected audit line"));
        let requests: Vec<_> = requests.collect::<anyhow::Result<_>>()?;
        Ok(requests
            .into_iter()
            .filter(|request| request.stage == "ResponseComplete" || request.stage.is_empty())
            .collect())
    }

    /// Returns the writes since then of one service account, `namespace:name`.
    pub fn writes_of(&self, account: &str) -> anyhow::Result<Vec<Request>> {
        let user = format!("system:serviceaccount:{account}");
        let mut requests = self.requests()?;
        requests.retain(|request| request.is_write() && request.user.username == user);
        Ok(requests)
    }
}

impl Request {
    /// Tells whether the request may have changed something.
    pub fn is_write(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch")
    }

    /// Tells whether the request was about this resource, for example `leases`.
    pub fn is_about(&self, resource: &str) -> bool {
        self.object_ref
            .as_ref()
            .is_some_and(|object| object.resource == resource)
    }

    /// Returns the pod that asked, if it used its service account's token.
    pub fn pod(&self) -> Option<&str> {
        self.user.extra["authentication.kubernetes.io/pod-name"][0].as_str()
    }
}
