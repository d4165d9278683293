-- Partitions: by retention class, then by day of storage. A day's partition is dropped when its class is over.

-- One level per class. A default partition catches what upkeep did not prepare for, so that no row is ever refused.
do $$
declare
    parent text;
    class integer;
begin
    foreach parent in array array['event_chunk', 'task', 'statistic', 'queue_sample', 'worker_sample'] loop
        foreach class in array array[1, 3, 7, 14, 30, 90, 365] loop
            execute format('create table kanchi.%I partition of kanchi.%I for values in (%s) partition by range (stored_at)',
                parent || '_' || class, parent, class);
            execute format('create table kanchi.%I partition of kanchi.%I default',
                parent || '_' || class || '_default', parent || '_' || class);
        end loop;
    end loop;
end $$;

-- Days that one partition of a class spans: long classes have wider ones, to keep them few.
create function kanchi.partition_days(p_class integer) returns integer
language sql immutable as $$
    select case when p_class >= 365 then 30 when p_class >= 90 then 7 else 1 end
$$;

-- Days of the rows that no upkeep had prepared for: with the operator away for longer than it prepares ahead.
create function kanchi.stranded_days() returns table (table_name text, class integer, day integer)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
    foreach table_name in array array['event_chunk', 'task', 'statistic', 'queue_sample', 'worker_sample'] loop
        foreach class in array array[1, 3, 7, 14, 30, 90, 365] loop
            for day in execute format('select distinct floor(extract(epoch from stored_at) / 86400)::integer
                from kanchi.%I', table_name || '_' || class || '_default')
            loop
                return next;
            end loop;
        end loop;
    end loop;
end $$;

-- Partitions that should be there and are not: from a day back (a transaction may have begun before midnight) to
-- `p_ahead_days` from now, and where rows lie that have none.
create function kanchi.missing_partitions(p_now timestamptz, p_ahead_days integer)
returns table (parent text, leaf text, from_at timestamptz, to_at timestamptz)
language sql stable set search_path = pg_catalog, pg_temp as $$
    select class_table, leaf_name, start_at, start_at + make_interval(days => width)
    from (
        select distinct
            table_name || '_' || class as class_table,
            width,
            timestamptz 'epoch' + make_interval(days => day / width * width) as start_at,
            table_name || '_' || class || '_'
                || to_char(date '1970-01-01' + day / width * width, 'YYYYMMDD') as leaf_name
        from (
            select table_name, class, kanchi.partition_days(class) as width, day
            from unnest(array['event_chunk', 'task', 'statistic', 'queue_sample', 'worker_sample']) as table_name,
                unnest(array[1, 3, 7, 14, 30, 90, 365]) as class,
                generate_series(
                    (extract(epoch from p_now) / 86400)::integer - 1,
                    (extract(epoch from p_now) / 86400)::integer + p_ahead_days) as day
            union
            select table_name, class, kanchi.partition_days(class), day from kanchi.stranded_days()
        ) as days
    ) as wanted
    where to_regclass(format('kanchi.%I', leaf_name)) is null
    order by start_at, leaf_name
$$;

-- Creates one partition. Attaching takes a lock that lets writers go on, except on the default partition, which is
-- empty but after an upkeep that was missed; then its rows of this range move over first.
create function kanchi.create_partition(p_parent text, p_leaf text, p_from timestamptz, p_to timestamptz) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    spare text := p_parent || '_default';
begin
    execute format('create table kanchi.%I (like kanchi.%I including defaults including constraints)', p_leaf, p_parent);
    execute format('lock table kanchi.%I in access exclusive mode', spare);
    execute format('with moved as (delete from kanchi.%I where stored_at >= $1 and stored_at < $2 returning *)
        insert into kanchi.%I select * from moved', spare, p_leaf) using p_from, p_to;
    execute format('alter table kanchi.%I attach partition kanchi.%I for values from (%L) to (%L)',
        p_parent, p_leaf, p_from, p_to);
end $$;

-- Partitions whose every row is older than its class allows.
create function kanchi.expired_partitions(p_now timestamptz) returns table (leaf text)
language sql stable set search_path = pg_catalog, pg_temp as $$
    select relname
    from (
        select relname::text, (regexp_match(relname, '_(\d+)_(\d{8})$'))[1]::integer as class,
            to_date((regexp_match(relname, '_(\d+)_(\d{8})$'))[2], 'YYYYMMDD') as day
        from pg_class
        where relnamespace = 'kanchi'::regnamespace and relkind = 'r' and relispartition
            and relname ~ '^(event_chunk|task|statistic|queue_sample|worker_sample)_\d+_\d{8}$'
    ) as leaves
    where timestamptz 'epoch' + make_interval(days => (day - date '1970-01-01') + kanchi.partition_days(class) + class)
        <= p_now
    order by 1
$$;

-- The classes of a table that have rows: a file without bytes holds none. Queries name them, so that the partitions of the others
-- need not be opened: each that a plan may read costs a query some forty microseconds, in which it reads nothing yet.
create function kanchi.used_classes(p_table text) returns smallint[]
language sql stable set search_path = pg_catalog, pg_temp as $$
    select array(
        select class from unnest(array[1, 3, 7, 14, 30, 90, 365]::smallint[]) as class
        where exists (
            select from pg_inherits
            where inhparent = format('kanchi.%s_%s', p_table, class)::regclass and pg_relation_size(inhrelid) > 0))
$$;

-- Whether a row is in one of these classes, and not in a partition that waits for days to come: none is stored in the future. Put in
-- its place, it chooses partitions before they are opened; each class by itself, since Postgres chooses none by an array.
create function kanchi.stored_in(p_classes smallint[], p_retention_days smallint, p_stored_at timestamptz) returns boolean
language sql stable parallel safe as $$
    select p_retention_days in (p_classes[1], p_classes[2], p_classes[3], p_classes[4], p_classes[5], p_classes[6], p_classes[7])
        and p_stored_at < now() + interval '1 day'
$$;

-- === Generations: the index of tasks by id ===

-- Ids come in no order. Once one index over all of them has outgrown the server's buffers, each row reads, writes and logs a
-- page of its own. So each row of history has the number of the newest generation, the index begins with that number, and the
-- next generation begins when the present one's part of the index fills a quarter of the buffers, and with each day (UTC).
-- Who looks for an id has to probe each generation, so from the ninth of a day on each may grow to more than the one before:
-- a thousand tasks a second begin some forty a day with 128 MB of buffers, ten thousand some hundred and thirty.

-- Begins the next generation if it is time; the leader asks every few seconds.
create function kanchi.advance_generation() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    newest kanchi.task_generation;
    today bigint;
    bytes bigint;
    most double precision := pg_size_bytes(current_setting('shared_buffers')) / 4.0;
begin
    -- The server's clock was set back: what is stored from now on must not seem to be older than its generation.
    update kanchi.task_generation set began_at = now() where began_at > now();
    select * into newest from kanchi.task_generation order by generation desc limit 1;
    select count(*) into today from kanchi.task_generation where began_at >= date_trunc('day', now(), 'UTC');
    -- Not pg_partition_tree, which keeps a lock on each partition until the transaction ends.
    with recursive part (id) as (
        select 'kanchi.task_id_key'::regclass::oid
        union all
        select inhrelid from part join pg_inherits on inhparent = id
    )
    select sum(pg_relation_size(id)) into bytes from part;
    if newest.began_at < date_trunc('day', now(), 'UTC')
        or bytes - newest.index_bytes > most * greatest(1, today / 8.0)
    then
        insert into kanchi.task_generation (generation, began_at, index_bytes)
        values (newest.generation + 1, clock_timestamp(), bytes) on conflict do nothing;
    elsif bytes < newest.index_bytes then
        -- Partitions were dropped.
        update kanchi.task_generation set index_bytes = bytes where generation = newest.generation;
    end if;
end $$;

-- Days, the newest first, whose generations have rows that were stored since then, at most so many generations (null: all). A row
-- has the generation of the moment at which its transaction began, give or take the time in which the next one was committed;
-- an hour more costs nothing, for the partitions of the days beside it are touched anyway, and forgives a clock that is set back.
create function kanchi.history_days(p_since timestamptz, p_generations integer)
returns table (since timestamptz, until timestamptz, generations integer[])
language sql stable set search_path = pg_catalog, pg_temp as $$
    select min(began_at) - interval '1 hour', max(ended_at) + interval '1 hour', array_agg(generation)
    from (
        select generation, began_at, lead(began_at, 1, 'infinity') over (order by generation) as ended_at
        from kanchi.task_generation
        where generation >= coalesce((
            select generation from kanchi.task_generation where began_at <= p_since - interval '1 hour'
            order by generation desc limit 1), 0)
        order by generation desc limit p_generations
    ) as recent
    group by date_trunc('day', began_at, 'UTC')
    order by 1 desc
$$;

-- How many generations have to be probed for each task that was stored since then.
create function kanchi.generations_since(p_since timestamptz) returns bigint
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select coalesce(sum(cardinality(generations)), 0) from kanchi.history_days(p_since, null)
$$;

-- Where these tasks may stand in the index.
create function kanchi.task_keys(p_task_id text[], p_generations integer[]) returns bigint[]
language sql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
    select array(select kanchi.task_key(g, i) from unnest(p_generations) as g, unnest(p_task_id) as i)
$$;

-- All rows of an id, of all brokers, in these classes. Its keys are made once a day: a function that cannot be put in its place costs
-- 40 us, and each partition would call it.
create function kanchi.tasks_by_id(p_task_id text, p_classes smallint[]) returns setof kanchi.task
language sql stable as $$
    select t.* from (
        select d.since, d.until, array(select kanchi.task_key(g, p_task_id) from unnest(d.generations) as g) as keys
        from kanchi.history_days('-infinity', null) as d offset 0
    ) as day cross join lateral (
        select k.* from kanchi.task k
        where kanchi.task_key(k.generation, k.task_id) = any (day.keys)
            and k.task_id = p_task_id and k.stored_at >= day.since and k.stored_at <= day.until
            and kanchi.stored_in(p_classes, k.retention_days, k.stored_at)
        offset 0) as t
$$;

-- All rows of an id, of all brokers.
create function kanchi.tasks_by_id(p_task_id text) returns setof kanchi.task
language sql stable as $$
    select * from kanchi.tasks_by_id(p_task_id, array[1, 3, 7, 14, 30, 90, 365]::smallint[])
$$;
