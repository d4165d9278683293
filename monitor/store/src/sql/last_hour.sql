-- Minutes are never stored before they happen, but for clocks that are off: a day of storage more is looked at.
select broker_id,
    coalesce(sum(count) filter (where transition = 'succeeded'), 0)::bigint,
    coalesce(sum(count) filter (where transition = 'failed'), 0)::bigint,
    coalesce(sum(count) filter (where transition = 'retried'), 0)::bigint
from kanchi.task_statistic
where minute > kanchi.micros($1) - interval '1 hour' and minute <= kanchi.micros($1)
    and stored_at >= kanchi.micros($1) - interval '2 days'
    and transition in ('succeeded', 'failed', 'retried')
group by broker_id
