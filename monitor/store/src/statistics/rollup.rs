//! The roll-up: takes delta rows away and adds them to their minute, hour and day, a bounded number in one transaction.
//!
//! What is taken and what is added is one transaction, so no delta is lost or counted twice, whatever ends the process; one
//! that comes late is added to whatever minute it belongs to, like any other.

use std::collections::{BTreeMap, HashMap};

use sqlx::postgres::PgRow;
use sqlx::{Executor, PgConnection, Row};

use super::codec::{self, decode_histogram, push_histogram};
use super::names::Names;
use super::range::Resolution;
use super::{Counts, Dimension, Durations, KEYS_PER_BATCH, Measures, OTHER, Transition};
use crate::admin::StoreAdmin;
use crate::connection::within;
use crate::error::{During, Error, ErrorKind, Result};
use crate::retention::RetentionClass;

const OPERATION: &str = "roll up statistics";

/// Delta rows that one step takes.
const STEP: usize = 256;

/// Bytes of payload after which a step takes no more.
const STEP_BYTES: usize = 1024 * 1024;

/// Rows that are sent together.
const TOGETHER: usize = 2_000;

/// What [`StoreAdmin::roll_up`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RolledUp {
    /// Delta rows taken.
    pub taken: u64,
    /// Those of them that could not be read; they are dropped.
    pub damaged: u64,
    /// There may be more to take now.
    pub more: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    broker: i32,
    class: RetentionClass,
    resolution: Resolution,
    /// Seconds since 1970.
    starts_at: i64,
    dimension: Dimension,
    key: String,
}

/// What the taken rows come to.
#[derive(Debug, Default)]
struct Sums {
    measures: BTreeMap<Place, Measures>,
    /// Keys told apart so far.
    keys: HashMap<(i32, Resolution, i64, Dimension), usize>,
    names: Names,
}

impl Sums {
    fn add(&mut self, mut place: Place, measures: &Measures) {
        if let Some(known) = self.measures.get_mut(&place) {
            known.merge(measures);
            return;
        }
        let within = (place.broker, place.resolution, place.starts_at, place.dimension);
        let keys = self.keys.entry(within).or_default();
        *keys += 1;
        if *keys > KEYS_PER_BATCH && place.dimension != Dimension::All {
            OTHER.clone_into(&mut place.key);
        }
        self.measures.entry(place).or_default().merge(measures);
    }
}

impl StoreAdmin {
    /// Rolls up the oldest deltas: at most 256 rows or a megabyte, in a transaction of its own. Call until there is no more,
    /// with rests, and again every half minute. A second roll-up waits for the first.
    ///
    /// Deltas of brokers whose purge is ordered are dropped.
    pub async fn roll_up(&self) -> Result<RolledUp> {
        within(OPERATION, async {
            if !any(&self.pool).await? {
                return Ok(RolledUp::default());
            }
            let mut transaction = self.pool.begin().await.during(OPERATION)?;
            let done = step(&mut transaction).await?;
            transaction.commit().await.during(OPERATION)?;
            Ok(done)
        })
        .await
    }
}

/// Tells whether there is anything to do, without writing or locking.
async fn any(pool: &sqlx::PgPool) -> Result<bool> {
    let query = sqlx::query("select exists (select from kanchi.statistic_delta)");
    Ok(query.fetch_one(pool).await.during(OPERATION)?.get(0))
}

async fn step(connection: &mut PgConnection) -> Result<RolledUp> {
    // Whatever the planner thinks of a table that was empty a moment ago.
    connection
        .execute("set local enable_seqscan = off; select from kanchi.roll_up for update")
        .await
        .during(OPERATION)?;
    let query = sqlx::query(include_str!("../sql/take_deltas.sql"))
        .bind(STEP as i64)
        .bind(STEP_BYTES as i64);
    let taken = query.fetch_all(&mut *connection).await.during(OPERATION)?;
    let classes = classes(connection, &taken).await?;
    let (mut sums, mut damaged) = (Sums::default(), 0);
    for row in &taken {
        let broker: i32 = row.get(0);
        let Some(class) = classes.get(&broker) else { continue };
        if let Err(error) = add(&mut sums, broker, *class, row) {
            damaged += 1;
            tracing::warn!(store.key = broker, %error, "statistics of a batch are dropped");
        }
    }
    save(connection, sums.measures).await?;
    sums.names.save(connection).await?;
    let bytes: usize = taken.iter().map(|row| row.get::<&[u8], _>(2).len()).sum();
    let done = RolledUp {
        taken: taken.len() as u64,
        damaged,
        more: taken.len() >= STEP || bytes >= STEP_BYTES,
    };
    let query = sqlx::query("update kanchi.roll_up set ran_at = now(), taken = taken + $1, damaged = damaged + $2");
    let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let query = query.bind(count(done.taken)).bind(count(damaged));
    query.execute(connection).await.during(OPERATION)?;
    Ok(done)
}

