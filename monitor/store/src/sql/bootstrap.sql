-- What the migrator needs before the first migration. Does nothing when it is there; writes nothing then, so that a
-- start of the operator leaves no trace.
do $$
begin
    if to_regclass('kanchi.upkeep_lock') is null then
        create schema if not exists kanchi;
        revoke all on schema kanchi from public;
        create table if not exists kanchi.migration (
            version integer primary key,
            name text not null,
            applied_at timestamptz not null default now()
        );
        -- One row, locked by whoever migrates or does the upkeep.
        create table if not exists kanchi.upkeep_lock (singleton boolean primary key default true check (singleton));
        insert into kanchi.upkeep_lock default values on conflict do nothing;
    end if;
end $$;
