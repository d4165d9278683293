//! What a list of tasks is asked for, as SQL for history and as a check of rows for what is live.

use kanchi_domain::{TaskMark, TaskState, UnixMicros};
use sqlx::{Postgres, QueryBuilder};

use crate::error::{Error, ErrorKind, Result};
use crate::query::summary::TaskSummary;

/// Values of one multi-value filter: more are refused.
const VALUES: usize = 64;

/// Values of a filter, any of which may match; `*` stands for any characters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Words {
    /// The values; none: the filter is not set.
    pub any_of: Vec<String>,
    /// Tasks that match are left out instead.
    pub exclude: bool,
}

/// Filters of a list, all of which must match. The default matches every task.
///
/// Tasks that are live are filtered as they are now, settled ones by what their row says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TaskFilter {
    /// Keys of brokers; `None`: all of them.
    pub brokers: Option<Vec<i32>>,
    /// States by name, without wildcards.
    pub state: Words,
    /// Marks by name, without wildcards: `RECOVERED`, `CRITICAL`.
    pub mark: Words,
    /// Task names.
    pub name: Words,
    /// Queues.
    pub queue: Words,
    /// Workers by node name.
    pub worker: Words,
    /// Task ids; a prefix is one with a `*` behind it.
    pub task_id: Words,
    /// Root of the workflow.
    pub root_id: Option<String>,
    /// Parent task.
    pub parent_id: Option<String>,
    /// Exceptions as Celery wrote them, for example `TimeoutError*`.
    pub exception: Words,
    /// Positional arguments as Celery wrote them, first kilobyte.
    pub args: Words,
    /// Keyword arguments as Celery wrote them, first kilobyte.
    pub kwargs: Words,
    /// Results as Celery wrote them, first kilobyte.
    pub result: Words,
    /// Within the name, the id, the arguments or the exception, in this letter case.
    pub text: Option<String>,
    /// Not before; by [`time_field`](Self::time_field).
    pub from: Option<UnixMicros>,
    /// Before; by [`time_field`](Self::time_field).
    pub to: Option<UnixMicros>,
    /// Which time `from` and `to` are about.
    pub time_field: TimeField,
    /// Ran longer, in seconds.
    pub runtime_gt: Option<f64>,
    /// Ran shorter, in seconds.
    pub runtime_lt: Option<f64>,
    /// Waited longer from sent to started, in seconds.
    pub wait_gt: Option<f64>,
    /// More retries.
    pub retries_gt: Option<u32>,
}

/// A time of a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimeField {
    /// Received, or what else is known of a task that no worker got. Of live tasks: when Kanchi first saw them.
    #[default]
    Received,
    /// Started.
    Started,
    /// Finished.
    Finished,
}

impl Words {
    /// Returns a filter for exactly one value.
    pub fn one(value: impl Into<String>) -> Self {
        Self {
            any_of: vec![value.into()],
            exclude: false,
        }
    }

    /// Returns the value, if the filter asks for a single one without wildcard: an index may know its hash.
    pub(super) fn exact(&self) -> Option<&str> {
        match self.any_of.as_slice() {
            [value] if !self.exclude && !value.contains('*') => Some(value),
            _ => None,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.any_of.is_empty()
    }

    fn matches(&self, value: Option<&str>) -> bool {
        let found = value.is_some_and(|value| self.any_of.iter().any(|pattern| fits(pattern, value)));
        self.any_of.is_empty() || found != self.exclude
    }

    pub(super) fn push(&self, sql: &mut QueryBuilder<'_, Postgres>, column: &str) {
        if self.is_empty() {
            return;
        }
        let wild = self.any_of.iter().any(|value| value.contains('*'));
        sql.push(if self.exclude { " and (" } else { " and " }).push(column);
        if wild {
            let patterns: Vec<String> = self.any_of.iter().map(|value| like(value)).collect();
            sql.push(if self.exclude { " not like all (" } else { " like any (" });
            sql.push_bind(patterns);
        } else {
            sql.push(if self.exclude { " <> all (" } else { " = any (" });
            sql.push_bind(self.any_of.clone());
        }
        sql.push(")");
        if self.exclude {
            sql.push(" or ").push(column).push(" is null)");
        }
    }
}

impl TaskFilter {
    /// Refuses what could not be answered within bounds.
    pub(super) fn check(&self, operation: &'static str) -> Result<()> {
        let words = [
            &self.state,
            &self.mark,
            &self.name,
            &self.queue,
            &self.worker,
            &self.task_id,
            &self.exception,
            &self.args,
            &self.kwargs,
            &self.result,
        ];
        if words.iter().any(|words| words.any_of.len() > VALUES) {
            let message = format!("a filter takes at most {VALUES} values");
            return Err(Error::new(ErrorKind::Invalid, operation, message));
        }
        Ok(())
    }

