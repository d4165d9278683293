//! Failures that are alike: of one task name, with one type of exception and, but for what varies, one message.
//!
//! The fingerprint is stored and stands in addresses, so what it is made of never changes: another normalisation would
//! split every group that is known. `docs/failures.md` says what is replaced.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3Default;

use crate::project::TaskRow;
use crate::state::TaskState;
use crate::text::boundary;

mod message;

/// Bytes of an exception that are looked at.
const EXCEPTION_BYTES: usize = 2_048;

/// Names a group of failures: a hash of task name, type of exception and normalised message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub u128);

impl Fingerprint {
    /// Returns the fingerprint of these three; two groups that differ in one of them have two.
    pub fn of(task: &str, exception_class: &str, message: &str) -> Self {
        let mut hash = Xxh3Default::new();
        for text in [task, exception_class, message] {
            hash.update(&(text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        }
        Self(hash.digest128())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A text is no fingerprint: 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint has 32 hexadecimal digits")]
pub struct NoFingerprint;

impl FromStr for Fingerprint {
    type Err = NoFingerprint;

    fn from_str(text: &str) -> Result<Self, NoFingerprint> {
        let is_one = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u128::from_str_radix(text, 16).or(Err(NoFingerprint))?;
        if is_one { Ok(Self(number)) } else { Err(NoFingerprint) }
    }
}

/// To which group a failure belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Names the group.
    pub fingerprint: Fingerprint,
    /// Task name; empty if it is not known.
    pub task: Arc<str>,
    /// Type of the exception, without module; empty if it is not known.
    pub exception_class: Arc<str>,
    /// Its message without what varies, at most 255 bytes.
    pub message: String,
}

impl Failure {
    /// Returns the group of a task that failed; `None` for one that did not.
    pub fn of(row: &TaskRow) -> Option<Self> {
        (row.state == TaskState::Failure).then(|| {
            let shared = |text: &Option<Arc<str>>| text.clone().unwrap_or_default();
            let (task, exception_class) = (shared(&row.name), shared(&row.exception_class));
            let exception = row.exception.as_deref().unwrap_or_default();
            let exception = exception
                .get(..boundary(exception, EXCEPTION_BYTES))
                .unwrap_or_default();
            let message = message::normalised(exception, &exception_class);
            Self {
                fingerprint: Fingerprint::of(&task, &exception_class, &message),
                task,
                exception_class,
                message,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(task: &str, class: &str, exception: &str) -> Failure {
        let row = TaskRow {
            state: TaskState::Failure,
            name: Some(task.into()),
            exception: Some(exception.into()),
            exception_class: Some(class.into()),
            ..TaskRow::default()
        };
        Failure::of(&row).unwrap()
    }

    #[test]
    fn what_is_alike_has_one_fingerprint_and_what_is_not_has_another() {
        let one = failure("shop.pay", "ValueError", "ValueError('order 5 of user 7')");
        assert_eq!(
            one,
            failure("shop.pay", "ValueError", "ValueError('order 61 of user 12')")
        );
        for other in [
            failure("shop.refund", "ValueError", "ValueError('order 5 of user 7')"),
            failure("shop.pay", "TypeError", "TypeError('order 5 of user 7')"),
            failure("shop.pay", "ValueError", "ValueError('no order 5')"),
        ] {
            assert_ne!(one.fingerprint, other.fingerprint);
        }
        assert_ne!(Fingerprint::of("a", "b", "c"), Fingerprint::of("ab", "", "c"));
    }

    /// Stored, and part of addresses: this value must never change.
    #[test]
    fn a_fingerprint_stays_what_it_is() {
        let one = failure("shop.pay", "ValueError", "ValueError('order 5 of user 7')");
        assert_eq!(one.message, "order <n> of user <n>");
        assert_eq!(one.fingerprint.to_string(), "81d3aea7f3b4bfa29e6605f7cc7e5ba7");
        assert_eq!(one.fingerprint.to_string().parse(), Ok(one.fingerprint));
        for text in [
            "",
            "5",
            "+0000000000000000000000000000000",
            "g0000000000000000000000000000000",
        ] {
            assert_eq!(text.parse::<Fingerprint>(), Err(NoFingerprint), "{text}");
        }
    }

    #[test]
    fn only_failures_have_one() {
        for state in [
            TaskState::Success,
            TaskState::Retry,
            TaskState::Revoked,
            TaskState::Orphaned,
        ] {
            let row = TaskRow {
                state,
                exception: Some("E()".into()),
                ..TaskRow::default()
            };
            assert_eq!(Failure::of(&row), None);
        }
        let bare = TaskRow {
            state: TaskState::Failure,
            ..TaskRow::default()
        };
        assert_eq!(Failure::of(&bare).unwrap().message, "");
    }
}
