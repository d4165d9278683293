//! The thin binary `kanchi-monitor`.
fn main() {}
