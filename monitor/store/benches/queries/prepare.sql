-- Seven brokers, and the partitions of the last month.
insert into kanchi.broker (broker_id, namespace_uid, namespace, name, succeeded_days, failed_days, events_days, statistics_days)
select i, 'uid', 'shop', 'broker-' || i, case when i % 2 = 0 then 30 else 14 end, 30, 30, 365
from generate_series(1, 7) as i;
do $$
declare
    r record;
begin
    for r in select distinct m.* from generate_series(0, 32) as d,
        kanchi.missing_partitions(now() - make_interval(days => d), 3) as m
        where not exists (select from kanchi.expired_partitions(now()) as e where e.leaf = m.leaf) order by leaf
    loop
        perform kanchi.create_partition(r.parent, r.leaf, r.from_at, r.to_at);
    end loop;
    for r in select leaf from kanchi.expired_partitions(now()) loop
        execute format('drop table kanchi.%I', r.leaf);
    end loop;
end $$;
