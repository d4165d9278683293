//! Numbered migrations.

pub(crate) const LATEST: i32 = 1;
