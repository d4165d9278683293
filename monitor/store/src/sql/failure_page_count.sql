-- `offset 0`: broker by broker. Without it the groups of all brokers are read, and those of others left out.
select g.failed, g.broker_id, g.fingerprint, g.task, g.exception_class, g.message, g.failed,
    g.critical, kanchi.unix_micros(g.first_seen_at), kanchi.unix_micros(g.last_seen_at), g.last_task_id, g.example
from unnest($1::integer[]) as b (broker_id) cross join lateral (
    select * from kanchi.failure_group k where k.broker_id = b.broker_id offset 0
) as g
where g.failed <= $2 and (g.failed < $2 or (g.broker_id, g.fingerprint) > ($3, $4))
    and ($5::text is null or g.task = $5)
order by g.failed desc, g.broker_id, g.fingerprint
limit $6
