-- task_stored
-- From when to when events of a task were stored, as its rows say, give or take a minute for the clocks of two servers; of a task
-- without a row (history may end before the events do) as far back as any are kept. $3, $4: `used_classes` of tasks and of chunks.
with stored as (
    select l.first_seen_at as since, now() as until from kanchi.task_live l where l.broker_id = $1 and l.task_id = $2
    union all
    select coalesce(t.first_stored_at, t.stored_at), t.stored_at from kanchi.tasks_by_id($2, $3) t where t.broker_id = $1
), known as (
    select min(since) as since, max(until) as until from stored
), kept as (
    select coalesce(max(class + kanchi.partition_days(class)), 0) + 1 as days from unnest($4) as class
)
select kanchi.unix_micros(greatest(k.since, now() - make_interval(days => kept.days))), kanchi.unix_micros(coalesce(k.until, now()))
from known k, kept
