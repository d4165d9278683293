-- Rolled-up rows of seven brokers. $1: seconds of a step, $2: class, $3: days back, $4: names a step, $5: a histogram.
insert into kanchi.statistic (broker_id, retention_days, stored_at, step_seconds, starts_at, dimension, key, sent, received, started,
    retried, succeeded, failed, revoked, rejected, expired, orphaned, recovered, critical, runtime_micros, runtime, wait_micros, wait)
select broker, $2::smallint, date_trunc('day', at, 'UTC'), $1::integer, at, dimension, key, n, n, n, 0, n - n / 20, n / 20, 0, 0, 0, 0, 0, 0,
    n * 250000, $5::bytea, n * 10000, $5::bytea
from generate_series(1, 7) as broker,
    generate_series(date_bin(make_interval(secs => $1::integer), now() - make_interval(days => $3::integer), '2000-01-01 00:00:00+00'), now(),
        make_interval(secs => $1::integer)) as at,
    lateral (
        select 'all' as dimension, '' as key, 60 as n
        union all select 'task', 'shop.' || split_part('orders billing email search', ' ', 1 + number % 4) || '.task_' || number, 20
        from generate_series(1, $4::integer) as number
        union all select 'queue', 'queue-' || number, 3 from generate_series(0, $4::integer / 10) as number
        union all select 'worker', 'celery@worker-' || number || '-0', 3 from generate_series(0, $4::integer / 10) as number
    ) as keys
