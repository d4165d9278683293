-- task_events
-- Chunks of a task's events stored between $5 and $6, a minute more on either side, after $3. Day by day, so that each partition is
-- asked for its own minutes only; all of them at once bound the partitions that are opened. $7: `used_classes` of chunks.
with searched as materialized (
    select date_bin('1 minute', greatest(kanchi.micros($5) - interval '1 minute', kanchi.micros($3)),
            timestamptz '2000-01-01 00:00:00+00') as since,
        kanchi.micros($6) + interval '1 minute' as until
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
        and e.stored_at >= kanchi.micros($5) - interval '2 minutes' and e.stored_at <= kanchi.micros($6) + interval '1 minute'
        and kanchi.stored_in($7, e.retention_days, e.stored_at)
    offset 0
) as c
where c.stored_at > kanchi.micros($3)
order by c.stored_at, c.first_at
limit $4
