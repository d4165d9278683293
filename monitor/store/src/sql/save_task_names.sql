with saved as (
    insert into kanchi.task_name as n (broker_id, name, first_seen_at, last_seen_at)
    select r.broker_id, r.name, least(kanchi.micros(r.first_at), now()), least(kanchi.micros(r.last_at), now())
    from unnest($1::integer[], $2::text[], $3::bigint[], $4::bigint[]) as r (broker_id, name, first_at, last_at)
    order by r.broker_id, r.name
    on conflict (broker_id, name) do update set
        first_seen_at = least(n.first_seen_at, excluded.first_seen_at),
        last_seen_at = greatest(n.last_seen_at, excluded.last_seen_at)
    -- A name in use is written once in ten minutes, not with every step.
    where n.last_seen_at < excluded.last_seen_at - interval '10 minutes' or n.first_seen_at > excluded.first_seen_at
    returning broker_id, xmax = 0 as is_new
)
select distinct broker_id from saved where is_new
