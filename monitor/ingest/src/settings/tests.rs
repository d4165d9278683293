use super::*;
use prometheus_client::registry::Registry;

use crate::metrics::Metrics;

const CONFIG: &str = "
broker: { namespace: shop, name: orders }
brokerKey: 42
readOnly: false
celery:
  eventExchange: celeryev
  controlExchange: celery
  enableEvents: true
  globalKeyPrefix: ''
  eventQueue: { type: Classic, maxLengthBytes: 1073741824, expiresSeconds: 86400 }
queues: { include: [], sampleIntervalSeconds: 15 }
workers: { offlineAfterSeconds: 60, orphanGraceSeconds: 45 }
payloads: { store: Full, maxBytes: 65536, redactKeys: [password] }
retention: { succeededDays: 14, failedDays: 30, eventsDays: 7, statisticsDays: 365 }
replicas: 1
logLevel: info
";

fn write(directory: &Path, name: &str, text: &str) {
    std::fs::write(directory.join(name), text).unwrap();
}

fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), file::CONFIG, CONFIG);
    write(directory.path(), file::BROKER_URL, "redis://:canary@localhost:6379/0\n");
    write(
        directory.path(),
        file::STORE_URL,
        "postgres://kanchi_m_16384_42:canary@localhost/kanchi\n",
    );
    directory
}

#[test]
fn reads_what_the_operator_mounts() {
    let directory = directory();
    let settings = Settings::load(directory.path()).unwrap().settings;
    assert_eq!(settings.config.broker_key, 42);
    assert_eq!(settings.broker.broker_key, "shop/orders");
    assert_eq!(settings.payloads.max_bytes, 65_536);
    assert!(settings.broker.tls.is_none());
    assert_eq!(settings.patience().offline_after, Duration::from_mins(1));
    assert_eq!(settings.orphan_grace(), Duration::from_secs(45));
}

#[test]
fn follows_the_kubelets_link() {
    let directory = tempfile::tempdir().unwrap();
    let version = directory.path().join("..2026_01_01");
    std::fs::create_dir(&version).unwrap();
    write(&version, file::CONFIG, CONFIG);
    write(&version, file::BROKER_URL, "amqp://guest:guest@localhost//");
    write(
        &version,
        file::STORE_URL,
        "postgres://kanchi_m_16384_42:x@localhost/kanchi",
    );
    std::os::unix::fs::symlink(&version, directory.path().join(CURRENT)).unwrap();
    assert!(Settings::load(directory.path()).is_ok());
}

#[test]
fn says_which_file_is_wrong_and_never_what_is_in_it() {
    for (name, text) in [
        (file::BROKER_URL, "canary"),
        (file::BROKER_URL, "ftp://user:canary@host/"),
        (file::STORE_URL, "mysql://user:canary@host/db"),
        (file::CONFIG, "nonsense: canary"),
    ] {
        let directory = directory();
        write(directory.path(), name, text);
        let error = crate::error_chain(&Settings::load(directory.path()).unwrap_err());
        assert!(error.contains(name), "{error}");
        assert!(name == file::CONFIG || !error.contains("canary"), "{error}");
    }
    let directory = directory();
    std::fs::remove_file(directory.path().join(file::BROKER_URL)).unwrap();
    let error = crate::error_chain(&Settings::load(directory.path()).unwrap_err());
    assert!(error.contains("broker-url"), "{error}");
}

#[test]
fn shows_no_secret_in_its_debug_form() {
    let directory = directory();
    let settings = Settings::load(directory.path()).unwrap().settings;
    assert!(!format!("{settings:?}").contains("canary"));
}

#[test]
fn another_file_in_the_directory_changes_nothing() {
    let directory = directory();
    let before = Settings::load(directory.path()).unwrap().fingerprint;
    write(directory.path(), "unrelated", "text");
    assert_eq!(Settings::load(directory.path()).unwrap().fingerprint, before);
    write(
        directory.path(),
        file::BROKER_URL,
        "redis://:rotated@localhost:6379/0\n",
    );
    assert_ne!(Settings::load(directory.path()).unwrap().fingerprint, before);
}

#[tokio::test]
async fn applies_a_good_change_keeps_the_old_one_on_a_bad_change_and_ignores_no_change() {
    let directory = directory();
    let loaded = Settings::load(directory.path()).unwrap();
    let (sender, mut receiver) = watch::channel(Arc::new(loaded.settings));
    let shared = Arc::new(Shared::new(Metrics::register(&mut Registry::default()), || 0));
    let shutdown = CancellationToken::new();
    let path = directory.path().to_owned();
    let task = tokio::spawn(watch_directory(
        path,
        loaded.fingerprint,
        sender,
        Arc::clone(&shared),
        shutdown.clone(),
    ));
    write(
        directory.path(),
        file::BROKER_URL,
        "redis://:rotated@localhost:6379/0\n",
    );
    tokio::time::timeout(POLL_INTERVAL * 10, receiver.changed())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(receiver.borrow_and_update().broker.url.password(), Some("rotated"));

    write(directory.path(), file::CONFIG, "broken: [");
    while shared.status().config_error.is_none() {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    assert!(!receiver.has_changed().unwrap());

    write(directory.path(), file::CONFIG, CONFIG);
    while shared.status().config_error.is_some() {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    assert!(!receiver.has_changed().unwrap(), "back to what is in force");
    shutdown.cancel();
    task.await.unwrap();
}

#[test]
fn a_result_backend_has_the_brokers_certificates_and_its_own_url_and_prefix() {
    let directory = directory();
    let config = format!("{CONFIG}resultBackend: {{ globalKeyPrefix: acme }}\n");
    assert!(Settings::load(directory.path()).unwrap().settings.results.is_none());
    write(directory.path(), file::CONFIG, &config);
    assert!(Settings::load(directory.path()).is_err(), "its URL is missing");
    write(directory.path(), file::RESULT_BACKEND_URL, "rediss://:canary@cache/3\n");
    write(directory.path(), file::BROKER_CA, "pem");
    let loaded = Settings::load(directory.path()).unwrap();
    let results = loaded.settings.results.clone().unwrap();
    assert_eq!(results.url.endpoint(), "cache:6379/3");
    assert_eq!(results.celery.global_key_prefix, "acme");
    assert!(results.tls.is_some());
    assert!(!format!("{loaded:?}").contains("canary"));
    write(directory.path(), file::RESULT_BACKEND_URL, "amqp://u:canary@rabbit/");
    let error = crate::error_chain(&Settings::load(directory.path()).unwrap_err());
    assert!(error.contains("amqp") && !error.contains("canary"), "{error}");
    write(directory.path(), file::RESULT_BACKEND_URL, "redis://:other@cache/3");
    assert_ne!(
        Settings::load(directory.path()).unwrap().fingerprint,
        loaded.fingerprint
    );
}
