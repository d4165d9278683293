//! The end-to-end tests: one file per area, one program, so that they link once.
//!
//! `make e2e` runs them all; `make e2e TEST=tenancy` those whose path has that word. They begin in the order of their paths: those that
//! run alone come first, so that none of them waits for a long one while the others wait for it.

mod alone;
mod beside;
