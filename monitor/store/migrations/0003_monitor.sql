-- What a monitor may do, beyond COPY into event_chunk, task_live and task: functions that run as the owner, derive the
-- broker from the login role as the column defaults do, and touch no other broker's rows.
--
-- Those that look tasks up by id leave the planner no choice but one index probe a task: plans are kept for a session,
-- and one made while a table was nearly empty would read all of it until the next ANALYZE. They join with unnest where
-- `= any` would probe each of the hash partitions for each id. Generic plans: planning for thousands of ids and some
-- ninety partitions costs more than looking.

create function kanchi.schema_version() returns integer
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select max(version) from kanchi.migration
$$;

create function kanchi.current_broker() returns integer
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
    b integer;
begin
    if session_user ~ '^kanchi_m_[0-9]+_[0-9]{1,9}$' then
        return split_part(session_user, '_', 4)::integer;
    end if;
    if not starts_with(session_user, 'kanchi_m_shared') then
        raise exception 'role % is not the role of a monitor', session_user using errcode = 'KN002';
    end if;
    b := kanchi.shared_broker();
    -- A retired broker's own role cannot log in any more; the shared one can.
    if not exists (select from kanchi.broker where broker_id = b and retired_at is null) then
        raise exception 'broker % is not known', b using errcode = 'KN002';
    end if;
    return b;
end $$;

-- Without a time zone until the end: what adds to a timestamptz is not immutable, and Postgres then calls this function for each
-- row, four microseconds each, instead of putting its expression in its place.
create function kanchi.micros(p_value bigint) returns timestamptz
language sql immutable strict parallel safe as $$
    -- In two steps: a double cannot hold today's microseconds exactly.
    select (timestamp 'epoch' + make_interval(secs => p_value / 1000000)
        + (p_value % 1000000) * interval '1 microsecond') at time zone 'UTC'
$$;

create function kanchi.unix_micros(p_time timestamptz) returns bigint
language sql stable strict parallel safe as $$
    select (extract(epoch from p_time) * 1000000)::bigint
$$;

-- === The event path ===

create function kanchi.begin_epoch(p_instance text) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    b integer := kanchi.current_broker();
    e bigint;
begin
    if not exists (select from kanchi.broker where broker_id = b and retired_at is null) then
        raise exception 'broker % is not known', b using errcode = 'KN002';
    end if;
    -- The lease first, as in take_over: two locks in one order.
    insert into kanchi.lease as l (broker_id, epoch, instance) values (b, 0, left(p_instance, 255))
    on conflict (broker_id) do update set instance = excluded.instance, renewed_at = excluded.renewed_at,
        renewals = l.renewals + 1, answered = 0, behind = null, keeps_digests = false;
    insert into kanchi.writer as w (broker_id, epoch, instance) values (b, 1, left(p_instance, 255))
    on conflict (broker_id) do update
        set epoch = w.epoch + 1, instance = excluded.instance, began_at = now()
    returning epoch into e;
    update kanchi.lease set epoch = e where broker_id = b;
    return e;
end $$;

-- === Fail-over: who of two may begin an epoch ===

-- A writer that has not renewed for so long may be replaced.
create function kanchi.lease_time() returns interval
language sql immutable parallel safe as $$ select interval '10 seconds' $$;

-- Whether this holder is there: it renewed, or committed a batch, which on a slow store may keep its other session waiting.
create function kanchi.is_alive(p_broker integer, p_renewed_at timestamptz) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
    select p_renewed_at is not null and (p_renewed_at > clock_timestamp() - kanchi.lease_time() or exists (
        select from kanchi.batch where broker_id = p_broker and committed_at > clock_timestamp() - kanchi.lease_time()))
$$;

-- Who writes, as a standby sees it; no row: nobody ever did.
create function kanchi.holder(p_instance text)
returns table (epoch bigint, is_own boolean, renewals bigint, is_free boolean, is_alive boolean, answered bigint, behind bigint,
    keeps_digests boolean)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select l.epoch, l.instance = left(p_instance, 255), l.renewals, l.renewed_at is null, kanchi.is_alive(l.broker_id, l.renewed_at), l.answered, l.behind,
        l.keeps_digests
    from kanchi.lease l where l.broker_id = kanchi.current_broker()
$$;

-- Begins an epoch if the holder is still the one that was seen and may be replaced: it gave the broker back, its lease is
-- over, or it was an earlier process of the same name. No row: somebody was faster, or the holder lives. Waits for a commit
-- that is under way. Both numbers null: nobody was seen.
create function kanchi.take_over(p_instance text, p_seen_epoch bigint, p_seen_renewals bigint)
returns table (epoch bigint, was_own boolean)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    b integer := kanchi.current_broker();
    was boolean := false;
