-- Returns the key when the row was made or changed; nothing when it is there as wanted.
with changed as (
    update kanchi.broker
    set namespace = $2, display_name = $4, succeeded_days = $5, failed_days = $6, events_days = $7,
        statistics_days = $8, retired_at = null
    where namespace_uid = $1 and name = $3 and purge_ordered_at is null
        and (namespace, display_name, succeeded_days, failed_days, events_days, statistics_days, retired_at)
            is distinct from ($2, $4, $5, $6, $7, $8, null)
    returning broker_id
), made as (
    insert into kanchi.broker (broker_id, namespace_uid, namespace, name, display_name, succeeded_days, failed_days,
        events_days, statistics_days)
    select nextval('kanchi.broker_key'), $1, $2, $3, $4, $5, $6, $7, $8
    where not exists (select from kanchi.broker where namespace_uid = $1 and name = $3 and purge_ordered_at is null)
    on conflict (namespace_uid, name) where purge_ordered_at is null do nothing
    returning broker_id
)
select broker_id from changed union all select broker_id from made
