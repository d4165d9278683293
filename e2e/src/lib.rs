//! End-to-end tests on a real cluster: a harness of verbs, and the tests.
