//! Charts, key figures, top lists: named queries over what is rolled up and what is not yet, in one snapshot: the roll-up
//! moves rows from one table to the other.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use futures::TryStreamExt;
use kanchi_domain::UnixMicros;
use sqlx::{PgConnection, Postgres, Row, Transaction};

use super::range::{self, MAX_POINTS, Piece, Resolution};
use super::rollup::measures_of;
use super::{Dimension, Measures, Transition, codec};
use crate::error::{During, Error, ErrorKind, Result};
use crate::query::{StoreQuery, set_timeout, used_classes};

const OPERATION: &str = "read statistics";

/// What the server gives to one statement: a year of all brokers is more than a list's page.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);

/// Keys of one answer.
pub const MAX_KEYS: usize = 20;

/// Keys that a top list is chosen from, by what is rolled up.
const CANDIDATES: usize = 10_000;

/// What statistics are asked for.
#[derive(Clone, Debug)]
pub struct StatisticsQuery {
    /// Of these brokers, together; `None`: of all.
    pub brokers: Option<Vec<i32>>,
    /// What the keys name.
    pub dimension: Dimension,
    /// Which keys.
    pub select: Select,
    /// The beginning of the range.
    pub from: UnixMicros,
    /// Its end, which does not belong to it.
    pub to: UnixMicros,
    /// The time of the question.
    pub now: UnixMicros,
}

/// Which keys are asked for.
#[derive(Clone, Debug)]
pub enum Select {
    /// These, at most [`MAX_KEYS`]. [`Dimension::All`] has one, the empty one; elsewhere that is what has no name.
    Keys(Vec<String>),
    /// Those with the most of a transition in the range, the most first.
    Top {
        /// The transition.
        by: Transition,
        /// How many, at most [`MAX_KEYS`].
        count: usize,
    },
}

/// Lines over one time axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// How long each point is.
    pub resolution: Resolution,
    /// Where the first point begins.
    pub from: UnixMicros,
    /// Where the last one ends.
    pub to: UnixMicros,
    /// One for each key, in the order asked for.
    pub series: Vec<Series>,
}

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// The key.
    pub key: String,
    /// Its points, oldest first; none where nothing was counted.
    pub points: Vec<Point>,
}

/// A point of a line. Counts and quantiles come from its measures.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Where its minute, hour or day begins.
    pub at: UnixMicros,
    /// What was counted.
    pub measures: Measures,
}

/// What a key comes to over a whole range.
#[derive(Clone, Debug, PartialEq)]
pub struct Figures {
    /// The key.
    pub key: String,
    /// What was counted.
    pub measures: Measures,
}

/// What is asked, of which brokers.
#[derive(Clone, Copy, Debug)]
struct Asked<'q> {
    query: &'q StatisticsQuery,
    brokers: &'q [i32],
    /// Retention classes that have rows.
    classes: &'q [i16],
}

/// What is not rolled up yet, by point (zero: all in one) and key.
type Fresh = BTreeMap<(i64, String), Measures>;

