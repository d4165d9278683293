-- The oldest of each broker together, so that few minutes meet in one step. The roll-up's lock lets no other delete here.
delete from kanchi.statistic_delta where ctid = any (array(
    select ctid
    from (
        select ctid, sum(octet_length(payload)) over (order by broker_id, minute rows unbounded preceding)
            - octet_length(payload) as bytes_before
        from (
            select ctid, broker_id, minute, payload from kanchi.statistic_delta order by broker_id, minute limit $1
        ) as oldest
    ) as sized
    where bytes_before < $2))
returning broker_id, extract(epoch from minute)::bigint, payload
