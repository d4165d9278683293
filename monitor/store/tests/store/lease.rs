//! Fail-over: who may write.

use std::time::{Duration, Instant};

use kanchi_store::{
    Epoch, ErrorKind, Heartbeat, Lease, Renewal, RetentionPolicy, StoreReporter, StoreWriter, UnixMicros,
};
use sqlx::{Connection, Executor, PgConnection};
use tokio::task::JoinSet;

use crate::world::{Monitor, World, batch, live, received};

const ID: &str = "6b2c9f5e-0000-4000-8000-000000000001";

/// Longer than a commit or a lock may take in a test.
const PATIENCE: Duration = Duration::from_secs(30);

async fn reporter(monitor: &Monitor) -> StoreReporter {
    let retention = RetentionPolicy::default();
    StoreReporter::connect(&monitor.url, retention).await.unwrap()
}

/// Lets the lease run out, as if the writer had not been heard of.
fn run_out(world: &World) {
    world.sql("update kanchi.lease set renewed_at = now() - interval '1 minute'");
    world.sql("update kanchi.batch set committed_at = now() - interval '1 minute'");
}

#[tokio::test]
async fn a_broker_that_nobody_wrote_for_is_taken_by_one_of_many() {
    let world = World::new().await;
    let m = world.monitor("orders").await;
    world.sql("delete from kanchi.lease; delete from kanchi.writer");
    let mut all = JoinSet::new();
    for number in 0..3 {
        let mut reporter = reporter(&m).await;
        all.spawn(async move { reporter.take_over(&format!("pod-{number}"), None).await.unwrap() });
    }
    let taken: Vec<_> = all.join_all().await.into_iter().flatten().collect();
    assert_eq!(taken.len(), 1, "{taken:?}");
    assert_eq!((taken[0].epoch, taken[0].was_own), (Epoch(1), false));
}

#[tokio::test]
async fn a_holder_that_lives_is_not_replaced_and_one_that_is_silent_is_once() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let mut standby = reporter(&m).await;
    m.reporter.speak_for(m.epoch);
    m.reporter
        .renew(Renewal {
            behind: Some(Duration::from_millis(5)),
            keeps_digests: true,
        })
        .await
        .unwrap();
    let seen = standby.holder("pod-1").await.unwrap().unwrap();
    assert_eq!((seen.epoch, seen.lease, seen.is_own), (m.epoch, Lease::Alive, false));
    assert_eq!(
        (seen.behind, seen.keeps_digests),
        (Some(Duration::from_millis(5)), true)
    );
    assert_eq!(standby.take_over("pod-1", Some(&seen)).await.unwrap(), None);

    run_out(&world);
    // Renewed between the look and the take-over.
    let seen = standby.holder("pod-1").await.unwrap().unwrap();
    assert_eq!(seen.lease, Lease::Over);
    m.reporter.renew(Renewal::default()).await.unwrap();
    run_out(&world);
    assert_eq!(standby.take_over("pod-1", Some(&seen)).await.unwrap(), None);

    let seen = standby.holder("pod-1").await.unwrap().unwrap();
    let taken = standby.take_over("pod-1", Some(&seen)).await.unwrap().unwrap();
    assert!(taken.epoch > m.epoch);
    assert!(!taken.was_own);
    assert_eq!(
        standby.take_over("pod-2", Some(&seen)).await.unwrap(),
        None,
        "somebody was faster"
    );
    assert_eq!(standby.holder("pod-1").await.unwrap().unwrap().lease, Lease::Alive);
}

#[tokio::test]
async fn who_was_replaced_neither_renews_nor_beats_nor_gives_back() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let mut standby = reporter(&m).await;
    m.reporter.speak_for(m.epoch);
    run_out(&world);
    let seen = standby.holder("pod-1").await.unwrap().unwrap();
    let taken = standby.take_over("pod-1", Some(&seen)).await.unwrap().unwrap();
    assert_eq!(
        m.reporter.renew(Renewal::default()).await.unwrap_err().kind(),
        ErrorKind::StaleEpoch
    );
    let beat = m.reporter.heartbeat(&Heartbeat::default()).await;
    assert_eq!(beat.unwrap_err().kind(), ErrorKind::StaleEpoch);
    m.reporter.release("pod-0").await.unwrap();
    assert_eq!(standby.holder("pod-1").await.unwrap().unwrap().lease, Lease::Alive);
    let stale = batch(m.epoch, vec![live(ID, &[received(ID, 0)], false)]);
    assert_eq!(m.writer.commit(&stale).await.unwrap_err().kind(), ErrorKind::StaleEpoch);
    standby.speak_for(taken.epoch);
    standby.renew(Renewal::default()).await.unwrap();
    standby.heartbeat(&Heartbeat::default()).await.unwrap();
}

#[tokio::test]
async fn a_lease_given_back_is_free_at_once() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let mut standby = reporter(&m).await;
    m.writer
        .commit(&batch(m.epoch, vec![live(ID, &[received(ID, 0)], false)]))
        .await
        .unwrap();
    m.reporter.speak_for(m.epoch);
    m.reporter.release("pod-0").await.unwrap();
    let seen = standby.holder("pod-1").await.unwrap().unwrap();
    assert_eq!(seen.lease, Lease::Free);
    assert!(standby.take_over("pod-1", Some(&seen)).await.unwrap().is_some());
}