    /// Whether only tasks can match that ended in another way than well: they have an index of their own.
    pub(super) fn is_unsuccessful(&self) -> bool {
        let names_it = self.state.any_of.iter().any(|state| fits(state, "SUCCESS"));
        let is_critical = self.mark.exact() == Some(TaskMark::Critical.as_str());
        is_critical || !self.state.any_of.is_empty() && names_it == self.state.exclude
    }

    /// Whether rows may be read that do not match: then they are read in slices of time.
    pub(super) fn is_selective(&self) -> bool {
        let everything = Self {
            brokers: self.brokers.clone(),
            from: self.from,
            to: self.to,
            time_field: self.time_field,
            ..Self::default()
        };
        *self != everything || (self.time_field != TimeField::Received && (self.from.is_some() || self.to.is_some()))
    }

    /// Adds the conditions on columns of history, `t`; brokers and the time that the list is ordered by are the caller's.
    pub(super) fn push(&self, sql: &mut QueryBuilder<'_, Postgres>) {
        for (words, column) in [
            (&self.name, "t.name"),
            (&self.queue, "t.queue"),
            (&self.worker, "t.worker"),
        ] {
            if let Some(value) = words.exact() {
                // Within the index: see task_arrived.
                sql.push(" and hashtext(").push(column).push(") = hashtext(");
                sql.push_bind(value.to_owned()).push(")");
            }
            words.push(sql, column);
        }
        for (words, column) in [
            (&self.state, "t.state"),
            (&self.mark, "t.mark"),
            (&self.task_id, "t.task_id"),
            (&self.exception, "t.exception"),
            (&self.args, "t.args"),
            (&self.kwargs, "t.kwargs"),
            (&self.result, "t.result"),
        ] {
            words.push(sql, column);
        }
        for (id, column) in [(&self.root_id, "t.root_id"), (&self.parent_id, "t.parent_id")] {
            if let Some(id) = id {
                sql.push(" and ").push(column).push(" = ").push_bind(id.clone());
            }
        }
        self.push_text(sql);
        self.push_numbers(sql);
    }

    fn push_text(&self, sql: &mut QueryBuilder<'_, Postgres>) {
        let Some(text) = &self.text else { return };
        let pattern = format!("%{}%", escaped(text));
        for (number, column) in ["t.name", "t.task_id", "t.args", "t.kwargs", "t.exception"]
            .iter()
            .enumerate()
        {
            sql.push(if number == 0 { " and (" } else { " or " }).push(column);
            sql.push(" like ").push_bind(pattern.clone());
        }
        sql.push(")");
    }

    fn push_numbers(&self, sql: &mut QueryBuilder<'_, Postgres>) {
        if let Some(seconds) = self.runtime_gt {
            sql.push(" and t.runtime > ").push_bind(seconds);
        }
        if let Some(seconds) = self.runtime_lt {
            sql.push(" and t.runtime < ").push_bind(seconds);
        }
        if let Some(seconds) = self.wait_gt {
            sql.push(" and t.started_at - coalesce(t.sent_at, t.received_at) > make_interval(secs => ");
            sql.push_bind(seconds).push(")");
        }
        if let Some(retries) = self.retries_gt {
            sql.push(" and t.retries > ").push_bind(i64::from(retries));
        }
        let column = match self.time_field {
            TimeField::Received => return,
            TimeField::Started => "t.started_at",
            TimeField::Finished => "t.finished_at",
        };
        if let Some(from) = self.from {
            sql.push(" and ")
                .push(column)
                .push(" >= kanchi.micros(")
                .push_bind(from.0)
                .push(")");
        }
        if let Some(to) = self.to {
            sql.push(" and ")
                .push(column)
                .push(" < kanchi.micros(")
                .push_bind(to.0)
                .push(")");
        }
    }

