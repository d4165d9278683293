-- Indexes of the named queries (monitor/store/src/query). What each serves and what it costs is in
-- docs/adr/0003-queries.md; a test drops each of them in turn and sees the check of the plans fail.
--
-- A list is read backwards by arrival: received, or what else is known of a task that no worker got, so that no list
-- loses one. Three indexes have the arrival, each in another form, so that no query can be planned over the wrong one:
-- plans are kept for a session, and on partitions that are empty all of them cost the same.

-- The lists of some brokers. The hashes are looked at within the index: a row of another name, queue or worker costs a
-- sixth of a microsecond instead of a look into the table.
create index task_arrived on kanchi.task (
    broker_id,
    (coalesce(received_at, sent_at, started_at, finished_at, stored_at)),
    hashtext(name), hashtext(queue), hashtext(worker));

-- The lists of what went wrong: a few rows in a hundred.
create index task_unsuccessful on kanchi.task (
    (broker_id::bigint),
    (coalesce(received_at, sent_at, started_at, finished_at, stored_at)),
    hashtext(name), hashtext(queue), hashtext(worker))
    where state <> 'SUCCESS';

-- The lists of many brokers: one probe a partition, not one a partition and broker.
create index task_arrived_any on kanchi.task (
    (coalesce(received_at, sent_at, started_at, finished_at, stored_at) at time zone 'UTC'));

-- Workflows, by root and within one by parent. Tasks that stand alone, which are their own root, are not in it.
create index task_family on kanchi.task (hashtextextended(root_id, 0), hashtextextended(parent_id, 0))
    where root_id <> task_id;

-- Lines of charts, by key: the primary key has the time before it, and reads all keys of a range.
create index statistic_key on kanchi.statistic ((broker_id::bigint), step_seconds, dimension, key, starts_at);
