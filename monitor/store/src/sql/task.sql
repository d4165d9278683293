select broker_id, task_id, facts, true as live, queue from kanchi.task_live
where broker_id = $1 and task_id = $2
union all
select broker_id, task_id, facts, false, queue from kanchi.tasks_by_id($2)
where broker_id = $1