begin
    if not exists (select from kanchi.broker where broker_id = b and retired_at is null) then
        raise exception 'broker % is not known', b using errcode = 'KN002';
    end if;
    if p_seen_epoch is null then
        insert into kanchi.lease (broker_id, epoch, instance, keeps_digests) values (b, 0, left(p_instance, 255), true)
        on conflict do nothing;
    else
        select l.instance = left(p_instance, 255) into was from kanchi.lease l where l.broker_id = b for update;
        update kanchi.lease l set instance = left(p_instance, 255), renewed_at = clock_timestamp(),
            renewals = l.renewals + 1, answered = 0, behind = null, keeps_digests = true
        where l.broker_id = b and l.epoch = p_seen_epoch and l.renewals = p_seen_renewals
            and (l.instance = left(p_instance, 255) or not kanchi.is_alive(b, l.renewed_at));
    end if;
    if not found then
        return;
    end if;
    return query with began as (
        insert into kanchi.writer as w (broker_id, epoch, instance) values (b, 1, left(p_instance, 255))
        on conflict (broker_id) do update set epoch = w.epoch + 1, instance = excluded.instance, began_at = now()
        returning w.epoch
    ), noted as (
        update kanchi.lease l set epoch = began.epoch from began where l.broker_id = b
    )
    select began.epoch, was from began;
end $$;

-- Renews the lease; returns the number of this renewal. Whoever is not the writer any more learns it here.
create function kanchi.renew(p_epoch bigint, p_answered bigint, p_behind bigint, p_digests boolean) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    b integer := kanchi.current_broker();
    n bigint;
begin
    update kanchi.lease set renewed_at = clock_timestamp(), renewals = renewals + 1, answered = p_answered,
        behind = p_behind, keeps_digests = p_digests
    where broker_id = b and epoch = p_epoch
    returning renewals into n;
    if n is null then
        raise exception 'epoch % of broker % is over', p_epoch, b using errcode = 'KN001';
    end if;
    return n;
end $$;

-- Gives the broker back: the epoch that ends, or whatever an earlier process of this name held.
create function kanchi.release(p_instance text, p_epoch bigint) returns void
language sql security definer set search_path = pg_catalog, pg_temp as $$
    update kanchi.lease set renewed_at = null
    where broker_id = kanchi.current_broker() and instance = left(p_instance, 255) and epoch = coalesce(p_epoch, epoch)
        and renewed_at is not null
$$;

-- Ends the session in which a writer stands still amid a batch: its lock on the epoch would keep a successor waiting for
-- as long as the kernel keeps the connection. As the caller, who may end sessions of its own role only; the name of a
-- session tells brokers apart that share a role.
create function kanchi.end_stuck_writer() returns void
language sql set search_path = pg_catalog, pg_temp as $$
    select pg_terminate_backend(pid) from pg_stat_activity
    where usename = session_user and application_name = 'kanchi-monitor/' || kanchi.current_broker()
        and pid <> pg_backend_pid() and state <> 'idle' and state_change < clock_timestamp() - interval '1 second'
$$;

create function kanchi.save_workers(p_workers jsonb, p_keep_sample boolean) returns void
language sql security definer set search_path = pg_catalog, pg_temp as $$
    insert into kanchi.worker as w (broker_id, hostname, state, pid, freq, active, processed, loadavg, sw_ident, sw_ver,
        sw_sys, pool, started_at, last_event_at, last_heartbeat_at)
    select distinct on (left(r.hostname, 255)) kanchi.current_broker(), left(r.hostname, 255), r.state, r.pid, r.freq,
        r.active, r.processed, r.loadavg, left(r.sw_ident, 255), left(r.sw_ver, 255), left(r.sw_sys, 255),
        left(r.pool, 255), kanchi.micros(r.started_at), kanchi.micros(r.last_event_at), kanchi.micros(r.last_heartbeat_at)
    from jsonb_to_recordset(p_workers) as r (hostname text, state text, pid bigint, freq double precision,
        active bigint, processed bigint, loadavg double precision[], sw_ident text, sw_ver text, sw_sys text,
        pool text, started_at bigint, last_event_at bigint, last_heartbeat_at bigint)
    order by left(r.hostname, 255), r.last_event_at desc
    on conflict (broker_id, hostname) do update set
        state = excluded.state,
        pid = coalesce(excluded.pid, w.pid),
        freq = coalesce(excluded.freq, w.freq),
        active = coalesce(excluded.active, w.active),
        processed = coalesce(excluded.processed, w.processed),
        loadavg = coalesce(excluded.loadavg, w.loadavg),
        sw_ident = coalesce(excluded.sw_ident, w.sw_ident),
        sw_ver = coalesce(excluded.sw_ver, w.sw_ver),
        sw_sys = coalesce(excluded.sw_sys, w.sw_sys),
        -- Not the older one: another process under this name may have another pool, and is unknown until it answers.
        pool = excluded.pool,
        started_at = coalesce(excluded.started_at, w.started_at),
        last_event_at = excluded.last_event_at,
        last_heartbeat_at = coalesce(excluded.last_heartbeat_at, w.last_heartbeat_at)
    where w.last_event_at <= excluded.last_event_at;
    insert into kanchi.worker_sample (broker_id, retention_days, sampled_at, hostname, active, processed, load_1m)
    select kanchi.current_broker(), 7, now(), left(r.hostname, 255), r.active, r.processed, r.loadavg[1]
    from jsonb_to_recordset(p_workers) as r (hostname text, active bigint, processed bigint, loadavg double precision[])
    where p_keep_sample
