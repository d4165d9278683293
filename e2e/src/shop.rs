//! The sample application in a test's namespace: workers, publishing, its journal, its results.

use std::time::Duration;

use anyhow::Context;
use kube::ResourceExt;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::cluster::Cluster;
use crate::verbs::{DEPLOYMENT, POD};

/// A deployment of the sample application.
#[derive(Clone, Debug)]
pub struct Shop {
    namespace: String,
    name: String,
}

/// How the application runs.
#[derive(Clone, Debug)]
pub struct ShopOptions {
    /// Name of the Deployment.
    pub name: String,
    /// Image with the application.
    pub image: String,
    /// The application's broker.
    pub broker_url: String,
    /// Number of the Redis database for results; the journal is in the next one.
    pub database: u8,
    /// Worker pods.
    pub replicas: u32,
    /// Processes of each worker.
    pub concurrency: u32,
    /// More environment.
    pub environment: Vec<(String, String)>,
}

/// One published task, as the publisher saw it.
#[derive(Clone, Debug, Deserialize)]
pub struct Published {
    /// What was asked for, for example `retry-success`.
    pub kind: String,
    /// Its part in the canvas, for example `chord.body`; the kind itself for a plain task.
    pub role: String,
    /// Task id.
    pub id: String,
    /// Task name.
    pub name: String,
    /// Positional arguments.
    pub args: Vec<Value>,
    /// Keyword arguments.
    pub kwargs: Map<String, Value>,
    /// Queue it went to.
    pub queue: String,
    /// Id of the first task of its chain.
    #[serde(default)]
    pub root: Option<String>,
    /// Id of the task before it in its chain.
    #[serde(default)]
    pub parent: Option<String>,
}

/// One line of the journal: what an attempt of a task really did.
#[derive(Clone, Debug, Deserialize)]
pub struct Entry {
    /// `ran`, `returned` or `raised`.
    pub step: String,
    /// Task id.
    pub id: String,
    /// Number of the attempt, from 0.
    pub attempt: u32,
    /// Node name of the worker.
    pub worker: String,
    /// Root task, as the task itself knew it.
    pub root: Option<String>,
    /// Parent task, as the task itself knew it.
    pub parent: Option<String>,
    /// What it returned.
    #[serde(default)]
    pub result: Value,
    /// Class of what it raised.
    #[serde(default)]
    pub error: Option<String>,
}

/// What the result backend holds for a task.
#[derive(Clone, Debug, Deserialize)]
pub struct Stored {
    /// Task id.
    pub task_id: String,
    /// `SUCCESS`, `FAILURE` …
    pub status: String,
    /// The value, or the exception as an object.
    pub result: Value,
    /// Traceback of a failure.
    pub traceback: Option<String>,
}

impl ShopOptions {
    /// Returns the usual deployment for a broker: one worker of four processes.
    pub fn new(name: &str, image: &str, broker_url: &str) -> Self {
        Self {
            name: name.to_owned(),
            image: image.to_owned(),
            broker_url: broker_url.to_owned(),
            database: 1,
            replicas: 1,
            concurrency: 4,
            environment: Vec::new(),
        }
    }

    fn manifest(&self) -> Value {
        let redis = "redis://shop:selling@redis:6379";
        let mut environment = vec![
            json!({ "name": "BROKER_URL", "value": self.broker_url }),
            json!({ "name": "RESULT_BACKEND", "value": format!("{redis}/{}", self.database) }),
            json!({ "name": "JOURNAL", "value": format!("{redis}/{}", self.database + 1) }),
        ];
        environment.extend(
            self.environment
                .iter()
                .map(|(name, value)| json!({ "name": name, "value": value })),
        );
        let concurrency = self.concurrency.to_string();
        let command = [
            "celery",
            "-A",
            "shop",
            "worker",
            "--loglevel",
            "INFO",
            "--concurrency",
            &concurrency,
            "-Q",
            "orders,mail",
        ];
        let labels = json!({ "app": self.name });
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": self.name, "labels": labels },
            "spec": { "replicas": self.replicas, "selector": { "matchLabels": labels }, "template": {
                "metadata": { "labels": labels },
                "spec": {
                    "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 10,
                    "securityContext": { "runAsNonRoot": true, "runAsUser": 10001, "seccompProfile": { "type": "RuntimeDefault" } },
                    "containers": [{
                        "name": "celery", "image": self.image, "command": command, "env": environment,
                        "securityContext": { "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                            "capabilities": { "drop": ["ALL"] } },
                        "readinessProbe": { "exec": { "command": ["test", "-f", "/tmp/ready"] }, "periodSeconds": 1 },
                        "volumeMounts": [{ "name": "tmp", "mountPath": "/tmp" }],
                    }],
                    "volumes": [{ "name": "tmp", "emptyDir": {} }],
                },
            }},
        })
    }
}

impl Cluster {
    /// Starts the sample application and waits until its workers consume.
    pub async fn start_shop(&self, namespace: &str, options: &ShopOptions) -> anyhow::Result<Shop> {
        self.apply(options.manifest(), namespace).await?;
        self.await_rollout(DEPLOYMENT, &options.name, namespace, Duration::from_secs(120))
            .await?;
        Ok(Shop {
            namespace: namespace.to_owned(),
            name: options.name.clone(),
        })
    }
}

impl Shop {
    /// Names a deployment that exists already.
    pub fn existing(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// Publishes tasks of one kind and returns what was published.
    pub async fn publish(&self, cluster: &Cluster, kind: &str, count: usize) -> anyhow::Result<Vec<Published>> {
        self.lines(cluster, &["publish", kind, &count.to_string()]).await
    }

    /// Returns what the tasks really did.
    pub async fn journal(&self, cluster: &Cluster) -> anyhow::Result<Vec<Entry>> {
        self.lines(cluster, &["journal"]).await
    }

    /// Returns what the result backend holds.
    pub async fn results(&self, cluster: &Cluster) -> anyhow::Result<Vec<Stored>> {
        self.lines(cluster, &["results"]).await
    }

    /// Runs `python -m shop` in a worker's pod.
    pub async fn run(&self, cluster: &Cluster, arguments: &[&str]) -> anyhow::Result<String> {
        self.exec(cluster, &[&["python", "-m", "shop"], arguments].concat())
            .await
    }

    /// Runs a command in a worker's pod.
    pub async fn exec(&self, cluster: &Cluster, command: &[&str]) -> anyhow::Result<String> {
        let pods = cluster
            .list(POD, &self.namespace, &format!("app={}", self.name))
            .await?;
        let alive = |pod: &&kube::api::DynamicObject| pod.metadata.deletion_timestamp.is_none();
        let pod = pods
            .iter()
            .find(alive)
            .with_context(|| format!("{} has no pod", self.name))?;
        cluster.exec(&self.namespace, &pod.name_any(), command).await
    }

    async fn lines<T: DeserializeOwned>(&self, cluster: &Cluster, arguments: &[&str]) -> anyhow::Result<Vec<T>> {
        let text = self.run(cluster, arguments).await?;
        text.lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("unexpected line {line:?}")))
            .collect()
    }
}
