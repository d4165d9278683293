-- The task's rows say when its events were stored, give or take a minute for the clocks of two servers; of a task without a row
-- (history may end before the events do) they are looked for as far back as events are kept. Not before the oldest partition, nor
-- before the place where the page begins. Day by day, so that each partition is asked for its own minutes only.
-- $5, $6: `used_classes` of tasks and of chunks.
with stored as (
    select l.first_seen_at as since, now() as until from kanchi.task_live l where l.broker_id = $1 and l.task_id = $2
    union all
    select coalesce(t.first_stored_at, t.stored_at), t.stored_at from kanchi.tasks_by_id($2, $5) t where t.broker_id = $1
), known as (
    select min(since) as since, max(until) as until from stored
), searched as (
    select date_bin('1 minute', greatest(
                coalesce(k.since, now() - make_interval(days => b.events_days + 1)) - interval '1 minute',
                now() - interval '400 days', kanchi.oldest_partition('event_chunk'), kanchi.micros($3)),
            timestamptz '2000-01-01 00:00:00+00') as since,
        coalesce(k.until, now()) + interval '1 minute' as until
    from known k, kanchi.broker b where b.broker_id = $1
), days as (
    select greatest(day, s.since) as since, least(day + interval '24 hours', s.until + interval '1 microsecond') as until
    from searched s, generate_series(date_bin('24 hours', s.since, timestamptz '2000-01-01 00:00:00+00'), s.until, interval '24 hours') as day
)
select kanchi.unix_micros(c.stored_at), c.events
from days d cross join lateral (
    select e.stored_at, e.first_at, e.events from kanchi.event_chunk e
    where date_bin('1 minute', e.stored_at, timestamptz '2000-01-01 00:00:00+00')
            = any (array(select generate_series(d.since, d.until, interval '1 minute')))
        and hashtextextended(e.task_id, 0) = hashtextextended($2, 0) and e.task_id = $2 and e.broker_id = $1
        and e.stored_at >= d.since and e.stored_at < d.until
        and kanchi.stored_in($6, e.retention_days, e.stored_at)
    offset 0
) as c
where c.stored_at > kanchi.micros($3)
order by c.stored_at, c.first_at
limit $4