$$;

-- Workers that left long ago, as the monitor says.
create function kanchi.forget_workers(p_hostname text[]) returns void
language sql security definer set search_path = pg_catalog, pg_temp as $$
    delete from kanchi.worker
    where broker_id = kanchi.current_broker() and hostname = any (p_hostname) and state <> 'online'
$$;

-- One page of a walk over the live tasks, in the order in which they were first seen. It looks at p_scan of them at most and
-- returns the facts of those that run, or are orphaned, on these workers. The last row looked at always comes, if need be
-- without facts: the next page begins behind it.
create function kanchi.held(p_worker text[], p_orphaned boolean, p_after bigint, p_after_id text, p_scan integer)
returns table (first_seen bigint, task_id text, facts bytea)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_generic_plan
    set enable_seqscan = off as $$
#variable_conflict use_column
declare
    b integer := kanchi.current_broker();
    after timestamptz := kanchi.micros(p_after);
begin
    return query select kanchi.unix_micros(page.first_seen_at), page.task_id,
            case when page.is_held then page.facts end
        from (
            select l.*, lead(l.task_id) over (order by l.first_seen_at, l.task_id) is null as is_last,
                l.worker = any (p_worker) and case when p_orphaned then l.state = 'ORPHANED' else l.state not in
                    ('PENDING', 'RECEIVED', 'RETRY', 'SUCCESS', 'FAILURE', 'REVOKED', 'REJECTED', 'EXPIRED', 'ORPHANED')
                end as is_held
            from (
                select k.first_seen_at, k.task_id, k.facts, k.state, k.worker from kanchi.task_live k
                where k.broker_id::bigint = b and k.first_seen_at >= after
                    and (k.first_seen_at, k.task_id) > (after, p_after_id)
                order by k.first_seen_at, k.task_id
                limit least(p_scan, 10000)) as l
        ) as page
        where page.is_held or page.is_last
        order by 1, 2;
end $$;

create function kanchi.save_gaps(p_gaps jsonb) returns void
language sql security definer set search_path = pg_catalog, pg_temp as $$
    insert into kanchi.gap (broker_id, gap_id, from_at, to_at, cause, estimated_events)
    select distinct on (r.id) kanchi.current_broker(), r.id, kanchi.micros(r.from_at), kanchi.micros(r.to_at),
        left(r.cause, 64), r.estimated_events
    from jsonb_to_recordset(p_gaps) as r (id uuid, from_at bigint, to_at bigint, cause text, estimated_events bigint)
    order by r.id, r.to_at desc nulls last
    on conflict (broker_id, gap_id) do update set
        to_at = excluded.to_at, cause = excluded.cause, estimated_events = excluded.estimated_events
$$;

-- What the repair of gaps came to; the first word is the last.
create function kanchi.save_repairs(p_repairs jsonb) returns void
language sql security definer set search_path = pg_catalog, pg_temp as $$
    update kanchi.gap g set repaired_at = clock_timestamp(), repair_outcome = left(r.outcome, 64),
        tasks_repaired = r.repaired, tasks_found = r.found, tasks_unknown = r.unknown, repair_note = left(r.note, 1024)
    from jsonb_to_recordset(p_repairs) as r (id uuid, outcome text, repaired bigint, found bigint, unknown bigint, note text)
    where g.broker_id = kanchi.current_broker() and g.gap_id = r.id and g.repaired_at is null
$$;

-- One page of a walk over the live tasks that have not ended, in the order in which they were first seen: see kanchi.held.
create function kanchi.unended(p_before bigint, p_after bigint, p_after_id text, p_scan integer)
returns table (first_seen bigint, task_id text, state text)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_generic_plan
    set enable_seqscan = off as $$
