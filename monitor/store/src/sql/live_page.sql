-- Live tasks behind a place, of each broker its first so many.
select l.broker_id, l.task_id, kanchi.unix_micros(l.first_seen_at), l.facts, l.queue
from unnest($1::integer[]) as b (broker_id) cross join lateral (
    select k.broker_id, k.task_id, k.first_seen_at, k.facts, k.queue
    from kanchi.task_live k
    where k.broker_id::bigint = b.broker_id and k.first_seen_at <= kanchi.micros($2)
        and k.first_seen_at >= kanchi.micros($5)
        and (k.first_seen_at < kanchi.micros($2) or (k.broker_id, k.task_id collate "C") > ($3, $4))
    order by k.first_seen_at desc, k.task_id collate "C"
    limit $6
) as l
