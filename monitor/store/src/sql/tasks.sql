-- One row more than asked for per id is possible (live and settled); the caller joins them.
with page as (
    select task_id from (
        select task_id from kanchi.task_live where broker_id = $1 and task_id > $2
        union select task_id from kanchi.task where broker_id = $1 and task_id > $2
    ) as ids
    order by task_id limit $3
)
select broker_id, task_id, facts, true as live, queue from kanchi.task_live
where broker_id = $1 and task_id in (select task_id from page)
union all
select broker_id, task_id, facts, false, queue from kanchi.task
where broker_id = $1 and task_id in (select task_id from page)
order by 2
