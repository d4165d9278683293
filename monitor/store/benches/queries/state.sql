-- What is now: workers, queues and a day of their samples, groups of failures, names, gaps of seven brokers.
insert into kanchi.worker (broker_id, hostname, state, last_event_at)
select broker, 'celery@worker-' || number % 20 || '-' || number / 20, 'online', now()
from generate_series(1, 7) as broker, generate_series(0, 119) as number;
insert into kanchi.queue (broker_id, name, ready, sampled_at)
select broker, 'queue-' || number, number, now() from generate_series(1, 7) as broker, generate_series(0, 19) as number;
insert into kanchi.queue_sample (broker_id, retention_days, stored_at, sampled_at, queue_name, ready)
select broker, 7, at, at, 'queue-' || number, number
from generate_series(1, 7) as broker, generate_series(0, 19) as number,
    generate_series(now() - interval '23 hours', now(), interval '1 minute') as at;
insert into kanchi.failure_group (broker_id, fingerprint, task, exception_class, message, failed, critical, first_seen_at, last_seen_at,
    last_task_id, example)
select broker, md5(broker || ' ' || number)::uuid, 'shop.orders.task_' || number % 200, 'TimeoutError', 'no answer from host ' || number,
    number, 0, now() - interval '20 days', now() - make_interval(mins => number), 'task', 'TimeoutError'
from generate_series(1, 7) as broker, generate_series(1, 1000) as number;
insert into kanchi.task_name (broker_id, name, first_seen_at, last_seen_at)
select broker, 'shop.' || split_part('orders billing email search', ' ', 1 + number % 4) || '.task_' || number, now(), now()
from generate_series(1, 7) as broker, generate_series(1, 200) as number;
insert into kanchi.gap (broker_id, gap_id, from_at, to_at, cause)
select broker, md5(broker || ' ' || number)::uuid, now() - make_interval(hours => number), now() - make_interval(hours => number, secs => -9),
    'Restart'
from generate_series(1, 7) as broker, generate_series(1, 200) as number;
