select broker_id, task_id, facts, true as live, queue from kanchi.task_live
where broker_id = $1 and task_id = $2
union all
select broker_id, task_id, facts, false, queue from kanchi.task
where broker_id = $1 and task_id = $2 and hashtextextended(task_id, 0) = hashtextextended($2, 0)
