//! What the leader does to the store again and again: upkeep, purges, roll-ups, room in the live table.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use kanchi_store::{Purge, Purged, Room, StoreAdmin};

use crate::backoff;
use crate::lease::chain;
use crate::store_link::{Error, LONG_LIMIT, bounded, now};

/// How often partitions are made ahead and dropped.
const UPKEEP: Duration = Duration::from_mins(10);

/// An ordered purge rests so long first: a statement of the broker's monitor that was under way has ended by then.
const PURGE_REST: Duration = Duration::from_mins(2);

/// How often ordered purges are looked for.
const PURGES: Duration = Duration::from_secs(15);

/// A purge rests so many times as long as it worked: it takes at most a quarter of what one session can.
const PURGE_THROTTLE: u32 = 3;

/// How often statistics are rolled up: what charts have to add up by themselves grows until then.
const ROLL_UPS: Duration = Duration::from_secs(30);

/// A roll-up that has more to do rests so many times as long as it worked.
const ROLL_UP_THROTTLE: u32 = 3;

/// A purge rests at least so long between two steps.
const PURGE_PAUSE: Duration = Duration::from_millis(20);

/// How often the live table is looked at, and the generation of history: at 25,000 tasks a second 100 MB die in the one
/// meanwhile, and the other grows by 5 MB.
const ROOM: Duration = Duration::from_secs(5);

/// Dead rows that somebody holds are looked at again so much later.
const ROOM_HELD: Duration = Duration::from_mins(1);

/// Making room rests so many times as long as it worked.
const ROOM_THROTTLE: u32 = 9;

/// Does the upkeep again and again; returns why it failed.
pub(super) async fn keep_up(admin: &StoreAdmin) -> Error {
    loop {
        tokio::time::sleep(backoff::jittered(UPKEEP)).await;
        if let Err(error) = upkeep(admin).await {
            return error;
        }
    }
}

pub(super) async fn upkeep(admin: &StoreAdmin) -> Result<(), Error> {
    let done = bounded("do the store's upkeep", LONG_LIMIT, admin.upkeep(now())).await?;
    tracing::debug!(
        created = done.created,
        dropped = done.dropped,
        pruned = done.pruned,
        "store upkeep done"
    );
    Ok(())
}

/// Carries out ordered purges, a little at a time.
pub(super) async fn purge(admin: &StoreAdmin) -> Infallible {
    let mut purge = Purge::new(admin.clone(), PURGE_REST);
    let mut rows_gone = 0;
    loop {
        let began = Instant::now();
        let pause = match bounded("purge a history", LONG_LIMIT, purge.step()).await {
            Ok(Purged::Nothing) => PURGES,
            Ok(Purged::Some { rows }) => {
                rows_gone += rows;
                PURGE_PAUSE.max(began.elapsed() * PURGE_THROTTLE)
            }
            Ok(Purged::Brokers { count }) => {
                tracing::info!(brokers = count, rows = rows_gone, "histories purged");
                rows_gone = 0;
                PURGE_PAUSE
            }
            Err(error) => {
                tracing::warn!(error = %chain(&error), "histories not purged, trying again");
                backoff::jittered(PURGES)
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Rolls statistics up, a little at a time.
pub(super) async fn roll_up(admin: &StoreAdmin) -> Infallible {
    loop {
        let began = Instant::now();
        let pause = match bounded("roll up statistics", LONG_LIMIT, admin.roll_up()).await {
            Ok(done) if done.more => began.elapsed() * ROLL_UP_THROTTLE,
            Ok(_) => backoff::jittered(ROLL_UPS),
            Err(error) => {
                tracing::warn!(error = %chain(&error), "statistics not rolled up, trying again");
                backoff::jittered(ROLL_UPS)
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Keeps small what is written to again and again: the live table, which tasks pass through, and the newest generation of history.
pub(super) async fn make_room(admin: &StoreAdmin) -> Infallible {
    let mut was_held = false;
    loop {
        let began = Instant::now();
        let advancing = bounded("begin a generation of history", LONG_LIMIT, admin.advance_generation());
        if let Err(error) = advancing.await {
            tracing::warn!(error = %chain(&error), "no generation of history begun, trying again");
        }
        let mut pause = backoff::jittered(ROOM);
        match bounded("make room among live tasks", LONG_LIMIT, admin.make_room()).await {
            Ok(Room::Held) => {
                if !was_held {
                    tracing::warn!(
                        "ended tasks cannot be cleared away: a transaction that began before they ended is still open"
                    );
                }
                was_held = true;
                pause = backoff::jittered(ROOM_HELD);
            }
            Ok(Room::Enough | Room::Made) => was_held = false,
            Err(error) => tracing::warn!(error = %chain(&error), "no room made among live tasks, trying again"),
        }
        tokio::time::sleep(pause.max(began.elapsed() * ROOM_THROTTLE)).await;
    }
}
