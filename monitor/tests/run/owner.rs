//! What the schema's owner does without an operator.

use kanchi_test_servers::postgres::Postgres;

use crate::rig::Rig;

#[tokio::test]
async fn upkeep_says_what_it_will_drop_and_what_it_did() {
    let rig = Rig::new(Postgres::start_new().unwrap(), "redis://127.0.0.1:1/0")
        .await
        .unwrap();
    let run = |arguments: &[&str]| {
        let (log, well) = rig.as_owner(arguments).unwrap();
        assert!(well, "{arguments:?}: {log}");
        log
    };
    assert!(run(&["migrate"]).contains("the schema is up to date"));
    assert!(run(&["upkeep", "--dry-run"]).contains("no upkeep was done yet"));
    assert!(run(&["upkeep"]).contains("upkeep done"));
    let log = run(&["upkeep", "--dry-run", "--days", "9"]);
    assert!(log.contains("the last upkeep"), "{log}");
    assert!(
        log.contains("event_chunk_7_") && log.contains("will be dropped"),
        "{log}"
    );
    assert!(!log.contains("task_14_2"), "two weeks are not over in nine days: {log}");
    let partitions = "select count(*) from pg_class where relname like 'event\\_chunk\\_7\\_2%'";
    assert!(
        rig.sql(partitions).unwrap().trim().parse::<u32>().unwrap() >= 4,
        "a dry run drops nothing"
    );
    let (_, well) = rig.as_owner(&["upkeep", "--days", "9"]).unwrap();
    assert!(!well, "looking ahead is for dry runs");
}
