//! Progress and steps, which change no state.

use serde_json::{Value, json};

use crate::{BEGIN, events, facts, row, seconds};

#[test]
fn progress_and_steps_are_shown_without_changing_the_state() {
    let mut all = events("sent received started");
    all.push(json!({"type": "kanchi-task-steps", "hostname": "gen7@h", "task_id": "t", "timestamp": BEGIN + 3.0, "steps": [{"key": "load"}]}));
    all.push(json!({"type": "kanchi-task-progress", "hostname": "gen7@h", "task_id": "t", "timestamp": BEGIN + 5.0, "progress": 42.5, "step_key": "load", "message": "loading", "meta": {"rows": 10}}));
    all.push(json!({"type": "kanchi-task-progress", "hostname": "gen7@h", "task_id": "t", "timestamp": BEGIN + 4.0, "progress": 10}));
    let row = facts(&all).project();
    let progress = row.progress.unwrap();
    assert_eq!(
        (row.state.as_str(), progress.percent, progress.step_key.as_deref()),
        ("STARTED", Some(42.5), Some("load"))
    );
    assert_eq!(
        (seconds(progress.at), progress.message.as_deref()),
        (Some(5.0), Some("loading"))
    );
    assert_eq!(
        (progress.meta.as_deref(), progress.steps.as_deref()),
        (Some(r#"{"rows":10}"#), Some(r#"[{"key":"load"}]"#))
    );
    assert_eq!(seconds(row.last_event_at), Some(5.0));
}

#[test]
fn steps_are_what_the_task_announced_last() {
    let announce = |at: f64, steps: Value| json!({"type": "kanchi-task-steps", "hostname": "gen7@h", "task_id": "t", "timestamp": BEGIN + at, "steps": steps});
    let told = [
        announce(
            4.0,
            json!([{"key": "store", "label": "Store", "order": 2}, {"key": "load", "label": "Load", "description": "from disk", "total": 10, "order": 1}]),
        ),
        announce(3.0, json!([{"key": "early"}])),
        announce(5.0, json!("no list")),
    ];
    let row = facts(&[events("sent received started"), told.to_vec()].concat()).project();
    let progress = row.progress.unwrap();
    assert_eq!((progress.percent, progress.at), (None, None));
    let announced = progress.announced();
    let keys: Vec<_> = announced.iter().map(|step| &*step.key).collect();
    assert_eq!(keys, ["load", "store"]);
    assert_eq!(
        (
            announced[0].description.as_deref(),
            announced[0].total,
            announced[1].label.as_deref()
        ),
        (Some("from disk"), Some(10), Some("Store"))
    );
}

#[test]
fn a_task_without_progress_has_none() {
    for words in [
        "sent received started succeeded",
        "sent received retried failed",
        "sent received progress",
    ] {
        assert_eq!(row(words).progress, None, "{words}");
    }
}

#[test]
fn progress_of_a_run_says_nothing_about_the_next() {
    let mut all = events("sent received started succeeded");
    all.push(json!({"type": "kanchi-task-progress", "hostname": "gen7@h", "task_id": "t", "timestamp": BEGIN + 3.5, "progress": 90}));
    assert_eq!(facts(&all).project().progress.unwrap().percent, Some(90.0));
    let last = BEGIN + 60.0;
    all.push(json!({"type": "task-received", "hostname": "w@h", "pid": 2, "clock": 900, "uuid": "t", "retries": 0, "timestamp": last}));
    let row = facts(&all).project();
    assert_eq!((row.run, row.progress), (1, None));
}
