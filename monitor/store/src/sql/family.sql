-- `offset 0`: the live rows must not have a say in which index is used.
-- Settled tasks of a workflow, and its root, which is not in the index of families. $4: `used_classes`.
select kanchi.unix_micros(coalesce(t.received_at, t.sent_at, t.started_at, t.finished_at, t.stored_at)) as place, {columns}
from (select * from kanchi.task k where k.broker_id::bigint = $1
    and hashtextextended(k.root_id, 0) = hashtextextended($2, 0) and k.root_id = $2 and k.root_id <> k.task_id
    and kanchi.stored_in($4, k.retention_days, k.stored_at) offset 0) as t
where not exists (select from kanchi.task_live l where l.broker_id = t.broker_id and l.task_id = t.task_id)
union all
select kanchi.unix_micros(coalesce(t.received_at, t.sent_at, t.started_at, t.finished_at, t.stored_at)), {columns}
from kanchi.tasks_by_id($2, $4) as t
where t.broker_id = $1 and not exists (select from kanchi.task_live l where l.broker_id = t.broker_id and l.task_id = t.task_id)
limit $3
