//! `kanchi-monitor run` as a process, on real brokers and a real Postgres.

#[expect(dead_code, reason = "shared with the benchmark, which uses all of it")]
#[path = "run/rig.rs"]
mod rig;

#[expect(
    dead_code,
    reason = "shared with the fault suite, which holds gaps against its faults"
)]
#[path = "faults/ledger.rs"]
mod ledger;
#[path = "faults/publisher.rs"]
mod publisher;

#[path = "run/clocks.rs"]
mod clocks;
#[path = "run/orphans.rs"]
mod orphans;
#[path = "run/owner.rs"]
mod owner;
#[path = "run/rabbitmq.rs"]
mod rabbitmq;
#[path = "run/redis.rs"]
mod redis;
#[path = "run/repair.rs"]
mod repair;
#[path = "run/reruns.rs"]
mod reruns;
#[path = "run/scene.rs"]
mod scene;
#[path = "run/standby.rs"]
mod standby;
