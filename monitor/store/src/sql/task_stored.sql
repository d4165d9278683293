-- task_stored
-- From when to when events of a task were stored, as its rows say, give or take a minute for the clocks of two servers; of a task
-- without a row (history may end before the events do) as far back as events are kept. $3: `used_classes` of tasks.
with stored as (
    select l.first_seen_at as since, now() as until from kanchi.task_live l where l.broker_id = $1 and l.task_id = $2
    union all
    select coalesce(t.first_stored_at, t.stored_at), t.stored_at from kanchi.tasks_by_id($2, $3) t where t.broker_id = $1
), known as (
    select min(since) as since, max(until) as until from stored
)
select kanchi.unix_micros(greatest(coalesce(k.since, now() - make_interval(days => b.events_days + 1)), now() - interval '400 days')),
    kanchi.unix_micros(coalesce(k.until, now()))
from known k, kanchi.broker b where b.broker_id = $1
