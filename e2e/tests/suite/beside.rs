//! These run beside each other, each in a namespace of its own. They begin in the order of their names: `all_kinds` takes longest.

mod all_kinds;
mod burst;
mod children;
mod counts;
mod definitions;
mod no_broker;
mod reapplied;
mod secrets;
mod services;
mod tenancy;
