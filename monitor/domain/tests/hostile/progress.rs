//! Progress and steps as an application may tell them.

use kanchi_domain::{PayloadField, PayloadPolicy, PayloadStore, TaskFacts};

use crate::{kept, repairs};

#[test]
fn progress_that_is_none_is_kept_but_not_shown() {
    let told = |fields: &str| {
        kept(&format!(
            r#"{{"type": "kanchi-task-progress", "hostname": "gen7@h", "task_id": "t", "timestamp": 1795219800, {fields}}}"#
        ))
    };
    for (field, in_extra, repaired) in [
        (r#""progress": 350"#, r#"{"progress":350}"#, &[][..]),
        (r#""progress": -3"#, r#"{"progress":-3}"#, &[]),
        (r#""progress": 1e300"#, r#"{"progress":1e300}"#, &[]),
        (r#""progress": "half""#, r#"{"progress":"half"}"#, &[]),
        (r#""progress": [1]"#, r#"{"progress":[1]}"#, &[]),
        (r#""steps": {"key": "a"}"#, r#"{"steps":{"key":"a"}}"#, &[]),
        (r#""steps": "a""#, r#"{"steps":"a"}"#, &[]),
        (r#""progress": NaN"#, "", &["not_a_number"]),
        (r#""progress": 99999999999999999999999"#, "", &["huge_integer"]),
        (r#""step_key": """#, "", &[]),
        (r#""steps": null"#, "", &[]),
    ] {
        let event = told(field);
        assert_eq!(event.progress, None, "{field}");
        assert_eq!(event.extra.as_deref().unwrap_or_default(), in_extra, "{field}");
        assert_eq!(repairs(&event), repaired, "{field}");
        let mut facts = TaskFacts::new();
        facts.absorb(&event);
        assert_eq!(facts.project().progress, None, "{field}");
    }
    let long = "k".repeat(2_000);
    let event = told(&format!(
        r#""progress": 100.00000001, "step_key": "{long}", "message": 5"#
    ));
    let progress = event.progress.as_deref().unwrap();
    assert_eq!(
        (progress.percent, progress.message.as_deref()),
        (Some(100.0), Some("5"))
    );
    assert_eq!(progress.step_key.as_deref().map(str::len), Some(255));
    assert_eq!(repairs(&event), ["long_name", "wrong_type"]);
}

#[test]
fn secrets_in_steps_are_hidden_and_all_words_of_progress_can_be_left_out() {
    let text = r#"{"type": "kanchi-task-steps", "hostname": "gen7@h", "task_id": "t", "timestamp": 1795219800, "progress": 5, "step_key": "load",
        "message": "token=abc", "meta": {"token": "abc"}, "steps": [{"key": "load", "label": "of token=abc", "description": "d"}]}"#;
    let applied = |store: PayloadStore, max_bytes: usize| {
        let mut event = kept(text);
        let redact_keys = vec!["token".to_owned()];
        PayloadPolicy {
            store,
            max_bytes,
            redact_keys,
        }
        .apply(&mut event);
        let mut facts = TaskFacts::new();
        facts.absorb(&event);
        (facts.project(), event.to_json())
    };
    let (row, json) = applied(PayloadStore::Full, 65_536);
    let progress = row.progress.unwrap();
    assert!(!format!("{progress:?}{json}").contains("abc"), "{progress:?}");
    assert_eq!(progress.announced()[0].description.as_deref(), Some("d"));

    let (row, _) = applied(PayloadStore::Full, 16);
    let progress = row.progress.unwrap();
    assert_eq!((progress.steps.as_deref(), progress.percent), (None, Some(5.0)));
    let cut: Vec<_> = row.cut.iter().map(PayloadField::as_str).collect();
    assert_eq!(cut, ["progress"]);

    let (row, json) = applied(PayloadStore::None, 65_536);
    let progress = row.progress.unwrap();
    assert_eq!(
        (progress.percent, progress.step_key.as_deref()),
        (Some(5.0), Some("load"))
    );
    assert!(progress.message.is_none() && progress.meta.is_none() && progress.steps.is_none());
    assert!(!json.contains("abc"));
}
