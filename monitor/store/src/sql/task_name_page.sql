select n.broker_id, n.name, kanchi.unix_micros(n.first_seen_at), kanchi.unix_micros(n.last_seen_at)
from unnest($1::integer[]) as b (broker_id) cross join lateral (
    select * from kanchi.task_name k
    where k.broker_id = b.broker_id and b.broker_id >= $2 and (b.broker_id > $2 or k.name > $3)
        -- Nothing that begins with the prefix comes behind the last character there is.
        and k.name >= $4 and k.name < $4 || chr(1114111)
    order by k.name
    limit $5
) as n
order by n.broker_id, n.name
limit $5
