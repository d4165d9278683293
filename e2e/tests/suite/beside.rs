//! These run beside each other, each in a namespace of its own. They begin in the order of their names: `tasks` takes longest and all of the
//! processors, and comes beside those that need little.

mod burst;
mod children;
mod counts;
mod definitions;
mod no_broker;
mod reapplied;
mod secrets;
mod services;
mod tasks;
mod tenancy;
