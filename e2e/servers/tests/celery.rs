//! The sample application runs, publishes and keeps its journal, on the newest and on an older Celery.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use kanchi_test_servers::celery::{Celery, NEWEST, WorkerOptions};
use tokio::process::{Child, Command};

fn redis() -> (Child, String) {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = Command::new("redis-server");
    command
        .args(["--port", &port.to_string(), "--save", ""])
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true);
    (command.spawn().unwrap(), format!("redis://127.0.0.1:{port}"))
}

async fn runs_a_task_and_a_chain(version: &str) {
    let (_server, url) = redis();
    let folder = tempfile::tempdir().unwrap();
    let celery = Celery::install(version, &format!("{url}/0")).await.unwrap();
    let journal = format!("file://{}/journal", folder.path().display());
    let celery = celery
        .with("RESULT_BACKEND", &format!("{url}/1"))
        .with("JOURNAL", &journal);
    let worker = celery.start_worker(&WorkerOptions::default()).await.unwrap();

    let mut published = celery.publish("success", 2).await.unwrap();
    published.extend(celery.publish("chain", 3).await.unwrap());
    assert_eq!(published.len(), 5);

    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let journal = celery.journal().await.unwrap();
        let returned = |id: &str| {
            journal
                .iter()
                .any(|entry| entry["id"] == id && entry["step"] == "returned")
        };
        if published.iter().all(|task| returned(&task.id)) {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "not all ran:\n{journal:#?}\n{}",
            worker.log()
        );
    }
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn the_newest_celery_runs_a_task_and_a_chain() {
    runs_a_task_and_a_chain(NEWEST).await;
}

#[tokio::test]
async fn celery_5_3_runs_a_task_and_a_chain() {
    runs_a_task_and_a_chain("5.3.6").await;
}
