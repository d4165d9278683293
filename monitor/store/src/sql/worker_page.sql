select w.broker_id, w.hostname, w.state, w.pid, w.freq, w.active, w.processed, w.loadavg, w.sw_ident, w.sw_ver, w.sw_sys,
    kanchi.unix_micros(w.started_at), kanchi.unix_micros(w.last_event_at), kanchi.unix_micros(w.last_heartbeat_at),
    w.pool
from unnest($1::integer[]) as b (broker_id) cross join lateral (
    select * from kanchi.worker k
    where k.broker_id = b.broker_id and b.broker_id >= $2 and (b.broker_id > $2 or k.hostname > $3)
    order by k.hostname
    limit $4
) as w
order by w.broker_id, w.hostname
limit $4
