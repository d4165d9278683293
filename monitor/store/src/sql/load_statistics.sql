select n.number, s.sent, s.received, s.started, s.retried, s.succeeded, s.failed, s.revoked, s.rejected, s.expired, s.orphaned,
    s.recovered, s.critical, s.runtime_micros, s.runtime, s.wait_micros, s.wait
from unnest($2::integer[], $3::smallint[], $4::integer[], $5::bigint[], $6::text[], $7::text[]) with ordinality
        as n (broker_id, retention_days, step_seconds, starts_at, dimension, key, number)
    cross join lateral (
        select * from kanchi.statistic s
        where s.broker_id = n.broker_id and s.step_seconds = n.step_seconds and s.dimension = n.dimension
            and s.starts_at = kanchi.micros(n.starts_at * 1000000) and s.key = n.key
            and s.retention_days = n.retention_days and s.stored_at = kanchi.micros($1 * 1000000)
        offset 0) as s
