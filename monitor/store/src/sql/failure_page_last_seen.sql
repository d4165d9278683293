select kanchi.unix_micros(x.last_seen_at), x.broker_id, x.fingerprint, x.task, x.exception_class, x.message, x.failed,
    x.critical, kanchi.unix_micros(x.first_seen_at), kanchi.unix_micros(x.last_seen_at), x.last_task_id, x.example
from unnest($1::integer[]) as b (broker_id) cross join lateral (
    select * from kanchi.failure_group g
    where g.broker_id = b.broker_id and g.last_seen_at <= kanchi.micros($2)
        and (g.last_seen_at < kanchi.micros($2) or (g.broker_id, g.fingerprint) > ($3, $4))
        and ($5::text is null or g.task = $5)
    order by g.last_seen_at desc, g.fingerprint
    limit $6
) as x
order by x.last_seen_at desc, x.broker_id, x.fingerprint
limit $6