impl StoreQuery {
    /// Returns a chart, in the resolution given or else in the one that suits its range; at most [`MAX_POINTS`] points a
    /// line ([`ErrorKind::Invalid`] otherwise). The range grows to whole points. Five seconds a statement at most.
    pub async fn chart(&self, query: &StatisticsQuery, resolution: Option<Resolution>) -> Result<Chart> {
        let resolution = resolution.unwrap_or_else(|| Resolution::of_chart(query.from, query.to, query.now));
        let whole = Piece::covering(resolution, query.from, query.to);
        if whole.from >= whole.to || whole.points() > MAX_POINTS {
            let message = format!(
                "{} points of {} s, not 1 to {MAX_POINTS}",
                whole.points(),
                resolution.seconds()
            );
            return Err(Error::new(ErrorKind::Invalid, OPERATION, message));
        }
        check(&query.select)?;
        let (mut snapshot, brokers, classes) = self.begin(query).await?;
        let asked = Asked {
            query,
            brokers: &brokers,
            classes: &classes,
        };
        let fresh = fresh(&mut snapshot, asked, whole, Some(resolution)).await?;
        let keys = keys(&mut snapshot, asked, &whole.coarsened(), &fresh).await?;
        let mut points: BTreeMap<(String, i64), Measures> = BTreeMap::new();
        for ((at, key), measures) in fresh.into_iter().filter(|((_, key), _)| keys.contains(key)) {
            points.entry((key, at)).or_default().merge(&measures);
        }
        stored(&mut snapshot, asked, &keys, whole, |at, key, measures| {
            points.entry((key.to_owned(), at)).or_default().merge(&measures);
        })
        .await?;
        snapshot.commit().await.during(OPERATION)?;
        let mut lines: HashMap<String, Vec<Point>> = HashMap::new();
        for ((key, at), measures) in points {
            let at = UnixMicros(at * 1_000_000);
            lines.entry(key).or_default().push(Point { at, measures });
        }
        let line = |key: String| Series {
            points: lines.remove(&key).unwrap_or_default(),
            key,
        };
        Ok(Chart {
            resolution,
            from: UnixMicros(whole.from * 1_000_000),
            to: UnixMicros(whole.to * 1_000_000),
            series: keys.into_iter().map(line).collect(),
        })
    }

    /// Returns what each key comes to over the range: key figures, or a top list. The range grows to whole minutes (hours, or
    /// days, where its minutes are not kept any more). Five seconds a statement at most.
    pub async fn figures(&self, query: &StatisticsQuery) -> Result<Vec<Figures>> {
        check(&query.select)?;
        let pieces = range::pieces(query.from, query.to, query.now);
        let Some((first, last)) = pieces.first().zip(pieces.last()) else {
            return Err(Error::new(
                ErrorKind::Invalid,
                OPERATION,
                "the range ends before it begins",
            ));
        };
        let whole = Piece { to: last.to, ..*first };
        let (mut snapshot, brokers, classes) = self.begin(query).await?;
        let asked = Asked {
            query,
            brokers: &brokers,
            classes: &classes,
        };
        let fresh = fresh(&mut snapshot, asked, whole, None).await?;
        let keys = keys(&mut snapshot, asked, &pieces, &fresh).await?;
        let mut sums: HashMap<String, Measures> = HashMap::new();
        for ((_, key), measures) in &fresh {
            sums.entry(key.clone()).or_default().merge(measures);
        }
        for piece in &pieces {
            stored(&mut snapshot, asked, &keys, *piece, |_, key, measures| {
                sums.entry(key.to_owned()).or_default().merge(&measures);
            })
            .await?;
        }
        snapshot.commit().await.during(OPERATION)?;
        let figures = |key: String| Figures {
            measures: sums.remove(&key).unwrap_or_default(),
            key,
        };
        Ok(keys.into_iter().map(figures).collect())
    }

    /// Begins a snapshot of both tables, and says which brokers are asked for, and which retention classes have rows.
    async fn begin(&self, query: &StatisticsQuery) -> Result<(Transaction<'static, Postgres>, Vec<i32>, Vec<i16>)> {
        let mut snapshot = self.snapshot(OPERATION).await?;
        set_timeout(&mut snapshot, STATEMENT_TIMEOUT).await?;
        let brokers = self.brokers(&mut snapshot, query.brokers.as_deref()).await?;
        let classes = used_classes(&mut snapshot, "statistic").await?;
        Ok((snapshot, brokers, classes))
    }
}

fn check(select: &Select) -> Result<()> {
    let count = match select {
        Select::Keys(keys) => keys.len(),
        Select::Top { count, .. } => *count,
    };
    if count > MAX_KEYS {
        let message = format!("{count} keys, more than {MAX_KEYS}");
        return Err(Error::new(ErrorKind::Invalid, OPERATION, message));
    }
    Ok(())
}

