select kanchi.unix_micros(c.stored_at), c.events
from kanchi.event_chunk c
where hashtextextended(c.task_id, 0) = hashtextextended($2, 0) and c.task_id = $2 and c.broker_id = $1
    and c.stored_at > kanchi.micros($3)
order by c.stored_at, c.first_at
limit $4