#variable_conflict use_column
declare
    b integer := kanchi.current_broker();
    after timestamptz := kanchi.micros(p_after);
begin
    return query select kanchi.unix_micros(page.first_seen_at), page.task_id,
            case when page.is_open then page.state end
        from (
            select l.*, lead(l.task_id) over (order by l.first_seen_at, l.task_id) is null as is_last,
                l.state not in ('SUCCESS', 'FAILURE', 'REVOKED', 'REJECTED', 'EXPIRED') as is_open
            from (
                select k.first_seen_at, k.task_id, k.state from kanchi.task_live k
                where k.broker_id::bigint = b and k.first_seen_at >= after and k.first_seen_at < kanchi.micros(p_before)
                    and (k.first_seen_at, k.task_id) > (after, p_after_id)
                order by k.first_seen_at, k.task_id
                limit least(p_scan, 10000)) as l
        ) as page
        where page.is_open or page.is_last
        order by 1, 2;
end $$;

create function kanchi.save_dead_letters(p_letters jsonb) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    b integer := kanchi.current_broker();
begin
    insert into kanchi.dead_letter (broker_id, arrived_at, reason, detail, sample)
    select b, kanchi.micros(r.arrived), left(r.reason, 64), left(r.detail, 1024), substring(decode(r.sample, 'hex') for 4096)
    from jsonb_to_recordset(p_letters) as r (arrived bigint, reason text, detail text, sample text);
    -- The newest thousand of a broker are kept: a hostile stream must not fill the disk.
    delete from kanchi.dead_letter
    where broker_id = b and dead_letter_id <= (
        select dead_letter_id from kanchi.dead_letter
        where broker_id = b order by dead_letter_id desc offset 1000 limit 1);
end $$;

-- Refuses an epoch that is over. The lock makes the next begin_epoch wait for this transaction, so that no write of an old
-- epoch comes after it.
create function kanchi.hold_epoch(p_epoch bigint) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    b integer := kanchi.current_broker();
    e bigint;
begin
    select epoch into e from kanchi.writer where broker_id = b for share;
    if e is distinct from p_epoch then
        raise exception 'epoch % of broker % is over, % is the current one', p_epoch, b, e using errcode = 'KN001';
    end if;
end $$;

-- Begins the end of a batch: claims the batch id, holds the epoch and writes everything small. False: committed before. Not at
-- the beginning of its transaction: a batch that goes ahead while another one ends must hold nothing that anybody waits for,
-- and the epoch's row, whose shared locks are granted past a writer that waits, would be held for ever by two in turn.
create function kanchi.commit_batch(p_batch uuid, p_epoch bigint, p_digests bytea, p_workers jsonb,
    p_dead_letters jsonb, p_gaps jsonb) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    b integer := kanchi.current_broker();
begin
    perform kanchi.hold_epoch(p_epoch);
    insert into kanchi.batch (broker_id, batch_id, epoch, digests) values (b, p_batch, p_epoch, p_digests)
    on conflict do nothing;
    if not found then
        return false;
    end if;
    if p_workers is not null then
        perform kanchi.save_workers(p_workers, false);
    end if;
    if p_dead_letters is not null then
        perform kanchi.save_dead_letters(p_dead_letters);
    end if;
    if p_gaps is not null then
        perform kanchi.save_gaps(p_gaps);
    end if;
    return true;
end $$;

-- Writes tasks that may be in the live table. Sorted, so that two writers cannot lock rows in different orders.
create function kanchi.merge_tasks(p_task_id text[], p_facts bytea[], p_state text[], p_name text[], p_queue text[],
    p_worker text[], p_due_at bigint[]) returns void
language sql security definer set search_path = pg_catalog, pg_temp as $$
    insert into kanchi.task_live as l (broker_id, task_id, facts, state, name, queue, worker, due_at)
    select kanchi.current_broker(), r.task_id, r.facts, r.state, r.name, r.queue, r.worker,
        -- Zero: final, the linger begins now.
        case when r.due_at = 0 then now() else kanchi.micros(r.due_at) end
    from unnest(p_task_id, p_facts, p_state, p_name, p_queue, p_worker, p_due_at)
        as r (task_id, facts, state, name, queue, worker, due_at)
    order by r.task_id collate "C"
    on conflict (broker_id, task_id) do update set
        facts = excluded.facts, state = excluded.state, name = excluded.name, queue = excluded.queue,
        worker = excluded.worker, due_at = excluded.due_at
$$;

