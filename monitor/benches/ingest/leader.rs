//! What the operator's leader does in the store meanwhile: it keeps the live table small, begins generations of history and
//! rolls statistics up.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;
use kanchi_store::{StoreAdmin, StoreUrl};
use tokio::sync::oneshot;

/// How often the live table and the generation are looked at, as by the operator.
const ROOM: Duration = Duration::from_secs(5);

/// How often statistics are rolled up, as by the operator.
const ROLL_UPS: Duration = Duration::from_secs(30);

/// A thread that works until it is dropped. What fails, as when Postgres restarts, is tried again the next time.
pub(crate) struct Leader {
    thread: Option<JoinHandle<()>>,
    stop: Option<oneshot::Sender<()>>,
}

impl Leader {
    pub(crate) fn start(owner: StoreUrl) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    () = lead(&owner) => {}
                }
            });
        });
        Ok(Self {
            thread: Some(thread),
            stop: Some(stop),
        })
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap_or_default();
        }
    }
}

async fn lead(owner: &StoreUrl) {
    let mut rolled_up = Instant::now();
    loop {
        tokio::time::sleep(ROOM).await;
        let Ok(admin) = StoreAdmin::connect(owner).await else {
            continue;
        };
        let mut well = admin.advance_generation().await.is_ok() && admin.make_room().await.is_ok();
        if rolled_up.elapsed() >= ROLL_UPS {
            rolled_up = Instant::now();
            while well {
                well = admin.roll_up().await.is_ok_and(|done| done.more);
            }
        }
        admin.close().await;
    }
}
