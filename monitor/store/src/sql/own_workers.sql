select hostname, state, pid, freq, active, processed, loadavg, sw_ident, sw_ver, sw_sys,
    (extract(epoch from started_at) * 1000000)::bigint,
    (extract(epoch from last_event_at) * 1000000)::bigint,
    (extract(epoch from last_heartbeat_at) * 1000000)::bigint, pool
from kanchi.own_worker
order by last_event_at desc
limit 10000