-- Looking up many ids, here and below: `lateral` and `offset 0` fix the order, ids first and the table's key for each.
-- The planner thinks of ten ids; before a first ANALYZE it has read the whole table for that, and for each row all ids.
create function kanchi.load_facts(p_task_id text[]) returns table (task_id text, facts bytea)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_generic_plan
    set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
#variable_conflict use_column
declare
    b integer := kanchi.current_broker();
begin
    return query select l.task_id, l.facts
        from unnest(p_task_id) as i cross join lateral (
            select k.task_id, k.facts from kanchi.task_live k where k.broker_id = b and k.task_id = i offset 0) as l;
end $$;

-- Ids of live tasks, at most so many.
create function kanchi.live_ids(p_limit integer) returns setof text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
    set enable_seqscan = off as $$
declare
    b integer := kanchi.current_broker();
begin
    return query select l.task_id from kanchi.task_live l where l.broker_id = b limit least(p_limit, 1000000);
end $$;

-- Adds what a batch says of failures to their groups, one entry a group. Of a broker the thousand groups are kept that failed
-- last: a hostile stream may push the others out, and must not fill the disk.
create function kanchi.save_failures(p_failures jsonb) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    b integer := kanchi.current_broker();
    created bigint;
begin
    with said as (
        -- Without a new failure it says only that there are fewer: it is neither the first nor the last then.
        select distinct on (r.fingerprint) r.*,
            case when r.first_at is null then 'infinity' else least(kanchi.micros(r.first_at), now()) end as first_seen_at,
            case when r.last_at is null then '-infinity' else least(kanchi.micros(r.last_at), now()) end as last_seen_at
        from jsonb_to_recordset(p_failures) as r (fingerprint uuid, task text, exception_class text, message text,
            example text, failed bigint, critical bigint, first_at bigint, last_at bigint, last_task_id text)
        order by r.fingerprint
    ), saved as (
        insert into kanchi.failure_group as g
        select b, r.fingerprint, left(r.task, 255), left(r.exception_class, 255), left(r.message, 255), r.failed, r.critical,
            r.first_seen_at, r.last_seen_at, left(coalesce(r.last_task_id, ''), 255), left(coalesce(r.example, ''), 1024)
        from said r
        where r.failed > 0 and r.last_at is not null
            or exists (select from kanchi.failure_group k where k.broker_id = b and k.fingerprint = r.fingerprint)
        on conflict (broker_id, fingerprint) do update set
            failed = g.failed + excluded.failed, critical = g.critical + excluded.critical,
            first_seen_at = least(g.first_seen_at, excluded.first_seen_at),
            last_seen_at = greatest(g.last_seen_at, excluded.last_seen_at),
            last_task_id = case when excluded.last_seen_at >= g.last_seen_at then excluded.last_task_id else g.last_task_id end,
            example = case when excluded.last_seen_at >= g.last_seen_at then excluded.example else g.example end
        returning xmax = 0 as is_new -- nobody has updated it yet
    )
    select count(*) filter (where is_new) into created from saved;
    if exists (select from jsonb_to_recordset(p_failures) as r (failed bigint) where r.failed < 0) then
        delete from kanchi.failure_group where broker_id = b and failed <= 0;
    end if;
    if created > 0 then
        delete from kanchi.failure_group g
        using (select k.last_seen_at, k.fingerprint from kanchi.failure_group k
            where k.broker_id = b order by k.last_seen_at desc, k.fingerprint offset 1000 limit 1) as first
        where g.broker_id = b and g.last_seen_at <= first.last_seen_at
            and (g.last_seen_at < first.last_seen_at or g.fingerprint >= first.fingerprint);
    end if;
end $$;

create function kanchi.was_committed(p_batch uuid) returns boolean
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select exists (select from kanchi.batch where broker_id = kanchi.current_broker() and batch_id = p_batch)
$$;

create function kanchi.last_commit_at() returns timestamptz
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select max(committed_at) from kanchi.batch where broker_id = kanchi.current_broker()
$$;

-- The newest 2^18 digests: a broker has at most the prefetch (2^16) delivered and not acknowledged, and acknowledgements
-- follow each commit within 200 ms, so anything that can be delivered again is among them, whatever its age.
create function kanchi.recent_digests() returns setof bytea
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select digests from (
        select digests, sum(length(digests)) over (order by committed_at desc, batch_id) - length(digests) as newer
        from kanchi.batch where broker_id = kanchi.current_broker() and digests is not null
    ) as b
    where newer < 262144 * 16
$$;

