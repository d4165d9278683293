-- Nothing is stored much before it happens: older partitions are left alone. A clock that is two days ahead is not heard.
-- $6: `used_classes`, as far as rows of this resolution can be of them.
select extract(epoch from s.starts_at)::bigint, s.key, s.sent, s.received, s.started, s.retried, s.succeeded, s.failed, s.revoked,
    s.rejected, s.expired, s.orphaned, s.recovered, s.critical, s.runtime_micros, s.runtime, s.wait_micros, s.wait
from unnest($1::integer[]) as b (broker_id) cross join unnest($7::text[]) as k (key) cross join lateral (
    select * from kanchi.statistic t
    where t.broker_id::bigint = b.broker_id and t.dimension = $2 and t.step_seconds = $3 and t.key = k.key
        and t.starts_at >= kanchi.micros($4 * 1000000) and t.starts_at < kanchi.micros($5 * 1000000)
        and t.stored_at >= kanchi.micros($4 * 1000000) - interval '2 days'
        and kanchi.stored_in($6, t.retention_days, t.stored_at)
    offset 0) as s
