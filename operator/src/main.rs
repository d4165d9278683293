//! The thin binary `kanchi-operator`.
fn main() {}