-- Keeps the batches of the last ten minutes, the newest 64, and those whose digests can still be asked for (at most
-- 35 days). Digests of other batches are not kept.
create function kanchi.prune_batches() returns bigint
language sql security definer set search_path = pg_catalog, pg_temp as $$
    with ranked as (
        select batch_id, committed_at, row_number() over newest as number,
            coalesce(sum(length(digests)) over newest - coalesce(length(digests), 0), 0) as newer
        from kanchi.batch where broker_id = kanchi.current_broker()
        window newest as (order by committed_at desc, batch_id)
    ), gone as (
        delete from kanchi.batch b using ranked r
        where b.broker_id = kanchi.current_broker() and b.batch_id = r.batch_id and r.number > 64
            and ((b.digests is null and r.committed_at < now() - interval '10 minutes')
                or r.newer >= 262144 * 16 or r.committed_at < now() - interval '35 days')
        returning 1
    )
    select count(*) from gone
$$;

-- === Settling ===

-- Classes to look into: in recent history those that the broker's tasks go to now, else all.
create function kanchi.history_classes(p_broker integer, p_since timestamptz) returns integer[]
language sql stable set search_path = pg_catalog, pg_temp as $$
    select case when p_since = '-infinity' then array[1, 3, 7, 14, 30, 90, 365]
        else array(select unnest(array[succeeded_days, failed_days])::integer from kanchi.broker where broker_id = p_broker) end
$$;

-- The generation that history is written in now.
create function kanchi.current_generation() returns integer
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select generation from kanchi.task_generation order by generation desc limit 1
$$;

-- Ids of these tasks that have a row in history, found by the index on generation and id: `broker_id::bigint`, here and below,
-- hides the column from the index that lists are served by, which on an empty table costs the same. A probe for each generation and
-- task: looking into all of history for every task would cost more than storing it, so the caller says how far back, and how many
-- generations at most, the newest.
create function kanchi.archived(p_task_id text[], p_since timestamptz, p_generations integer) returns setof text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_generic_plan
    set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    b integer := kanchi.current_broker();
    classes integer[] := kanchi.history_classes(b, p_since);
    -- What was settled since this transaction began is history as well.
    until timestamptz := clock_timestamp();
    found text[] := '{}';
    day record;
    keys bigint[];
begin
    for day in select * from kanchi.history_days(p_since, p_generations) loop
        keys := kanchi.task_keys(p_task_id, day.generations);
        found := found || array(select t.task_id from kanchi.task t
            where t.retention_days = any (classes) and kanchi.task_key(t.generation, t.task_id) = any (keys)
                and t.broker_id::bigint = b and t.task_id = any (p_task_id)
                and t.stored_at >= greatest(p_since, day.since) and t.stored_at <= least(until, day.until));
    end loop;
    return query select distinct i from unnest(found) as i;
end $$;

-- A piece of the ids of tasks that ended lately: see StoreWriter::ended_ids. In the order of the end, so that no other index serves.
create function kanchi.ended_ids(p_before bigint, p_limit integer) returns table (task_id text, finished_at bigint)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_generic_plan
    set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off as $$
#variable_conflict use_column
declare
    b integer := kanchi.current_broker();
    since timestamptz := now() - interval '4 hours';
    before timestamptz := kanchi.micros(p_before);
    classes integer[] := kanchi.history_classes(b, since);
begin
    if p_before is null then
        return query select t.task_id, null::bigint from kanchi.task t
            where t.broker_id = b and t.retention_days = any (classes) and t.finished_at is null and t.stored_at > since
            order by t.finished_at
            limit least(p_limit, 100000);
    else
        return query select t.task_id, (extract(epoch from t.finished_at) * 1000000)::bigint from kanchi.task t
            where t.broker_id = b and t.retention_days = any (classes) and t.stored_at > since
                and t.finished_at > since and t.finished_at <= before
            order by t.finished_at desc
            limit least(p_limit, 100000);
    end if;
end $$;

-- Locks tasks that are due, found by the index on `due_at`. Rows that a commit is writing are left for later: no waiting,
-- no deadlock.
create function kanchi.due(p_linger interval, p_limit integer)
returns table (task_id text, facts bytea, queue text, first_seen_at bigint)
language plpgsql security definer set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_generic_plan
    set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
#variable_conflict use_column
declare
    b integer := kanchi.current_broker();
    before timestamptz := now() - p_linger;
begin
    return query select l.task_id, l.facts, l.queue, kanchi.unix_micros(l.first_seen_at) from kanchi.task_live l
        where l.broker_id::bigint = b and l.due_at <= before and l.first_seen_at <= before
        order by l.due_at
        limit least(p_limit, 10000)
        for update skip locked;
end $$;

