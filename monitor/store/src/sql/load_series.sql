-- Nothing is stored much before it happens: older partitions are left alone. A clock that is two days ahead is not heard.
select extract(epoch from starts_at)::bigint, key, sent, received, started, retried, succeeded, failed, revoked, rejected,
    expired, orphaned, recovered, critical, runtime_micros, runtime, wait_micros, wait
from kanchi.statistic
where broker_id = any ($1) and dimension = $2 and step_seconds = $3
    and starts_at >= kanchi.micros($4 * 1000000) and starts_at < kanchi.micros($5 * 1000000)
    and stored_at >= kanchi.micros($4 * 1000000) - interval '2 days'
    and retention_days <= $6 and key = any ($7)
