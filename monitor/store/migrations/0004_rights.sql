-- Rights. Monitor roles are members of one group role per database: an access list with a thousand roles would neither
-- be fast nor fit its catalog row. A member may SET ROLE to the group, which changes nothing: the broker is derived
-- from session_user, which only a superuser can change.

create function kanchi.monitor_group() returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
    -- Roles are shared by all databases of a server, hence the database's number in the name.
    select 'kanchi_db_' || oid from pg_database where datname = current_database()
$$;

-- Gives a role what a monitor needs: the group of the monitors' own roles, or the role that all of them share.
create function kanchi.grant_to(p_role text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    item text;
begin
    execute format('grant connect on database %I to %I', current_database(), p_role);
    execute format('grant usage on schema kanchi to %I', p_role);
    -- Neither broker_id nor stored_at nor first_seen_at.
    execute format('grant insert (retention_days, task_id, first_at, event_count, events) on kanchi.event_chunk to %I', p_role);
    execute format('grant insert (task_id, facts, state, name, queue, worker, due_at) on kanchi.task_live to %I', p_role);
    execute format('grant insert (retention_days, first_stored_at, generation, task_id, state, mark, name, queue, queue_inferred, worker, retries, root_id,
        parent_id, sent_at, received_at, started_at, finished_at, eta, expires, runtime, args, kwargs, result, exception,
        facts) on kanchi.task to %I', p_role);
    execute format('grant insert (minute, payload) on kanchi.statistic_delta to %I', p_role);
    for item in select relname from pg_class
        where relnamespace = 'kanchi'::regnamespace and relkind = 'v' and relname like 'own\_%'
    loop
        execute format('grant select on kanchi.%I to %I', item, p_role);
    end loop;
    foreach item in array array[
        'schema_version()', 'shared_broker()', 'current_broker()', 'begin_epoch(text)',
        'holder(text)', 'take_over(text, bigint, bigint)', 'renew(bigint, bigint, bigint, boolean)', 'release(text, bigint)', 'end_stuck_writer()',
        'commit_batch(uuid, bigint, bytea, jsonb, jsonb, jsonb)',
        'merge_tasks(text[], bytea[], text[], text[], text[], text[], bigint[])', 'save_failures(jsonb)',
        'load_facts(text[])', 'live_ids(integer)', 'was_committed(uuid)', 'last_commit_at()', 'recent_digests()', 'prune_batches()',
        'hold_epoch(bigint)', 'current_generation()', 'generations_since(timestamptz)',
        'ended_ids(bigint, integer)', 'task_key(integer, text)', 'archived(text[], timestamptz, integer)', 'due(interval, integer)', 'take_history(text[], timestamptz)', 'unchecked(bigint, interval, integer)', 'take_ended(text[])',
        'lock_live(text[])', 'postpone(text[], timestamptz)',
        'held(text[], boolean, bigint, text, integer)', 'forget_workers(text[])',
        'beat(jsonb)', 'save_queues(bigint, jsonb, boolean)', 'save_workers(jsonb, boolean)', 'previous()', 'save_gaps(jsonb)',
        'save_repairs(jsonb)', 'unended(bigint, bigint, text, integer)']
    loop
        execute format('grant execute on function kanchi.%s to %I', item, p_role);
    end loop;
end $$;

-- Run by the migrator after each change of the schema. False: this user may not create roles.
create function kanchi.grant_rights() returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    monitors text := kanchi.monitor_group();
begin
    revoke all on schema kanchi from public;
    revoke all on all tables in schema kanchi from public;
    revoke all on all sequences in schema kanchi from public;
    revoke all on all functions in schema kanchi from public;
    -- Only who owns these can; a warning otherwise, or an error on some versions.
    begin
        execute format('revoke connect, temporary on database %I from public', current_database());
        revoke create on schema public from public;
    exception when insufficient_privilege or undefined_object or invalid_schema_name then
        raise notice 'not the owner of database and schema public: rights of public stay as they are';
    end;
    if not exists (select from pg_roles where rolname = monitors) then
        if not (select rolcreaterole or rolsuper from pg_roles where rolname = current_user) then
            return false;
        end if;
        execute format('create role %I nologin', monitors);
    end if;
    perform kanchi.grant_to(monitors);
    return true;
end $$;