-- Tasks that came after `p_since`, are there for the linger and have nothing to settle, oldest first: a late event of an
-- archived task looks like that. All of those that came in the same moment, so that the caller can go on behind it.
create function kanchi.unchecked(p_since bigint, p_linger interval, p_limit integer)
returns table (task_id text, facts bytea, queue text, first_seen_at bigint)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_generic_plan
    set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
#variable_conflict use_column
declare
    b integer := kanchi.current_broker();
    since timestamptz := kanchi.micros(p_since);
begin
    return query select l.task_id, l.facts, l.queue, kanchi.unix_micros(l.first_seen_at) from kanchi.task_live l
        where l.broker_id::bigint = b and l.first_seen_at > since and l.first_seen_at <= now() - p_linger
            and l.due_at is null
        order by l.first_seen_at
        fetch first (least(p_limit, 10000)) rows with ties;
end $$;

-- Takes tasks that have ended out of the live table; returns those that were there. In one statement, whose snapshot keeps
-- what it has found from being replaced; one that is settled meanwhile is waited for, and gone then.
create function kanchi.take_ended(p_task_id text[]) returns table (task_id text, first_seen_at bigint)
language plpgsql security definer set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_generic_plan
    set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
#variable_conflict use_column
declare
    b integer := kanchi.current_broker();
begin
    return query delete from kanchi.task_live l where l.ctid = any (array(
        select f.ctid from unnest(p_task_id) as i cross join lateral (
            select k.ctid from kanchi.task_live k where k.broker_id = b and k.task_id = i offset 0) as f))
        returning l.task_id, kanchi.unix_micros(l.first_seen_at);
end $$;

-- Lets tasks that were due, and stay, be due again later, so that others get their turn; those without a time never, unless a
-- commit says so.
create function kanchi.postpone(p_task_id text[], p_until timestamptz) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_generic_plan
    set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    b integer := kanchi.current_broker();
begin
    update kanchi.task_live l set due_at = p_until where l.ctid = any (array(
        select f.ctid from unnest(p_task_id) as i cross join lateral (
            select k.ctid from kanchi.task_live k where k.broker_id = b and k.task_id = i offset 0) as f));
end $$;

-- Locks those of these tasks that are in the live table, except those that a commit is writing.
create function kanchi.lock_live(p_task_id text[])
returns table (task_id text, facts bytea, queue text, first_seen_at bigint)
language plpgsql security definer set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_generic_plan
    set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
#variable_conflict use_column
declare
    b integer := kanchi.current_broker();
begin
    return query select l.* from unnest(p_task_id) as i cross join lateral (
        select k.task_id, k.facts, k.queue, kanchi.unix_micros(k.first_seen_at)
        from kanchi.task_live k where k.broker_id = b and k.task_id = i
        offset 0 for update skip locked) as l;
end $$;

-- Takes the rows of these tasks out of history, to be written again together with what came late.
create function kanchi.take_history(p_task_id text[], p_since timestamptz)
returns table (task_id text, facts bytea, queue text, queue_inferred boolean, first_stored_at bigint)
language plpgsql security definer set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_generic_plan
    set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
#variable_conflict use_column
declare
    b integer := kanchi.current_broker();
    classes integer[] := kanchi.history_classes(b, p_since);
    day record;
    keys bigint[];
begin
    for day in select * from kanchi.history_days(p_since, null) loop
        keys := kanchi.task_keys(p_task_id, day.generations);
        return query delete from kanchi.task t
            where t.retention_days = any (classes) and kanchi.task_key(t.generation, t.task_id) = any (keys)
                and t.broker_id::bigint = b and t.task_id = any (p_task_id)
                and t.stored_at >= greatest(p_since, day.since) and t.stored_at <= least(now(), day.until)
            returning t.task_id, t.facts, t.queue, t.queue_inferred,
                kanchi.unix_micros(coalesce(t.first_stored_at, t.stored_at));
    end loop;
end $$;

-- === Reports ===

-- Answers whether state or reason of the connection changed, so that the caller may notify.
create function kanchi.beat(p_beat jsonb) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    b integer := kanchi.current_broker();
    was record;
    r record;