/// Reads what is not rolled up yet.
async fn fresh(
    connection: &mut PgConnection,
    asked: Asked<'_>,
    whole: Piece,
    resolution: Option<Resolution>,
) -> Result<Fresh> {
    let deltas = sqlx::query(
        "select extract(epoch from minute)::bigint, payload from kanchi.statistic_delta
         where broker_id = any ($1) and minute >= kanchi.micros($2 * 1000000) and minute < kanchi.micros($3 * 1000000)",
    );
    let mut rows = deltas
        .bind(asked.brokers)
        .bind(whole.from)
        .bind(whole.to)
        .fetch(connection);
    let mut fresh = Fresh::new();
    while let Some(row) = rows.try_next().await.during(OPERATION)? {
        let at = resolution.map_or(0, |resolution| resolution.floor(row.get(0)));
        // What cannot be read is counted and dropped by the roll-up.
        for (dimension, key, measures) in codec::decode(row.get(1)).unwrap_or_default() {
            if dimension == asked.query.dimension {
                fresh.entry((at, key.to_owned())).or_default().merge(&measures);
            }
        }
    }
    Ok(fresh)
}

/// Chooses the keys.
async fn keys(connection: &mut PgConnection, asked: Asked<'_>, pieces: &[Piece], fresh: &Fresh) -> Result<Vec<String>> {
    let (by, count) = match &asked.query.select {
        Select::Keys(keys) => return Ok(keys.clone()),
        Select::Top { by, count } => (*by, *count),
    };
    let mut ranks: HashMap<String, i64> = HashMap::new();
    for ((_, key), measures) in fresh {
        let rank = ranks.entry(key.clone()).or_default();
        *rank = rank.saturating_add(measures.counts.get(by));
    }
    // The column is a word of this crate. The sum may be a hostile one.
    let statement = format!(
        "select key, least(greatest(sum({0}), -1e15), 1e15)::bigint from kanchi.statistic
         where broker_id = any ($1) and dimension = $2 and step_seconds = $3
            and starts_at >= kanchi.micros($4 * 1000000) and starts_at < kanchi.micros($5 * 1000000)
            and stored_at >= kanchi.micros($4 * 1000000) - interval '2 days'
            and kanchi.stored_in($6, retention_days, stored_at) and {0} <> 0
         group by key order by 2 desc limit {CANDIDATES}",
        by.as_str()
    );
    for piece in pieces {
        let ranked = bound(sqlx::query(&statement), asked, *piece);
        let mut rows = ranked.fetch(&mut *connection);
        while let Some(row) = rows.try_next().await.during(OPERATION)? {
            let rank = ranks.entry(row.get(0)).or_default();
            *rank = rank.saturating_add(row.get(1));
        }
    }
    let mut ranks: Vec<(String, i64)> = ranks.into_iter().filter(|(_, rank)| *rank > 0).collect();
    ranks.sort_unstable_by(|(key, rank), (other_key, other)| other.cmp(rank).then_with(|| key.cmp(other_key)));
    ranks.truncate(count);
    Ok(ranks.into_iter().map(|(key, _)| key).collect())
}

/// Reads what is rolled up, row by row: start, key, measures.
async fn stored(
    connection: &mut PgConnection,
    asked: Asked<'_>,
    keys: &[String],
    piece: Piece,
    mut take: impl FnMut(i64, &str, Measures),
) -> Result<()> {
    let mut each_once = keys.to_vec();
    each_once.sort_unstable();
    each_once.dedup();
    let mut rows = bound(sqlx::query(include_str!("../sql/load_series.sql")), asked, piece)
        .bind(each_once)
        .fetch(connection);
    while let Some(row) = rows.try_next().await.during(OPERATION)? {
        take(row.get(0), row.get(1), measures_of(&row, 2)?);
    }
    Ok(())
}

type Query<'q> = sqlx::query::Query<'q, Postgres, sqlx::postgres::PgArguments>;

fn bound<'q>(statement: Query<'q>, asked: Asked<'_>, piece: Piece) -> Query<'q> {
    let longest = piece.resolution.longest().days();
    let can_be = |class: &i16| u16::try_from(*class).is_ok_and(|class| class <= longest);
    let classes: Vec<i16> = asked.classes.iter().copied().filter(can_be).collect();
    statement
        .bind(asked.brokers.to_vec())
        .bind(asked.query.dimension.as_str())
        .bind(piece.resolution.seconds())
        .bind(piece.from)
        .bind(piece.to)
        .bind(classes)
}
