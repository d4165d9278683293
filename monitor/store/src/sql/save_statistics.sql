insert into kanchi.statistic (broker_id, retention_days, stored_at, step_seconds, starts_at, dimension, key, sent, received,
    started, retried, succeeded, failed, revoked, rejected, expired, orphaned, recovered, critical, runtime_micros, runtime,
    wait_micros, wait)
select n.broker_id, n.retention_days, kanchi.micros($1 * 1000000), n.step_seconds, kanchi.micros(n.starts_at * 1000000),
    n.dimension, n.key, n.sent, n.received, n.started, n.retried, n.succeeded, n.failed, n.revoked, n.rejected, n.expired,
    n.orphaned, n.recovered, n.critical, n.runtime_micros, n.runtime, n.wait_micros, n.wait
from unnest($2::integer[], $3::smallint[], $4::integer[], $5::bigint[], $6::text[], $7::text[], $8::bigint[], $9::bigint[],
        $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[], $15::bigint[], $16::bigint[],
        $17::bigint[], $18::bigint[], $19::bigint[], $20::bigint[], $21::bytea[], $22::bigint[], $23::bytea[])
    as n (broker_id, retention_days, step_seconds, starts_at, dimension, key, sent, received, started, retried, succeeded,
        failed, revoked, rejected, expired, orphaned, recovered, critical, runtime_micros, runtime, wait_micros, wait)
on conflict (broker_id, step_seconds, dimension, starts_at, key, retention_days, stored_at) do update set
    sent = excluded.sent, received = excluded.received, started = excluded.started, retried = excluded.retried,
    succeeded = excluded.succeeded, failed = excluded.failed, revoked = excluded.revoked, rejected = excluded.rejected,
    expired = excluded.expired, orphaned = excluded.orphaned, recovered = excluded.recovered, critical = excluded.critical,
    runtime_micros = excluded.runtime_micros, runtime = excluded.runtime, wait_micros = excluded.wait_micros,
    wait = excluded.wait
