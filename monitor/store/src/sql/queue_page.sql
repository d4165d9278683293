select q.broker_id, q.name, q.ready, q.unacked, q.consumers, kanchi.unix_micros(q.sampled_at)
from unnest($1::integer[]) as b (broker_id) cross join lateral (
    select * from kanchi.queue k
    where k.broker_id = b.broker_id and b.broker_id >= $2 and (b.broker_id > $2 or k.name > $3)
    order by k.name
    limit $4
) as q
order by q.broker_id, q.name
limit $4
