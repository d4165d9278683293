-- The events of one day's tasks: two chunks of two events each, half a second apart. $1: days ago, $2: tasks, $3: events.
insert into kanchi.event_chunk (broker_id, retention_days, stored_at, task_id, first_at, event_count, events)
select floor(8 ^ (i * 0.618034::double precision - floor(i * 0.618034::double precision)))::integer, 30, stored + part * interval '0.5 s',
    'b' || to_char($1, 'FM00') || lpad(to_hex(i), 12, '0') || '-0000-4000-8000-' || lpad(to_hex(i * 7919 % 281474976710655), 12, '0'),
    stored, 2, $3
from (select i, now() - make_interval(days => $1::integer) - interval '1 day' * (1 - i::double precision / $2) as stored
    from generate_series(1, $2) as i) as tasks, generate_series(0, 1) as part
