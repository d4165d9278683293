-- What is not rolled up yet, half a minute's, is not counted. Minutes are never stored before they happen, but for clocks
-- that are off: a day of storage more is looked at.
-- A broker's own monitor says what it counts: nothing it says may make this fail for the others.
select broker_id, least(greatest(sum(succeeded), 0), 1e15)::bigint, least(greatest(sum(failed), 0), 1e15)::bigint,
    least(greatest(sum(retried), 0), 1e15)::bigint
from kanchi.statistic
where step_seconds = 60 and dimension = 'all' and retention_days <= 14
    and starts_at > kanchi.micros($1) - interval '1 hour' and starts_at <= kanchi.micros($1)
    and stored_at >= kanchi.micros($1) - interval '2 days'
group by broker_id
