-- A day passes: rows go to the partitions of the day before, the oldest first, and the partitions that they leave are emptied.
-- Those of live tasks stay as they are: to update each would be a churn that no day has.
do $$
declare
    leaf record;
begin
    for leaf in
        select c.oid::regclass as name, (regexp_match(c.relname, '^(.*)_\d+_\d{8}$'))[1] as parent,
            string_agg(quote_ident(a.attname), ', ' order by a.attnum) as columns,
            string_agg(case when a.attname in ('stored_at', 'first_stored_at')
                then format('%I - interval ''1 day''', a.attname) else quote_ident(a.attname) end, ', ' order by a.attnum) as aged
        from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        where c.relnamespace = 'kanchi'::regnamespace and c.relkind = 'r' and c.relispartition
            and c.relname ~ '_\d+_\d{8}$' and pg_relation_size(c.oid) > 0
        group by c.oid, c.relname
        order by right(c.relname, 8)
    loop
        execute format('insert into kanchi.%I (%s) select %s from %s', leaf.parent, leaf.columns, leaf.aged, leaf.name);
        execute format('truncate %s', leaf.name);
    end loop;
    update kanchi.task_generation set began_at = began_at - interval '1 day' where isfinite(began_at);
end $$;