    /// Tells whether a live task matches. Brokers are the caller's.
    pub(super) fn matches(&self, task: &TaskSummary, first_seen: UnixMicros) -> bool {
        let state = TaskState::as_str(&task.state);
        self.state.matches(Some(state))
            && self.mark.matches(task.mark.as_deref())
            && self.name.matches(task.name.as_deref())
            && self.queue.matches(task.queue.as_deref())
            && self.worker.matches(task.worker.as_deref())
            && self.task_id.matches(Some(&task.task_id))
            && self.exception.matches(task.exception.as_deref())
            && self.args.matches(task.args.as_deref())
            && self.kwargs.matches(task.kwargs.as_deref())
            && self.result.matches(task.result.as_deref())
            && (self.root_id.is_none() || self.root_id == task.root_id)
            && (self.parent_id.is_none() || self.parent_id == task.parent_id)
            && self.matches_text(task)
            && self.matches_numbers(task, first_seen)
    }

    fn matches_text(&self, task: &TaskSummary) -> bool {
        let Some(text) = &self.text else { return true };
        [&task.name, &task.args, &task.kwargs, &task.exception]
            .into_iter()
            .flatten()
            .chain([&task.task_id])
            .any(|value| value.contains(text.as_str()))
    }

    fn matches_numbers(&self, task: &TaskSummary, first_seen: UnixMicros) -> bool {
        let waited = task
            .started_at
            .zip(task.sent_at.or(task.received_at))
            .map(|(started, sent)| started.0.saturating_sub(sent.0) as f64 / 1e6);
        let time = match self.time_field {
            TimeField::Received => Some(first_seen),
            TimeField::Started => task.started_at,
            TimeField::Finished => task.finished_at,
        };
        self.runtime_gt
            .is_none_or(|limit| task.runtime.is_some_and(|runtime| runtime > limit))
            && self
                .runtime_lt
                .is_none_or(|limit| task.runtime.is_some_and(|runtime| runtime < limit))
            && self
                .wait_gt
                .is_none_or(|limit| waited.is_some_and(|waited| waited > limit))
            && self.retries_gt.is_none_or(|limit| task.retries > limit)
            && self.from.is_none_or(|from| time.is_some_and(|time| time >= from))
            && self.to.is_none_or(|to| time.is_some_and(|time| time < to))
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_")
}

fn like(pattern: &str) -> String {
    escaped(pattern).replace('*', "%")
}

/// Matches a pattern in which `*` stands for any characters.
fn fits(pattern: &str, value: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == value;
    };
    let Some(mut value) = value.strip_prefix(head) else {
        return false;
    };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let tail = parts.pop().unwrap_or_default();
    for part in parts {
        match value.find(part).and_then(|at| value.get(at + part.len()..)) {
            Some(after) => value = after,
            None => return false,
        }
    }
    value.ends_with(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, value, wanted) in [
            ("shop.*", "shop.charge", true),
            ("shop.*", "sho", false),
            ("*.charge", "shop.charge", true),
            ("s*p.*ge", "shop.charge", true),
            ("a*a", "a", false),
            ("*", "", true),
            ("a*b*a", "aba", true),
            ("a*b*a", "ab", false),
            ("charge", "charges", false),
        ] {
            assert_eq!(fits(pattern, value), wanted, "{pattern} {value}");
        }
    }

    #[test]
    fn only_the_star_is_special() {
        assert_eq!(like(r"100%_\*"), r"100\%\_\\%");
    }

    #[test]
    fn knows_when_success_is_left_out() {
        let state = |any_of: &[&str], exclude| TaskFilter {
            state: Words {
                any_of: any_of.iter().map(|state| (*state).to_owned()).collect(),
                exclude,
            },
            ..TaskFilter::default()
        };
        assert!(state(&["FAILURE", "REVOKED"], false).is_unsuccessful());
        assert!(state(&["SUCCESS"], true).is_unsuccessful());
        assert!(!state(&["FAILURE", "SUCCESS"], false).is_unsuccessful());
        assert!(!state(&["FAILURE"], true).is_unsuccessful());
        assert!(!state(&["S*"], false).is_unsuccessful());
        assert!(!state(&[], true).is_unsuccessful());
        let mark = |mark: &str, exclude| TaskFilter {
            mark: Words {
                exclude,
                ..Words::one(mark)
            },
            ..TaskFilter::default()
        };
        assert!(mark("CRITICAL", false).is_unsuccessful());
        assert!(!mark("CRITICAL", true).is_unsuccessful());
        assert!(!mark("RECOVERED", false).is_unsuccessful());
    }
}