begin
    select connection, reason into was from kanchi.heartbeat where broker_id = b;
    select * into r from jsonb_to_record(p_beat) as r (instance text, version text, connection text, reason text,
        message text, broker_version text, last_event_at bigint, lag_seconds double precision,
        events_per_second double precision, workers_online bigint, messages_queued bigint, spool_bytes bigint,
        event_queue text, config_error text, store_error text, complete_until bigint, epoch bigint);
    if r.epoch is not null and not exists (select from kanchi.writer where broker_id = b and epoch = r.epoch) then
        raise exception 'epoch % of broker % is over', r.epoch, b using errcode = 'KN001';
    end if;
    insert into kanchi.heartbeat as h values (b, clock_timestamp(), left(r.instance, 255), left(r.version, 64),
        left(r.connection, 64), left(r.reason, 64), left(r.message, 1024), left(r.broker_version, 255),
        kanchi.micros(r.last_event_at), r.lag_seconds, r.events_per_second, r.workers_online, r.messages_queued,
        r.spool_bytes, left(r.event_queue, 255), left(r.config_error, 1024),
        left(r.store_error, 64), kanchi.micros(r.complete_until))
    on conflict (broker_id) do update set beat_at = excluded.beat_at, instance = excluded.instance,
        version = excluded.version, connection = excluded.connection, reason = excluded.reason,
        message = excluded.message, broker_version = excluded.broker_version, last_event_at = excluded.last_event_at,
        lag_seconds = excluded.lag_seconds, events_per_second = excluded.events_per_second,
        workers_online = excluded.workers_online, messages_queued = excluded.messages_queued,
        spool_bytes = excluded.spool_bytes, event_queue = coalesce(excluded.event_queue, h.event_queue),
        config_error = excluded.config_error, store_error = excluded.store_error,
        complete_until = coalesce(excluded.complete_until, h.complete_until);
    return was is null or was.connection is distinct from left(r.connection, 64)
        or was.reason is distinct from left(r.reason, 64);
end $$;

create function kanchi.save_queues(p_at bigint, p_queues jsonb, p_keep_sample boolean) returns void
language sql security definer set search_path = pg_catalog, pg_temp as $$
    insert into kanchi.queue as q (broker_id, name, ready, unacked, consumers, sampled_at)
    select distinct on (left(r.name, 255)) kanchi.current_broker(), left(r.name, 255), r.ready, r.unacked, r.consumers, kanchi.micros(p_at)
    from jsonb_to_recordset(p_queues) as r (name text, ready bigint, unacked bigint, consumers bigint)
    on conflict (broker_id, name) do update set
        ready = excluded.ready, unacked = excluded.unacked, consumers = excluded.consumers,
        sampled_at = excluded.sampled_at;
    -- A queue that is sampled no more is gone after a quarter of an hour.
    delete from kanchi.queue
    where broker_id = kanchi.current_broker() and sampled_at < kanchi.micros(p_at) - interval '15 minutes';
    insert into kanchi.queue_sample (broker_id, retention_days, sampled_at, queue_name, ready, unacked, consumers)
    select kanchi.current_broker(), 7, kanchi.micros(p_at), left(r.name, 255), r.ready, r.unacked, r.consumers
    from jsonb_to_recordset(p_queues) as r (name text, ready bigint, unacked bigint, consumers bigint)
    where p_keep_sample
$$;

-- What the process before this one left: until when its history is complete, and the queue it used.
create function kanchi.previous() returns table (complete_until timestamptz, event_queue text)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select coalesce(h.complete_until, kanchi.last_commit_at()), h.event_queue
    from (select kanchi.current_broker() as broker_id) as b left join kanchi.heartbeat h using (broker_id)
$$;

-- === Reading: the login role's own broker, whatever is asked ===

create view kanchi.own_event_chunk with (security_barrier) as
    select * from kanchi.event_chunk where broker_id = kanchi.current_broker();
create view kanchi.own_task_live with (security_barrier) as
    select * from kanchi.task_live where broker_id = kanchi.current_broker();
create view kanchi.own_task with (security_barrier) as
    select * from kanchi.task where broker_id = kanchi.current_broker();
create view kanchi.own_statistic_delta with (security_barrier) as
    select * from kanchi.statistic_delta where broker_id = kanchi.current_broker();
create view kanchi.own_statistic with (security_barrier) as
    select * from kanchi.statistic where broker_id = kanchi.current_broker();
create view kanchi.own_queue_sample with (security_barrier) as
    select * from kanchi.queue_sample where broker_id = kanchi.current_broker();
create view kanchi.own_worker_sample with (security_barrier) as
    select * from kanchi.worker_sample where broker_id = kanchi.current_broker();
create view kanchi.own_worker with (security_barrier) as
    select * from kanchi.worker where broker_id = kanchi.current_broker();
create view kanchi.own_queue with (security_barrier) as
    select * from kanchi.queue where broker_id = kanchi.current_broker();
create view kanchi.own_gap with (security_barrier) as
    select * from kanchi.gap where broker_id = kanchi.current_broker();
create view kanchi.own_dead_letter with (security_barrier) as
    select * from kanchi.dead_letter where broker_id = kanchi.current_broker();
create view kanchi.own_failure_group with (security_barrier) as
    select * from kanchi.failure_group where broker_id = kanchi.current_broker();
