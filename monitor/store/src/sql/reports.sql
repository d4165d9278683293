select b.broker_id, b.namespace, b.name,
    extract(epoch from clock_timestamp() - h.beat_at)::double precision as age_seconds,
    h.instance, h.version, h.connection, h.reason, h.message, h.broker_version,
    (extract(epoch from h.last_event_at) * 1000000)::bigint as last_event_at,
    h.lag_seconds, h.events_per_second, h.workers_online, h.messages_queued, h.spool_bytes, h.event_queue, h.config_error,
    h.store_error, (extract(epoch from h.complete_until) * 1000000)::bigint as complete_until,
    q.queue_names, q.queue_ready, q.queue_consumers,
    g.gaps_last_day, g.gaps_open
from kanchi.broker b
left join kanchi.heartbeat h on h.broker_id = b.broker_id
cross join lateral (
    select coalesce(array_agg(name order by ready desc, name), '{}') as queue_names,
        coalesce(array_agg(ready order by ready desc, name), '{}') as queue_ready,
        coalesce(array_agg(consumers order by ready desc, name), '{}') as queue_consumers
    from (
        select name, ready, consumers from kanchi.queue
        where broker_id = b.broker_id order by ready desc, name limit 5
    ) as top
) as q
cross join lateral (
    select count(*) filter (where from_at > now() - interval '1 day') as gaps_last_day,
        count(*) filter (where to_at is null) as gaps_open
    from kanchi.gap where broker_id = b.broker_id
) as g
where b.retired_at is null
order by b.broker_id
