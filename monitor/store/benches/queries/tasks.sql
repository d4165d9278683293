-- One day of settled tasks, in the order in which a monitor would have stored them. $1: days ago, $2: tasks, $3: facts.
-- Names, queues and workers by Zipf's law (n ^ random()), and the seven brokers, whose events must be theirs (events.sql);
-- one task in five belongs to a workflow of ten; half run longer than a second, one in a hundred longer than ten minutes.
-- A generation a day.
with generation as (
    insert into kanchi.task_generation (generation, began_at, index_bytes)
    values (100 - $1, now() - make_interval(days => $1::integer + 1), 0)
)
insert into kanchi.task (broker_id, retention_days, stored_at, generation, task_id, state, mark, name, queue, queue_inferred, worker,
    retries, root_id, parent_id, sent_at, received_at, started_at, finished_at, eta, expires, runtime, args, kwargs,
    result, exception, facts)
select broker, case when state <> 'SUCCESS' or broker % 2 = 0 or $1 >= 13 then 30 else 14 end, stored, 100 - $1,
    'b' || to_char($1, 'FM00') || lpad(to_hex(i), 12, '0') || '-0000-4000-8000-' || lpad(to_hex(i * 7919 % 281474976710655), 12, '0'),
    state, null, 'shop.' || split_part('orders billing email search', ' ', 1 + (name_number % 4)::integer) || '.task_' || name_number,
    'queue-' || name_number % 20, false, 'celery@worker-' || name_number % 20 || '-' || (random() * 5)::integer,
    case when random() < 0.05 then 1 else 0 end,
    case when i % 5 = 0 then 'r' || to_char($1, 'FM00') || lpad(to_hex(i / 50), 34, '0')
        else 'b' || to_char($1, 'FM00') || lpad(to_hex(i), 12, '0') || '-0000-4000-8000-' || lpad(to_hex(i * 7919 % 281474976710655), 12, '0') end,
    case when i % 5 = 0 then 'r' || to_char($1, 'FM00') || lpad(to_hex(i / 50), 34, '0') end,
    finished - make_interval(secs => runtime + 0.02), finished - make_interval(secs => runtime + 0.01),
    finished - make_interval(secs => runtime), finished, null, null, runtime,
    '(' || i || ', ''EUR'', {''customer'': ' || i % 100003 || '})', '{''retry'': False}',
    case when state = 'SUCCESS' then '{''charged'': ' || i || '}' end,
    case when state = 'FAILURE' then 'TimeoutError(''no answer from host ' || i % 97 || ''')' end, $3
from (
    select i, broker, state, name_number, runtime, stored, stored - interval '0.2 s' as finished
    from (
        select i, floor(8 ^ (i * 0.618034::double precision - floor(i * 0.618034::double precision)))::integer as broker,
            case when r < 0.955 then 'SUCCESS' when r < 0.985 then 'FAILURE' when r < 0.995 then 'REVOKED'
                when r < 0.998 then 'EXPIRED' else 'REJECTED' end as state,
            floor(200 ^ random())::bigint as name_number,
            case when d < 0.5 then d when d < 0.99 then 1 + (d - 0.5) * 60 else 600 + (d - 0.99) * 60000 end as runtime,
            now() - make_interval(days => $1::integer) - interval '1 day' * (1 - i::double precision / $2) as stored
        from (select i, random() as r, random() as d from generate_series(1, $2) as i) as drawn
    ) as shaped
) as task
