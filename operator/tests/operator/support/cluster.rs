//! A real control plane on loopback: etcd, kube-apiserver and the controllers that own what the operator makes.
//!
//! There is no kubelet: pods are created and deleted for real, and their statuses are set by the test.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use kanchi_test_servers::free_port;
use kanchi_test_servers::postgres::Postgres;
use kube::api::{Patch, PatchParams};
use kube::config::AuthInfo;
use kube::runtime::conditions;
use kube::runtime::wait::await_condition;
use kube::{Api, Client, Config, ResourceExt};
use tempfile::TempDir;
use tokio::sync::Mutex;

use super::log;

/// Where the binaries are, unless the default cache has them.
const BIN: &str = "KANCHI_LAB_BIN";

/// Users with a token each, so that the audit log tells operators apart.
const USERS: usize = 64;

const AUDIT_POLICY: &str =
    "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules: [{ level: Metadata }]\n";

/// Waits until a check gives a value; panics with the last complaint when it does not in time.
pub(crate) async fn eventually<T, F, Fut>(what: &str, within: Duration, mut check: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, String>>,
{
    let deadline = Instant::now() + within;
    loop {
        match check().await {
            Ok(value) => return value,
            Err(complaint) if Instant::now() >= deadline => {
                panic!(
                    "{what} not within {within:?}: {complaint}\nwhat operators logged last:\n{}",
                    log::last()
                )
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// A control plane and a Postgres; both end when the last test lets go of them.
pub(crate) struct Cluster {
    directory: TempDir,
    port: u16,
    next_user: AtomicUsize,
    pub(crate) postgres: Postgres,
    // Stopped in this order: the servers before etcd.
    processes: Vec<Process>,
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// A call that the audit log has seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) user: String,
    pub(crate) verb: String,
    pub(crate) resource: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) code: u64,
    pub(crate) at: String,
}

static SHARED: Mutex<Weak<Cluster>> = Mutex::const_new(Weak::new());

impl Cluster {
    /// Returns the cluster that running tests share; starts one when there is none.
    pub(crate) async fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().await;
        if let Some(running) = shared.upgrade() {
            return running;
        }
        log::keep();
        let cluster = Arc::new(Self::start(Postgres::start_new().expect("a Postgres")));
        cluster.prepare().await;
        *shared = Arc::downgrade(&cluster);
        cluster
    }

    /// Starts the control plane beside a Postgres; [`Self::prepare`] makes it one that knows CeleryBrokers.
    pub(crate) fn start(postgres: Postgres) -> Self {
        let bin = binaries();
        let directory = tempfile::Builder::new()
            .prefix("kanchi-operator-")
            .tempdir()
            .expect("a temporary folder");
        let path = |name: &str| directory.path().join(name);
        let mut tokens = vec!["token-admin,admin,admin,system:masters".to_owned()];
        tokens.extend((0..USERS).map(|user| format!("token-{user},op-{user},op-{user}")));
        fs::write(path("tokens.csv"), tokens.join("\n")).unwrap();
        fs::write(path("audit.yaml"), AUDIT_POLICY).unwrap();
        let key = Command::new("openssl")
            .args(["genrsa", "-out"])
            .arg(path("sa.key"))
            .arg("2048")
            .stderr(Stdio::null())
            .status();
        assert!(
            key.is_ok_and(|status| status.success()),
            "openssl is needed to make a key: apt-get install openssl"
        );
        let free_port = || free_port().expect("a free port");
        let [client, peer, port] = [free_port(), free_port(), free_port()];
        let mut processes = Vec::new();
        let etcd = format!("http://127.0.0.1:{client}");
        let peers = format!("http://127.0.0.1:{peer}");
        let mut run = |name: &str, arguments: Vec<String>| {
            let log = File::create(path(&format!("{name}.log"))).unwrap();
            let child = Command::new(bin.join(name))
                .args(arguments)
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .unwrap_or_else(|error| panic!("{name} does not start: {error}"));
            processes.insert(0, Process(child));
        };
        let file = |name: &str| path(name).display().to_string();
        run(
            "etcd",
            vec![
                format!("--data-dir={}", file("etcd")),
                format!("--listen-client-urls={etcd}"),
                format!("--advertise-client-urls={etcd}"),
                format!("--listen-peer-urls={peers}"),
                format!("--initial-advertise-peer-urls={peers}"),
                format!("--initial-cluster=default={peers}"),
                "--unsafe-no-fsync".to_owned(),
            ],
        );
        run(
            "kube-apiserver",
            vec![
                format!("--etcd-servers={etcd}"),
                format!("--cert-dir={}", file("certificates")),
                format!("--secure-port={port}"),
                "--bind-address=127.0.0.1".to_owned(),
                "--advertise-address=127.0.0.1".to_owned(),
                "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
                format!("--token-auth-file={}", file("tokens.csv")),
                "--authorization-mode=RBAC".to_owned(),
                "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
                format!("--service-account-signing-key-file={}", file("sa.key")),
                format!("--service-account-key-file={}", file("sa.key")),
                "--disable-admission-plugins=ServiceAccount".to_owned(),
                "--enable-admission-plugins=OwnerReferencesPermissionEnforcement".to_owned(),
                format!("--audit-policy-file={}", file("audit.yaml")),
                format!("--audit-log-path={}", file("audit.log")),
                // Never rotated: a file is read from where it was last read.
                "--audit-log-maxsize=4096".to_owned(),
            ],
        );
        let mut cluster = Self {
            directory,
            port,
            next_user: AtomicUsize::new(0),
            postgres,
            processes,
        };
        cluster.wait_until_it_answers();
        let kubeconfig = cluster.kubeconfig("token-admin").display().to_string();
        let log = File::create(cluster.directory.path().join("controller-manager.log")).unwrap();
        let controllers = Command::new(bin.join("kube-controller-manager"))
            .args([
                format!("--kubeconfig={kubeconfig}"),
                "--controllers=garbage-collector-controller,statefulset-controller,namespace-controller".to_owned(),
                "--leader-elect=false".to_owned(),
                "--secure-port=0".to_owned(),
                // Else it makes 20 calls a second, and everything waits for its pods.
                "--kube-api-qps=1000".to_owned(),
                "--kube-api-burst=1000".to_owned(),
            ])
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("kube-controller-manager starts");
        cluster.processes.insert(0, Process(controllers));
        cluster
    }

    fn wait_until_it_answers(&self) {
        let deadline = Instant::now() + Duration::from_secs(90);
        while Instant::now() < deadline {
            let ready = Command::new("curl")
                .args(["-ksf", "-H", "Authorization: Bearer token-admin"])
                .arg(format!("https://127.0.0.1:{}/readyz", self.port))
                .stdout(Stdio::null())
                .status();
            if ready.is_ok_and(|status| status.success()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        let log = fs::read_to_string(self.directory.path().join("kube-apiserver.log")).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(20).collect();
        panic!(
            "the API server is not ready within 90 s; its last lines, newest first:\n{}",
            tail.join("\n")
        );
    }

    /// Writes a file that programs find the API server with, and returns its path.
    pub(crate) fn kubeconfig(&self, token: &str) -> PathBuf {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: x\nclusters: [{{ name: x, cluster: {{ server: 'https://127.0.0.1:{}', \
             insecure-skip-tls-verify: true }} }}]\nusers: [{{ name: x, user: {{ token: {token} }} }}]\n\
             contexts: [{{ name: x, context: {{ cluster: x, user: x }} }}]\n",
            self.port
        );
        let path = self.directory.path().join(format!("kubeconfig-{token}"));
        fs::write(&path, text).unwrap();
        path
    }

    /// Installs the definitions.
    pub(crate) async fn prepare(&self) {
        let client = self.admin();
        let api = Api::all(client.clone());
        for crd in kanchi_crds::crds().unwrap() {
            let name = crd.name_any();
            let parameters = PatchParams::apply("test").force();
            eventually("the definition is accepted", Duration::from_secs(30), || {
                let (api, crd, name, parameters) = (api.clone(), crd.clone(), name.clone(), parameters.clone());
                async move {
                    api.patch(&name, &parameters, &Patch::Apply(&crd))
                        .await
                        .map(drop)
                        .map_err(|error| error.to_string())
                }
            })
            .await;
            let established = await_condition(api.clone(), &name, conditions::is_crd_established());
            tokio::time::timeout(Duration::from_secs(30), established)
                .await
                .expect("established in time")
                .unwrap();
        }
    }

    /// Returns a client that may do everything.
    pub(crate) fn admin(&self) -> Client {
        Client::try_from(self.config("token-admin")).unwrap()
    }

    /// Returns the configuration and the name of a user that may do nothing yet.
    pub(crate) fn new_user(&self) -> (Config, String) {
        let user = self.next_user.fetch_add(1, Ordering::Relaxed);
        assert!(user < USERS, "more users than tokens");
        (self.config(&format!("token-{user}")), format!("op-{user}"))
    }

    fn config(&self, token: &str) -> Config {
        let mut config = Config::new(format!("https://127.0.0.1:{}", self.port).parse().unwrap());
        config.accept_invalid_certs = true;
        config.auth_info = AuthInfo {
            token: Some(token.to_owned().into()),
            ..AuthInfo::default()
        };
        config
    }

    /// Returns the writes of a user since a time in RFC 3339.
    pub(crate) fn writes(&self, user: &str, since: &str) -> Vec<Call> {
        let mut calls = self.calls(user, since);
        let writes = |verb: &str| matches!(verb, "create" | "update" | "patch" | "delete");
        // A question that is asked by a POST.
        calls.retain(|call| writes(&call.verb) && call.resource != "selfsubjectaccessreviews");
        calls
    }

    /// Returns the calls of a user since a time in RFC 3339.
    pub(crate) fn calls(&self, user: &str, since: &str) -> Vec<Call> {
        let log = File::open(self.audit_path()).expect("an audit log");
        let mut calls = Vec::new();
        for line in BufReader::new(log).lines() {
            let Ok(event) = serde_json::from_str::<serde_json::Value>(&line.unwrap()) else {
                continue;
            };
            let text = |pointer: &str| {
                event
                    .pointer(pointer)
                    .and_then(|text| text.as_str())
                    .unwrap_or_default()
                    .to_owned()
            };
            if text("/user/username") != user {
                continue;
            }
            let at = text("/requestReceivedTimestamp");
            if at.as_str() < since {
                continue;
            }
            let resource = match text("/objectRef/subresource") {
                sub if sub.is_empty() => text("/objectRef/resource"),
                sub => format!("{}/{sub}", text("/objectRef/resource")),
            };
            calls.push(Call {
                user: user.to_owned(),
                verb: text("/verb"),
                resource,
                namespace: text("/objectRef/namespace"),
                name: text("/objectRef/name"),
                code: event
                    .pointer("/responseStatus/code")
                    .and_then(serde_json::Value::as_u64)
                    .unwrap_or(0),
                at,
            });
        }
        calls
    }

    /// Returns the whole audit log, to search it.
    pub(crate) fn audit_log(&self) -> String {
        fs::read_to_string(self.audit_path()).unwrap_or_default()
    }

    /// Returns the file that the API server notes each call in, as a line of JSON.
    pub(crate) fn audit_path(&self) -> PathBuf {
        self.directory.path().join("audit.log")
    }
}

const BINARIES: [&str; 3] = ["etcd", "kube-apiserver", "kube-controller-manager"];

/// Returns the folder of the binaries; a test without them fails and says what to do.
fn binaries() -> PathBuf {
    let has_all = |folder: &PathBuf| BINARIES.iter().all(|name| folder.join(name).is_file());
    if let Some(named) = std::env::var_os(BIN) {
        let named = PathBuf::from(named);
        assert!(
            has_all(&named),
            "{BIN} names {}, which lacks one of {}",
            named.display(),
            BINARIES.join(", ")
        );
        return named;
    }
    let cache = std::env::var_os("KANCHI_CACHE").map_or_else(
        || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cache/kanchi"),
        PathBuf::from,
    );
    let components = cache.join("lab/components");
    let entries = fs::read_dir(&components)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let mut found: Vec<PathBuf> = entries.filter(has_all).collect();
    found.sort();
    found.pop().unwrap_or_else(|| {
        panic!(
            "the operator's tests need {} of Kubernetes, and {} has none: run `make lab-up` once, which builds them, or \
             set {BIN} to a folder that has them",
            BINARIES.join(", "),
            components.display()
        )
    })
}
