//! The sample application runs, publishes and keeps its journal, on the newest and on an older Celery.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kanchi_test_servers::celery::{Celery, NEWEST, WorkerOptions};
use kanchi_test_servers::redis::Redis;

async fn runs_a_task_and_a_chain(version: &str) -> Result<()> {
    let redis = Redis::start_new()?;
    let folder = tempfile::tempdir()?;
    let celery = Celery::install(version, &redis.url(0)).await?;
    let journal = format!("file://{}/journal", folder.path().display());
    let celery = celery.with("RESULT_BACKEND", &redis.url(1)).with("JOURNAL", &journal);
    let worker = celery.start_worker(&WorkerOptions::default()).await?;

    let mut published = celery.publish("success", 2).await?;
    published.extend(celery.publish("chain", 3).await?);
    assert_eq!(published.len(), 5);

    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let journal = celery.journal().await?;
        let returned = |id: &str| {
            journal
                .iter()
                .any(|entry| entry["id"] == id && entry["step"] == "returned")
        };
        if published.iter().all(|task| returned(&task.id)) {
            break;
        }
        let log = worker.log();
        ensure!(Instant::now() < deadline, "not all ran:\n{journal:#?}\n{log}");
    }
    worker.stop().await
}

#[tokio::test]
async fn the_newest_celery_runs_a_task_and_a_chain() -> Result<()> {
    runs_a_task_and_a_chain(NEWEST).await
}

#[tokio::test]
async fn celery_5_3_runs_a_task_and_a_chain() -> Result<()> {
    runs_a_task_and_a_chain("5.3.6").await
}
