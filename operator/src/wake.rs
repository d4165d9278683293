//! A queue of objects that something other than a watch wants looked at.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use futures::Stream;
use tokio::sync::Notify;

/// Namespaced names, each at most once: bounded by the number of objects.
#[derive(Debug, Default)]
pub struct WakeQueue {
    /// Held for set operations only.
    pending: Mutex<BTreeSet<(String, String)>>,
    notify: Notify,
}

impl WakeQueue {
    /// Asks for an object to be looked at.
    pub fn push(&self, namespace: &str, name: &str) {
        self.pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert((namespace.to_owned(), name.to_owned()));
        self.notify.notify_one();
    }

    fn pop(&self) -> Option<(String, String)> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).pop_first()
    }

    /// Returns the endless stream of names; for one consumer.
    pub fn stream(self: Arc<Self>) -> impl Stream<Item = (String, String)> + Send + 'static {
        futures::stream::unfold(self, |queue| async move {
            loop {
                if let Some(next) = queue.pop() {
                    return Some((next, queue));
                }
                queue.notify.notified().await;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;

    #[tokio::test]
    async fn gives_each_name_once_however_often_it_was_pushed() {
        let queue = Arc::new(WakeQueue::default());
        for _ in 0..3 {
            queue.push("shop", "orders");
        }
        queue.push("shop", "mails");
        let seen: Vec<_> = Arc::clone(&queue).stream().take(2).collect().await;
        assert_eq!(
            seen,
            [
                ("shop".to_owned(), "mails".to_owned()),
                ("shop".to_owned(), "orders".to_owned())
            ]
        );
        assert!(queue.pop().is_none());
    }
}
