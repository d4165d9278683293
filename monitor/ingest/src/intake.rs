//! The first half of the event path: from the broker's stream to a batch of tasks' news.
//!
//! ```text
//! source ─► [buffer ─► spool]* ─► decoder: message ─► gather, until filling says that it is enough      * Redis only
//!                      own ─────────►
//! ```

pub mod buffer;
pub mod decoder;
pub mod filling;
pub mod gather;
pub mod message;
pub mod own;
pub mod source;
pub mod spool;
