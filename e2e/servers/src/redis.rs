//! A real redis for tests.
