-- Tasks that are not final: $1 of them within the last hour, $2: facts.
insert into kanchi.task_live (broker_id, task_id, first_seen_at, facts, state, name, queue, worker)
select floor(8 ^ random())::integer, 'live-' || lpad(to_hex(i), 31, '0'), now() - interval '1 hour' * random(), $2,
    (array['PENDING', 'RECEIVED', 'STARTED', 'STARTED'])[1 + i % 4], 'shop.orders.task_' || i % 40, 'queue-' || i % 20,
    'celery@worker-' || i % 20 || '-0'
from generate_series(1, $1) as i
