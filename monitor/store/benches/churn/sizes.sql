-- Bytes of each table with its indexes and TOAST; of a partitioned one those partitions that rows were stored into since the
-- day $1: older ones were written anew when a day passed. Empty partitions are left out, whose indexes have a page each.
select coalesce((regexp_match(relname, '^(event_chunk|task|statistic|queue_sample|worker_sample)_\d+_(\d{8}|default)$'))[1], relname::text) as name,
    sum(pg_total_relation_size(oid))::bigint
from pg_class
where relnamespace = 'kanchi'::regnamespace and relkind = 'r'
    and case when relname ~ '_\d+_\d{8}$' then right(relname, 8) >= to_char($1::date, 'YYYYMMDD') else true end
    and (not relispartition or pg_relation_size(oid) > 0)
group by 1
union all
select 'pg_catalog', sum(pg_total_relation_size(oid))::bigint from pg_class
where relnamespace = 'pg_catalog'::regnamespace and relkind = 'r' and not relisshared
