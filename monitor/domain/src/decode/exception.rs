//! What an exception is called, and what it is where Celery's repr does not say.

use std::borrow::Cow;

/// Returns a better text than `told`, if `told` says nothing and the traceback does, and the exception's class.
pub(crate) fn explain<'a>(
    told: Option<&'a str>,
    traceback: Option<&'a str>,
) -> (Option<Cow<'a, str>>, Option<Cow<'a, str>>) {
    let last = traceback.and_then(last_line);
    let told = told.filter(|text| !matches!(*text, "" | "None" | "ExceptionWithTraceback()"));
    match (told, last) {
        (Some(text), last) => (
            None,
            class_of_repr(text).or(last.map(|(class, _)| class)).map(Cow::Borrowed),
        ),
        (None, Some(("Retry", message))) => match retry_cause(message) {
            Some(cause) => (Some(cause.into()), class_of_repr(cause).map(Cow::Borrowed)),
            None => (Some(message.into()), Some("Retry".into())),
        },
        (None, Some((class, message))) if message.starts_with(class) => (Some(message.into()), Some(class.into())),
        (None, Some((class, ""))) => (Some(class.into()), Some(class.into())),
        (None, Some((class, message))) => (Some(format!("{class}: {message}").into()), Some(class.into())),
        (None, None) => (None, None),
    }
}

/// `Retry in 1s: KeyError('k1')` → `KeyError('k1')`.
fn retry_cause(message: &str) -> Option<&str> {
    message
        .strip_prefix("Retry ")
        .and_then(|rest| rest.split_once(": "))
        .map(|(_, cause)| cause)
}

/// `ValueError('boom')` → `ValueError`; nothing for what is no call of a name.
fn class_of_repr(repr: &str) -> Option<&str> {
    let (path, _) = repr.split_once('(')?;
    class_of_path(path)
}

/// The last line of a traceback that names an exception: its class and its message. Messages may have many lines.
fn last_line(traceback: &str) -> Option<(&str, &str)> {
    traceback.lines().rev().take(200).find_map(|line| {
        let (path, message) = line.split_once(": ").unwrap_or((line.trim_end_matches(':'), ""));
        let class = class_of_path(path)?;
        let named = path.contains('.') || class.starts_with(|c: char| c.is_ascii_uppercase());
        named.then_some((class, message.trim_end()))
    })
}

/// `billiard.exceptions.TimeLimitExceeded` → `TimeLimitExceeded`; nothing for what is no dotted name.
fn class_of_path(path: &str) -> Option<&str> {
    let is_name = |part: &str| {
        !part.is_empty()
            && !part.starts_with(|c: char| c.is_ascii_digit())
            && part.chars().all(|c| c.is_alphanumeric() || c == '_')
    };
    if path.len() > crate::text::NAME_BYTES || !path.split('.').all(is_name) {
        return None;
    }
    path.rsplit('.').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(told: &str, traceback: &str, text: Option<&str>, class: Option<&str>) {
        let (better, found) = explain(Some(told), Some(traceback).filter(|text| !text.is_empty()));
        assert_eq!((better.as_deref(), found.as_deref()), (text, class), "{told}");
    }

    #[test]
    fn names_what_celery_hides() {
        let limit = "Traceback (most recent call last):\n  File \"x\"\nbilliard.exceptions.TimeLimitExceeded: TimeLimitExceeded(2,)\n";
        check(
            "ExceptionWithTraceback()",
            limit,
            Some("TimeLimitExceeded(2,)"),
            Some("TimeLimitExceeded"),
        );
        let lost =
            "Traceback:\nbilliard.exceptions.WorkerLostError: Worker exited prematurely: signal 9 (SIGKILL) Job: 0.\n";
        let text = "WorkerLostError: Worker exited prematurely: signal 9 (SIGKILL) Job: 0.";
        check("ExceptionWithTraceback()", lost, Some(text), Some("WorkerLostError"));
        let retry = "raise ret\ncelery.exceptions.Retry: Retry in 1s: KeyError('k1')\n";
        check("None", retry, Some("KeyError('k1')"), Some("KeyError"));
    }

    #[test]
    fn leaves_a_good_repr_alone() {
        check(
            "ValueError('boom é')",
            "Traceback:\nValueError: boom é\n",
            None,
            Some("ValueError"),
        );
        check("NotRegistered('proj.unknown')", "", None, Some("NotRegistered"));
        let reject = "x\ncelery.exceptions.Reject: ('no thanks', False)\n";
        check("reject requeue=False: no thanks", reject, None, Some("Reject"));
        check("", "", None, None);
    }
}
