-- All rows of an id, broker by broker, the live one first. $3: `used_classes`.
select broker_id, task_id, facts, live, queue from (
    select k.broker_id, k.task_id, k.facts, true as live, k.queue
    from unnest($1::integer[]) as b (broker_id) cross join lateral (
        select l.broker_id, l.task_id, l.facts, l.queue from kanchi.task_live l
        where l.broker_id = b.broker_id and l.task_id = $2 offset 0
    ) as k
    union all
    select t.broker_id, t.task_id, t.facts, false, t.queue from kanchi.tasks_by_id($2, $3) t
    where t.broker_id = any ($1::integer[])
) as rows
order by broker_id, live desc
