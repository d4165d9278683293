//! What the API server was asked, by its own audit log.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;

/// The calls of one user from some moment on.
#[derive(Debug)]
pub(crate) struct AuditLog {
    path: PathBuf,
    user: String,
    /// Bytes that were read.
    place: u64,
    calls: Calls,
}

/// Calls within a span of the log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Calls {
    /// How often, by verb and resource.
    pub(crate) counts: BTreeMap<(String, String), u64>,
    /// CeleryBrokers that were read by name: a pass over one begins so.
    pub(crate) passed: BTreeSet<(String, String)>,
    /// When the last of these was read for the first time.
    pub(crate) passed_at: Option<Timestamp>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    stage: String,
    verb: String,
    user: User,
    #[serde(default)]
    object_ref: Object,
    stage_timestamp: Timestamp,
}

#[derive(Deserialize)]
struct User {
    username: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Object {
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
}

impl AuditLog {
    /// Begins at the log's end.
    pub(crate) fn begin(path: PathBuf, user: &str) -> Result<Self> {
        let place = std::fs::metadata(&path).context("no audit log")?.len();
        Ok(Self {
            path,
            user: user.to_owned(),
            place,
            calls: Calls::default(),
        })
    }

    /// Returns all calls since the beginning.
    pub(crate) fn read(&mut self) -> Result<&Calls> {
        let mut file = File::open(&self.path).context("no audit log")?;
        file.seek(SeekFrom::Start(self.place))?;
        let mut file = BufReader::new(file);
        let mut line = String::new();
        loop {
            line.clear();
            let length = file.read_line(&mut line)?;
            // The last line may be half written: it is read with the next ones.
            if !line.ends_with('\n') {
                return Ok(&self.calls);
            }
            self.place += length as u64;
            let entry: Entry = serde_json::from_str(&line).context("an unreadable audit log")?;
            if entry.user.username == self.user {
                self.calls.add(entry);
            }
        }
    }
}

impl Calls {
    fn add(&mut self, entry: Entry) {
        // A watch is counted when it begins, everything else when it is answered.
        let counted = if entry.verb == "watch" {
            "ResponseStarted"
        } else {
            "ResponseComplete"
        };
        if entry.stage != counted {
            return;
        }
        let Object {
            resource,
            subresource,
            namespace,
            name,
        } = entry.object_ref;
        if entry.verb == "get" && resource == "celerybrokers" && self.passed.insert((namespace, name)) {
            self.passed_at = Some(entry.stage_timestamp);
        }
        let resource = if subresource.is_empty() {
            resource
        } else {
            format!("{resource}/{subresource}")
        };
        *self.counts.entry((entry.verb, resource)).or_default() += 1;
    }

    /// Returns how many calls there were beside the Lease's.
    pub(crate) fn total(&self) -> u64 {
        self.beside_lease().map(|(_, count)| count).sum()
    }

    /// Returns how many of them were to change something.
    pub(crate) fn writes(&self) -> u64 {
        let reads = ["get", "list", "watch"];
        let asks = |resource: &str| resource == "selfsubjectaccessreviews";
        self.beside_lease()
            .filter(|((verb, resource), _)| !reads.contains(&verb.as_str()) && !asks(resource))
            .map(|(_, count)| count)
            .sum()
    }

    fn beside_lease(&self) -> impl Iterator<Item = (&(String, String), u64)> {
        self.counts
            .iter()
            .filter(|((_, resource), _)| resource != "leases")
            .map(|(call, count)| (call, *count))
    }
}
