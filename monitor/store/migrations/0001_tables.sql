-- Tables. The figures behind the layout are in docs/adr/0001-storage-layout.md, the rights in docs/adr/0002-tenancy.md.
--
-- Three columns are never written by a monitor, so that a stolen monitor role cannot lie in them:
--   broker_id       derived from the login role (kanchi_m_16384_42 -> 42; before it the database's number), never from what the client says; the owner, whose
--                   name has no number there, must name the column and gets an error otherwise. Only where monitors
--                   have to share one role (kanchi_m_shared) does the connection say it
--   stored_at       the server's clock: it chooses the partition, so no client's clock can aim at a missing one
--   first_seen_at   the same for live rows

-- The broker of a session whose login role all monitors share: what the connection's options said (kanchi.broker=42).
-- A role with a number in its name never gets here, so the setting does nothing for it. Run as the caller, without a
-- search path of its own: it is called for each row of a COPY, and whom it deceives is the caller.
create function kanchi.shared_broker() returns integer
language plpgsql stable as $$
declare
    said text := pg_catalog.current_setting('kanchi.broker', true);
begin
    if coalesce(said, '') !~ '^[1-9][0-9]{0,8}$' then
        raise exception 'the shared role % must say its broker: kanchi.broker is not set to a key', session_user
            using errcode = 'KN002';
    end if;
    return said::integer;
end $$;

-- === Who ===

create table kanchi.installation (
    singleton boolean primary key default true check (singleton),
    installation_id text not null,
    claimed_at timestamptz not null default now()
);

-- Keys are never used twice: a role of a deleted broker must not meet another broker's rows.
create sequence kanchi.broker_key as integer;

create table kanchi.broker (
    broker_id integer primary key,
    -- A key belongs to (installation, namespace uid, name); a database has one installation.
    namespace_uid text not null,
    namespace text not null,
    name text not null,
    display_name text,
    succeeded_days smallint not null,
    failed_days smallint not null,
    events_days smallint not null,
    statistics_days smallint not null,
    created_at timestamptz not null default now(),
    retired_at timestamptz,
    -- The end of a history is an order, carried out later in small steps.
    purge_ordered_at timestamptz
);
-- A broker whose purge is ordered has left its name to whoever comes next.
create unique index broker_identity on kanchi.broker (namespace_uid, name) where purge_ordered_at is null;

-- What the last upkeep did.
create table kanchi.upkeep (
    singleton boolean primary key default true check (singleton),
    ran_at timestamptz not null,
    created bigint not null,
    dropped bigint not null,
    pruned bigint not null,
    postponed bigint not null
);

-- === Exactly once ===

create table kanchi.writer (
    broker_id integer primary key references kanchi.broker on delete cascade,
    epoch bigint not null,
    instance text not null,
    began_at timestamptz not null default now()
);

-- Who writes, and whether it is still there. Beside `writer`, whose row a batch locks for as long as its commit takes: a
-- slow commit must not keep its own writer from saying that it lives.
create table kanchi.lease (
    broker_id integer primary key references kanchi.broker on delete cascade,
    epoch bigint not null,
    instance text not null,
    -- When the writer last said that it is there. Null: it gave the broker back.
    renewed_at timestamptz default clock_timestamp(),
    -- Grows with each renewal and each epoch: who sees the same number twice knows that nothing was renewed between.
    renewals bigint not null default 1,
    -- Of the newest renewal: the one whose answer the writer had before it made this one, and how many microseconds the
    -- store was behind what the writer had read (null: not known). No clock of a pod is in these.
    answered bigint not null default 0,
    behind bigint,
    -- All that the writer stores from now on has its digest in `batch`: another monitor can tell what is stored.
    keeps_digests boolean not null default false
) with (fillfactor = 20);

create table kanchi.batch (
    broker_id integer not null references kanchi.broker on delete cascade,
    batch_id uuid not null,
    epoch bigint not null,
    committed_at timestamptz not null default clock_timestamp(),
    -- 16 bytes each, one after the other; null where the transport never delivers twice.
    digests bytea,
    primary key (broker_id, batch_id)
);
create index batch_committed on kanchi.batch (broker_id, committed_at);

-- === Events: one row per task and batch ===

create table kanchi.event_chunk (
    broker_id integer not null default case when starts_with(session_user, 'kanchi_m_shared')
        then kanchi.shared_broker() else split_part(session_user, '_', 4)::integer end,
    retention_days smallint not null,
    stored_at timestamptz not null default now(),
    task_id text,
    first_at timestamptz not null,
    event_count smallint not null,
    -- A JSON array, packed by the monitor (`monitor/store/src/packed.rs`): a quarter of the bytes to take, to log and to keep.
    events bytea not null
) partition by list (retention_days);
-- The minute first: ids come in no order, and an index on them alone writes a page of its own for each chunk once it has
-- outgrown the server's buffers. When a task's chunks were stored is known of its row (`first_stored_at`, `first_seen_at`).
-- Then eight bytes of hash instead of 40 of text; collisions are filtered.
create index event_chunk_task on kanchi.event_chunk (
    date_bin('1 minute', stored_at, timestamptz '2000-01-01 00:00:00+00'), hashtextextended(task_id, 0));

-- === Tasks ===

-- Not yet final, or to be merged with history. Everything is in `facts`; the few other columns serve lists.
create table kanchi.task_live (
    broker_id integer not null default case when starts_with(session_user, 'kanchi_m_shared')
        then kanchi.shared_broker() else split_part(session_user, '_', 4)::integer end,
    -- Byte by byte: ids are compared, never read in an order of words.
    task_id text collate "C" not null check (octet_length(task_id) between 1 and 255),
    first_seen_at timestamptz not null default now(),
    facts bytea not null,
    state text not null,
    name text,
    queue text,
    worker text,
    -- Final rows: when that was written (the epoch when they came by COPY: then first_seen_at says it); rows with a
    -- deadline: the deadline. Null: nothing to settle.
    due_at timestamptz,
    primary key (broker_id, task_id)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.2,
    -- Small, and written through all the time: a vacuum that rests after each few pages lets it grow to many times its size.
    autovacuum_vacuum_cost_delay = 0);
-- On columns that hardly ever change, so that updates stay within their page (HOT). An expression, so that no look-up by id can
-- be planned over it: on an empty table it costs the same as the key, and a plan made then is kept while the table fills.
create index task_live_first_seen on kanchi.task_live ((broker_id::bigint), first_seen_at);
-- What is due must not be looked for among millions that are open. Few rows are in it: a task that ends leaves the table with
-- the batch that says so, and few have a deadline.
create index task_live_due on kanchi.task_live ((broker_id::bigint), due_at) where due_at is not null;

-- Where a task of a generation stands in the index: 23 bits of the generation before 40 of the id's hash, a number, so that no plan
-- can look for one without the other. Collisions are filtered. Without settings of its own: the planner has to see what is in it.
create function kanchi.task_key(p_generation integer, p_task_id text) returns bigint
language sql immutable parallel safe as $$
    select (p_generation::bigint << 40) | (hashtextextended(p_task_id, 0) & 1099511627775)
$$;

-- History is written in generations, one after the other: see kanchi.advance_generation.
create table kanchi.task_generation (
    generation integer primary key,
    began_at timestamptz not null,
    -- Bytes of the index on generation and id when it began, all partitions together.
    index_bytes bigint not null
);
insert into kanchi.task_generation (generation, began_at, index_bytes) values (0, '-infinity', 0);

-- Final tasks. No unique key on (broker_id, task_id): it would have to contain the partition key. One row per task is
-- the writer's work: see kanchi.take_history.
create table kanchi.task (
    broker_id integer not null default case when starts_with(session_user, 'kanchi_m_shared')
        then kanchi.shared_broker() else split_part(session_user, '_', 4)::integer end,
    retention_days smallint not null,
    stored_at timestamptz not null default now(),
    -- When the first of its events was stored: where to look for them. Null: all of them came with this row. A monitor says it: the
    -- reader keeps it within what can be stored.
    first_stored_at timestamptz check (isfinite(first_stored_at)),
    -- The newest one when it was stored, which is where it is looked for by its id.
    generation integer not null default 0,
    -- Byte by byte, as in task_live: both are read in one order.
    task_id text collate "C" not null check (octet_length(task_id) between 1 and 255),
    state text not null,
    mark text,
    name text,
    queue text,
    queue_inferred boolean not null,
    worker text,
    retries integer not null,
    root_id text,
    parent_id text,
    sent_at timestamptz,
    received_at timestamptz,
    started_at timestamptz,
    finished_at timestamptz,
    eta timestamptz,
    expires timestamptz,
    runtime double precision,
    -- First kilobyte of each, for lists and search; the whole is in `facts`.
    args text,
    kwargs text,
    result text,
    exception text,
    facts bytea not null
) partition by list (retention_days);
-- By id, generation by generation: ids come in no order, and so only as much of it is written to as the newest one has.
create index task_id_key on kanchi.task (kanchi.task_key(generation, task_id));
create index task_finished on kanchi.task (broker_id, finished_at);

-- === Counts ===

-- What batches add, one row for each minute that a batch has transitions of; the leader takes them away as it rolls up.
create table kanchi.statistic_delta (
    broker_id integer not null default case when starts_with(session_user, 'kanchi_m_shared')
        then kanchi.shared_broker() else split_part(session_user, '_', 4)::integer end,
    stored_at timestamptz not null default now(),
    -- Within the calendar: the leader calculates with it.
    minute timestamptz not null check (minute >= '0001-01-01 00:00:00+00' and minute < '10000-01-01 00:00:00+00'),
    -- All keys of the minute: see monitor/store/src/statistics/codec.rs.
    payload bytea not null check (octet_length(payload) <= 65536)
) with (toast_tuple_target = 8160);
-- A row mostly stays within its page, and none is compressed: it is gone before that pays.
alter table kanchi.statistic_delta alter column payload set storage external;
create index statistic_delta_minute on kanchi.statistic_delta (broker_id, minute);

-- Rolled up: a row for each minute (kept 14 days at most), each hour (90) and each day (as the broker says), in UTC. What
-- comes late is added; what is stored after midnight, or in another class, has a row of its own: whoever reads adds up.
create table kanchi.statistic (
    broker_id integer not null,
    retention_days smallint not null,
    -- Midnight (UTC) of the day of storage: chooses the partition.
    stored_at timestamptz not null,
    -- 60, 3600 or 86400.
    step_seconds integer not null,
    -- Where the minute, hour or day begins.
    starts_at timestamptz not null,
    -- all, task, queue or worker.
    dimension text not null,
    key text not null,
    sent bigint not null,
    received bigint not null,
    started bigint not null,
    retried bigint not null,
    succeeded bigint not null,
    failed bigint not null,
    revoked bigint not null,
    rejected bigint not null,
    expired bigint not null,
    orphaned bigint not null,
    recovered bigint not null,
    critical bigint not null,
    runtime_micros bigint not null,
    runtime bytea not null,
    wait_micros bigint not null,
    wait bytea not null,
    primary key (broker_id, step_seconds, dimension, starts_at, key, retention_days, stored_at)
) partition by list (retention_days);

-- One roll-up at a time; what the last one did.
create table kanchi.roll_up (
    singleton boolean primary key default true check (singleton),
    ran_at timestamptz,
    -- Delta rows taken, and those of them that could not be read, since the schema was made.
    taken bigint not null default 0,
    damaged bigint not null default 0
);
insert into kanchi.roll_up default values;

-- Names of tasks that were counted, the ten thousand of a broker that were seen last. The roll-up learns them.
create table kanchi.task_name (
    broker_id integer not null references kanchi.broker on delete cascade,
    -- Byte by byte: names that begin alike lie together.
    name text collate "C" not null,
    first_seen_at timestamptz not null,
    last_seen_at timestamptz not null,
    primary key (broker_id, name)
) with (fillfactor = 80);

create table kanchi.queue_sample (
    broker_id integer not null,
    retention_days smallint not null,
    stored_at timestamptz not null default now(),
    sampled_at timestamptz not null,
    queue_name text not null,
    ready bigint not null,
    unacked bigint,
    consumers bigint
) partition by list (retention_days);
create index queue_sample_time on kanchi.queue_sample (broker_id, sampled_at);

create table kanchi.worker_sample (
    broker_id integer not null,
    retention_days smallint not null,
    stored_at timestamptz not null default now(),
    sampled_at timestamptz not null,
    hostname text not null,
    active bigint,
    processed bigint,
    load_1m double precision
) partition by list (retention_days);
create index worker_sample_time on kanchi.worker_sample (broker_id, sampled_at);

-- === What is now ===

create table kanchi.worker (
    broker_id integer not null references kanchi.broker on delete cascade,
    hostname text not null,
    state text not null,
    pid bigint,
    freq double precision,
    active bigint,
    processed bigint,
    loadavg double precision[],
    sw_ident text,
    sw_ver text,
    sw_sys text,
    -- What only `stats` tells. A busy solo worker does not answer it, so the next monitor must find it here. Null: unknown.
    pool text,
    started_at timestamptz,
    last_event_at timestamptz not null,
    last_heartbeat_at timestamptz,
    primary key (broker_id, hostname)
) with (fillfactor = 50);

create table kanchi.queue (
    broker_id integer not null references kanchi.broker on delete cascade,
    name text not null,
    ready bigint not null,
    unacked bigint,
    consumers bigint,
    sampled_at timestamptz not null,
    primary key (broker_id, name)
) with (fillfactor = 50);

create table kanchi.heartbeat (
    broker_id integer primary key references kanchi.broker on delete cascade,
    beat_at timestamptz not null,
    instance text not null,
    version text not null,
    connection text not null,
    reason text,
    message text,
    broker_version text,
    last_event_at timestamptz,
    lag_seconds double precision,
    events_per_second double precision,
    workers_online bigint,
    messages_queued bigint,
    spool_bytes bigint,
    -- RabbitMQ: the queue in use; the next process must know it when its own has other arguments and another name.
    event_queue text,
    -- A new configuration was refused; the old one is in force.
    config_error text,
    -- Why batches cannot be stored, although heartbeats can.
    store_error text,
    -- Everything that arrived before is stored: where the gap of a restart begins.
    complete_until timestamptz
) with (fillfactor = 20);

-- === What went wrong ===

create table kanchi.gap (
    broker_id integer not null references kanchi.broker on delete cascade,
    gap_id uuid not null,
    from_at timestamptz not null,
    -- Null while it is open.
    to_at timestamptz,
    cause text not null,
    estimated_events bigint,
    noted_at timestamptz not null default now(),
    -- What its repair came to; all null until that has ended, well or badly.
    repaired_at timestamptz,
    -- Done, Partial or GivenUp.
    repair_outcome text,
    -- Tasks whose end was found, tasks that were not known at all, tasks of which nobody knows any more than before.
    tasks_repaired bigint,
    tasks_found bigint,
    tasks_unknown bigint,
    -- What bounded or failed it.
    repair_note text,
    primary key (broker_id, gap_id)
);
create index gap_from on kanchi.gap (broker_id, from_at);

create table kanchi.dead_letter (
    dead_letter_id bigint generated always as identity,
    broker_id integer not null references kanchi.broker on delete cascade,
    arrived_at timestamptz not null,
    reason text not null,
    detail text not null,
    sample bytea not null,
    noted_at timestamptz not null default now(),
    primary key (broker_id, dead_letter_id)
);

-- Failures that are alike: one task name, one type of exception, one message but for what varies (docs/failures.md). A
-- thousand groups a broker, those that failed last.
create table kanchi.failure_group (
    broker_id integer not null references kanchi.broker on delete cascade,
    -- A hash of the three below.
    fingerprint uuid not null,
    task text not null,
    exception_class text not null,
    message text not null,
    -- Since the group is known. Critical ones had been retried before; they are among the others.
    failed bigint not null,
    critical bigint not null,
    -- By the workers' clocks, but never ahead of the server's.
    first_seen_at timestamptz not null,
    last_seen_at timestamptz not null,
    -- The last of them.
    last_task_id text not null,
    example text not null,
    primary key (broker_id, fingerprint)
);
-- Lists, and which group has to go.
create index failure_group_last_seen on kanchi.failure_group (broker_id, last_seen_at desc, fingerprint);