#[tokio::test]
async fn a_process_gives_back_what_an_earlier_one_of_its_name_held_and_may_take_it_again() {
    let world = World::new().await;
    let m = world.monitor("orders").await;
    let mut again = reporter(&m).await;
    again.release("pod-1").await.unwrap();
    let seen = again.holder("pod-0").await.unwrap().unwrap();
    assert_eq!(seen.lease, Lease::Alive, "of another name");
    let taken = again.take_over("pod-0", Some(&seen)).await.unwrap().unwrap();
    assert!(taken.was_own);
    again.release("pod-0").await.unwrap();
    assert_eq!(again.holder("pod-0").await.unwrap().unwrap().lease, Lease::Free);
}

#[tokio::test]
async fn a_renewal_says_which_answer_it_was_made_with() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let mut standby = reporter(&m).await;
    m.reporter.speak_for(m.epoch);
    for _ in 0..3 {
        let before = standby.holder("pod-1").await.unwrap().unwrap();
        m.reporter.renew(Renewal::default()).await.unwrap();
        let after = standby.holder("pod-1").await.unwrap().unwrap();
        assert!(after.renewals > before.renewals && after.answered <= before.renewals);
        assert!(after.answered == 0 || after.answered == before.renewals);
    }
}

#[tokio::test]
async fn a_commit_is_a_sign_of_life_and_does_not_keep_the_lease_from_being_renewed() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let mut standby = reporter(&m).await;
    run_out(&world);
    m.writer
        .commit(&batch(m.epoch, vec![live(ID, &[received(ID, 0)], false)]))
        .await
        .unwrap();
    assert_eq!(standby.holder("pod-1").await.unwrap().unwrap().lease, Lease::Alive);

    // A batch that is never done locks the epoch.
    let begin = Instant::now();
    let stuck = stuck(&m).await;
    until_locked(&world).await;
    m.reporter.speak_for(m.epoch);
    m.reporter.renew(Renewal::default()).await.unwrap();
    assert!(begin.elapsed() < PATIENCE);
    drop(stuck);
}

#[tokio::test]
async fn a_writer_that_stands_still_amid_a_batch_is_replaced_and_its_batch_undone() {
    let world = World::new().await;
    let m = world.monitor("orders").await;
    let bystander = world.monitor("mail").await;
    let mut standby = reporter(&m).await;
    // Its connection stays: the process is stopped, or its node is gone and nobody told the server.
    let stuck = stuck(&m).await;
    until_locked(&world).await;
    run_out(&world);
    let seen = standby.holder("pod-1").await.unwrap().unwrap();
    let begin = Instant::now();
    let taken = standby.take_over("pod-1", Some(&seen)).await.unwrap().unwrap();
    assert!(begin.elapsed() < PATIENCE / 2, "it waited for the lock");
    assert!(taken.epoch > m.epoch);
    assert_eq!(world.sql("select count(*) from kanchi.batch"), "0");
    drop(stuck);
    // Another broker's sessions are none of its business.
    let mut other = bystander.writer;
    other.commit(&batch(bystander.epoch, Vec::new())).await.unwrap();
}

/// A session of the event path that stands still amid the end of a batch.
async fn stuck(m: &Monitor) -> PgConnection {
    let mut session = PgConnection::connect(m.url.expose()).await.unwrap();
    let (key, epoch, id) = (m.key.0, m.epoch.0, batch(m.epoch, Vec::new()).head.id);
    let statements = format!(
        "set application_name = 'kanchi-monitor/{key}'; begin;
         select kanchi.commit_batch('{id}', {epoch}, null, null, null, null)"
    );
    session.execute(statements.as_str()).await.unwrap();
    session
}

async fn until_locked(world: &World) {
    let deadline = Instant::now() + PATIENCE;
    let idle = "select count(*) from pg_stat_activity where state = 'idle in transaction'
        and state_change < clock_timestamp() - interval '1.5 seconds' and application_name like 'kanchi-monitor/%'";
    while world.sql(idle) != "1" {
        assert!(Instant::now() < deadline, "no batch is under way");
        tokio::time::sleep(Duration::from_millis(20)).await; // polls a condition with a deadline
    }
}

#[tokio::test]
async fn a_single_monitor_takes_the_epoch_whoever_holds_the_lease() {
    let world = World::new().await;
    let m = world.monitor("orders").await;
    let mut standby = reporter(&m).await;
    let mut newer = StoreWriter::connect(&m.url, RetentionPolicy::default()).await.unwrap();
    let epoch = newer.begin_epoch("pod-9").await.unwrap();
    let seen = standby.holder("pod-1").await.unwrap().unwrap();
    assert_eq!(
        (seen.epoch, seen.lease, seen.keeps_digests),
        (epoch, Lease::Alive, false)
    );
    assert_eq!(standby.previous().await.unwrap().complete_until, None::<UnixMicros>);
}