/// Returns the class of each broker's statistics; none for brokers that are purged.
async fn classes(connection: &mut PgConnection, taken: &[PgRow]) -> Result<HashMap<i32, RetentionClass>> {
    let mut brokers: Vec<i32> = taken.iter().map(|row| row.get(0)).collect();
    brokers.dedup();
    let query = sqlx::query(
        "select broker_id, statistics_days from kanchi.broker
         where broker_id = any ($1) and purge_ordered_at is null",
    );
    let rows = query.bind(brokers).fetch_all(connection).await.during(OPERATION)?;
    let one = |row: &PgRow| {
        let days = u16::try_from(row.get::<i16, _>(1)).unwrap_or(u16::MAX);
        Ok((row.get(0), RetentionClass::from_days(days)?))
    };
    rows.iter().map(one).collect()
}

fn add(sums: &mut Sums, broker: i32, class: RetentionClass, row: &PgRow) -> Result<(), codec::Damaged> {
    let minute: i64 = row.get(1);
    for (dimension, key, measures) in codec::decode(row.get(2))? {
        sums.names.add(broker, dimension, key, minute);
        for resolution in Resolution::ALL {
            let place = Place {
                broker,
                class: resolution.class(class),
                resolution,
                starts_at: resolution.floor(minute),
                dimension,
                key: key.to_owned(),
            };
            sums.add(place, &measures);
        }
    }
    Ok(())
}

async fn save(connection: &mut PgConnection, sums: BTreeMap<Place, Measures>) -> Result<()> {
    let mut rows: Vec<(Place, Measures)> = sums.into_iter().filter(|(_, measures)| !measures.is_zero()).collect();
    let today = "select extract(epoch from date_trunc('day', now() at time zone 'UTC') at time zone 'UTC')::bigint";
    let today: i64 = sqlx::query(today)
        .fetch_one(&mut *connection)
        .await
        .during(OPERATION)?
        .get(0);
    for rows in rows.chunks_mut(TOGETHER) {
        join_stored(connection, rows, today).await?;
        upsert(connection, rows, today).await?;
    }
    Ok(())
}

/// Adds what is stored of these rows already.
async fn join_stored(connection: &mut PgConnection, rows: &mut [(Place, Measures)], today: i64) -> Result<()> {
    let query = bind_places(sqlx::query(include_str!("../sql/load_statistics.sql")), rows, today);
    let stored = query.fetch_all(connection).await.during(OPERATION)?;
    for row in &stored {
        let number = usize::try_from(row.get::<i64, _>(0) - 1).unwrap_or(usize::MAX);
        if let Some((_, measures)) = rows.get_mut(number) {
            measures.merge(&measures_of(row, 1)?);
        }
    }
    Ok(())
}

async fn upsert(connection: &mut PgConnection, rows: &[(Place, Measures)], today: i64) -> Result<()> {
    let mut query = bind_places(sqlx::query(include_str!("../sql/save_statistics.sql")), rows, today);
    for transition in Transition::ALL {
        query = query.bind(
            rows.iter()
                .map(|(_, measures)| measures.counts.get(transition))
                .collect::<Vec<_>>(),
        );
    }
    for durations in [
        (|measures| &measures.runtime) as fn(&Measures) -> &Durations,
        |measures| &measures.wait,
    ] {
        let histogram = |(_, measures): &(Place, Measures)| {
            let mut bytes = Vec::new();
            push_histogram(&mut bytes, &durations(measures).histogram);
            bytes
        };
        query = query.bind(
            rows.iter()
                .map(|(_, measures)| durations(measures).sum_micros)
                .collect::<Vec<_>>(),
        );
        query = query.bind(rows.iter().map(histogram).collect::<Vec<_>>());
    }
    query.execute(connection).await.during(OPERATION).map(drop)
}

type Query<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;

fn bind_places<'q>(query: Query<'q>, rows: &[(Place, Measures)], today: i64) -> Query<'q> {
    let places = || rows.iter().map(|(place, _)| place);
    let class = |place: &Place| i16::try_from(place.class.days()).unwrap_or(i16::MAX);
    query
        .bind(today)
        .bind(places().map(|place| place.broker).collect::<Vec<_>>())
        .bind(places().map(class).collect::<Vec<_>>())
        .bind(places().map(|place| place.resolution.seconds()).collect::<Vec<_>>())
        .bind(places().map(|place| place.starts_at).collect::<Vec<_>>())
        .bind(places().map(|place| place.dimension.as_str()).collect::<Vec<_>>())
        .bind(places().map(|place| place.key.clone()).collect::<Vec<_>>())
}

/// Reads the measures of a stored row, whose columns from this one on are the counts, then sums and histograms.
pub(super) fn measures_of(row: &PgRow, first: usize) -> Result<Measures> {
    let mut counts = Counts::default();
    for (transition, column) in Transition::ALL.into_iter().zip(first..) {
        counts.add(transition, row.get(column));
    }
    let durations = |column: usize| {
        let histogram = decode_histogram(row.get(column + 1))
            .map_err(|error| Error::new(ErrorKind::Other, "read statistics", error.to_string()))?;
        Ok::<_, Error>(Durations {
            sum_micros: row.get(column),
            histogram,
        })
    };
    Ok(Measures {
        counts,
        runtime: durations(first + Transition::ALL.len())?,
        wait: durations(first + Transition::ALL.len() + 2)?,
    })
}
