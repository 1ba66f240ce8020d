-- The roles of Postgres: one owns and migrates, each service has its own, ingest's admin pages too, one streams to the replica.
--
-- Run on the primary, in the database of Rollcall, by a superuser; as often as you like. In one transaction (psql -1 -f): no
-- session begins between two statements, without its limits. Passwords are not set here: ALTER ROLE … PASSWORD with a SCRAM
-- verifier (psql's \password makes one). What a service may do with a table is granted when the table is made: see
-- ingest_service/grants.py, which `migrate` runs as the owner.
--
-- This file owns, grants and revokes only what is Rollcall's. If the database holds anything else, the rights of
-- PUBLIC, on which others may depend, stay as they are, and a warning says so.

-- A superuser runs this, and rollcall_owner may make anything in "public". So nothing is looked up there, and no table
-- is read: its owner may have put a view in its place, and the functions of a view run with the rights of its reader.
SET search_path = pg_catalog, pg_temp;

DO $$
DECLARE
    role text;
    share numeric;
BEGIN
    FOREACH role IN ARRAY ARRAY['rollcall_owner', 'rollcall_ingest', 'rollcall_admin', 'rollcall_manage',
                                'rollcall_replica'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
            EXECUTE format('CREATE ROLE %I', role);
        END IF;
        -- Also if it was there before, with more rights. A role may change its own settings: they are reset.
        EXECUTE format('ALTER ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS %s', role,
                       CASE role WHEN 'rollcall_replica' THEN 'REPLICATION' ELSE 'NOREPLICATION' END);
        EXECUTE format('ALTER ROLE %I RESET ALL', role);
        EXECUTE format('ALTER ROLE %I IN DATABASE %I RESET ALL', role, current_database());
        -- A service that opens connections without end leaves some to the others. Ingest has WORKERS x (BATCH_THREADS +
        -- 2) of them, and twice as many while it is reloaded. Manage has one for each thread, and one for the keeper;
        -- the admin one for each request in progress. If that is not enough, raise max_connections, and run this again.
        share := CASE role WHEN 'rollcall_ingest' THEN 0.8 WHEN 'rollcall_replica' THEN 0.1 ELSE 0.2 END;
        EXECUTE format('ALTER ROLE %I CONNECTION LIMIT %s', role,
                       greatest(10, floor(share * current_setting('max_connections')::numeric)));
    END LOOP;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO rollcall_owner, rollcall_ingest, rollcall_admin, rollcall_manage',
                   current_database());
END $$;

GRANT USAGE, CREATE ON SCHEMA public TO rollcall_owner;
GRANT USAGE ON SCHEMA public TO rollcall_ingest, rollcall_admin, rollcall_manage;

-- What a session may hold. Each service sets lower limits itself. The times are for others that use its role by
-- mistake, because a session may change them. It may not change the limit of files. The owner has none of these: an
-- index over a large table takes its time.
ALTER ROLE rollcall_ingest SET statement_timeout = '30s';
ALTER ROLE rollcall_ingest SET lock_timeout = '10s';
ALTER ROLE rollcall_ingest SET idle_in_transaction_session_timeout = '60s';
ALTER ROLE rollcall_ingest SET temp_file_limit = '64MB';
ALTER ROLE rollcall_admin SET statement_timeout = '30s';
ALTER ROLE rollcall_admin SET lock_timeout = '10s';
ALTER ROLE rollcall_admin SET idle_in_transaction_session_timeout = '60s';
ALTER ROLE rollcall_admin SET temp_file_limit = '256MB';
ALTER ROLE rollcall_manage SET statement_timeout = '30s';
ALTER ROLE rollcall_manage SET lock_timeout = '10s';
ALTER ROLE rollcall_manage SET idle_in_transaction_session_timeout = '60s';
ALTER ROLE rollcall_manage SET temp_file_limit = '256MB';

-- The statements of the admin hold keys of sessions and hashes of passwords. They are not shown in pg_stat_activity, and not
-- written to the log: neither those that fail or are slow, nor the values that an error quotes.
ALTER ROLE rollcall_admin SET track_activities = off;
ALTER ROLE rollcall_admin SET log_statement = 'none';
ALTER ROLE rollcall_admin SET log_min_error_statement = 'panic';
ALTER ROLE rollcall_admin SET log_min_duration_statement = -1;
ALTER ROLE rollcall_admin SET log_min_duration_sample = -1;
ALTER ROLE rollcall_admin SET log_transaction_sample_rate = 0;
ALTER ROLE rollcall_admin SET log_error_verbosity = 'terse';
ALTER ROLE rollcall_admin SET auto_explain.log_min_duration = -1;

-- Manage reads a replica, which cannot be written to. This has the same effect if it is given the primary by mistake.
ALTER ROLE rollcall_manage SET default_transaction_read_only = on;

-- A replica shows which timeline it receives only to roles that may read all statistics, and so also the statements of
-- others: see shared_models/protocol/timeline.py. Without this it is known from the replica's next restart point on,
-- and until then runs wait after a switchover. So manage gets this one number, and nothing else. (Not in a schema
-- "rollcall": of a user of this name, it would come before "public".)
DO $$
DECLARE
    holder text;
BEGIN
    SELECT rolname INTO holder FROM pg_namespace JOIN pg_roles ON nspowner = pg_roles.oid
    WHERE nspname = 'rollcall_internal' AND NOT rolsuper;
    IF holder IS NOT NULL THEN
        RAISE EXCEPTION 'the schema "rollcall_internal" belongs to "%", who is no superuser', holder
            USING HINT = 'Rollcall makes a schema of this name. Rename that one, or give Rollcall a database of its own.';
    END IF;
    -- It asks first, because IF NOT EXISTS would print a notice at every run.
    IF NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'rollcall_internal') THEN
        CREATE SCHEMA rollcall_internal;
    END IF;
    REVOKE ALL ON SCHEMA rollcall_internal FROM PUBLIC;
    CREATE OR REPLACE FUNCTION rollcall_internal.received_timeline() RETURNS integer
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
        AS 'SELECT received_tli FROM pg_catalog.pg_stat_wal_receiver';
    REVOKE ALL ON FUNCTION rollcall_internal.received_timeline() FROM PUBLIC;
    GRANT USAGE ON SCHEMA rollcall_internal TO rollcall_manage;
    GRANT EXECUTE ON FUNCTION rollcall_internal.received_timeline() TO rollcall_manage;
    -- From before there was the function.
    IF pg_has_role('rollcall_manage', 'pg_read_all_stats', 'MEMBER') THEN
        REVOKE pg_read_all_stats FROM rollcall_manage;
    END IF;
END $$;

-- The triggers on counted tables write into a schema of its own. Migrations could not make it, because the owner may
-- make things in "public" only. If somebody has adopted a table before, the schema is there, and keeps its owner.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'rollcall_triggers') THEN
        CREATE SCHEMA rollcall_triggers AUTHORIZATION rollcall_owner;
    END IF;
END $$;

DO $$
DECLARE
    owner CONSTANT oid := 'rollcall_owner'::regrole;
    stamp CONSTANT oid := to_regprocedure('public.rollcall_stamp_xact()');
    own oid[];
    functions oid[];
    others text[];
    made record;
BEGIN
    -- Rollcall's tables. The names are common ones: a table that is counted is known by its trigger, the receipts by their columns,
    -- and Django's are Rollcall's where those are. A table that was adopted has other triggers, and stays whose it is.
    SELECT coalesce(array_agg(c.oid), '{}') INTO own FROM pg_class c JOIN pg_trigger t ON t.tgrelid = c.oid
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND t.tgfoid = stamp;
    IF own <> '{}' THEN
        own := own || ARRAY(
            SELECT c.oid FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND (
                c.relname IN ('django_migrations', 'django_content_type', 'django_admin_log', 'django_session',
                              'auth_permission', 'auth_group', 'auth_group_permissions', 'auth_user', 'auth_user_groups',
                              'auth_user_user_permissions')
                OR c.relname = 'receipt' AND ARRAY['key', 'fingerprint', 'answer', 'create_time']::name[] <@ ARRAY(
                    SELECT attname FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped)));
        functions := stamp || ARRAY(
            SELECT DISTINCT p.oid FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
            WHERE t.tgrelid = ANY (own) AND t.tgname ~ '^zzz_rollcall_' AND p.pronamespace = 'public'::regnamespace
            UNION  -- those that make partitions ahead
            SELECT oid FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND proname ~ '^rollcall_partitions_' AND pronargs = 0);
        own := own || ARRAY(
            SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = 'rollcall_triggers' AND c.relname = 'departure' AND c.relkind = 'r');
    END IF;

    -- Everything else that somebody has made here, except for parts of extensions.
    SELECT array_agg(format('%s %s of %s', thing.type, thing.identity, pg_get_userbyid(found.holder))
                     ORDER BY thing.type, thing.identity) INTO others
    FROM (
        SELECT 'pg_class'::regclass AS class, oid, relnamespace AS schema, relowner AS holder FROM pg_class
        -- A sequence of a column goes with its table.
        WHERE relkind IN ('r', 'p', 'v', 'm', 'f') AND oid <> ALL (own) OR relkind = 'S' AND NOT EXISTS (
            SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = pg_class.oid
                                          AND d.deptype IN ('a', 'i'))
        UNION ALL
        SELECT 'pg_proc'::regclass, oid, pronamespace, proowner FROM pg_proc WHERE own = '{}' OR oid <> ALL (functions)
        UNION ALL
        SELECT 'pg_type'::regclass, oid, typnamespace, typowner FROM pg_type WHERE typrelid = 0 AND typcategory <> 'A'
        UNION ALL
        SELECT 'pg_namespace'::regclass, oid, oid, nspowner FROM pg_namespace
        WHERE nspname <> 'public' AND (nspname <> 'rollcall_triggers' OR own = '{}')
        UNION ALL
        SELECT 'pg_largeobject'::regclass, oid, 0, lomowner FROM pg_largeobject_metadata
        UNION ALL
        -- Of any other kind (servers, publications, …), what belongs to somebody by name.
        SELECT classid, objid, 0, refobjid FROM pg_shdepend
        WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND deptype = 'o'
          AND classid NOT IN ('pg_class'::regclass, 'pg_proc'::regclass, 'pg_type'::regclass, 'pg_namespace'::regclass,
                              'pg_largeobject'::regclass, 'pg_statistic_ext'::regclass)
    ) AS found, LATERAL pg_identify_object(found.class, found.oid, 0) AS thing
    WHERE found.oid >= 16384  -- below are Postgres' own
      AND found.holder <> owner
      AND found.schema NOT IN (
          SELECT n.oid FROM pg_namespace n JOIN pg_roles r ON r.oid = n.nspowner
          WHERE n.nspname = 'rollcall_internal' AND r.rolsuper OR n.nspname ~ '^pg_(toast_)?temp_')
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = found.class AND d.objid = found.oid AND d.deptype = 'e');

    IF others IS NOT NULL THEN
        RAISE WARNING 'this database is not Rollcall''s alone: it holds % (% in all)',
            array_to_string(others[1:3], ', '), array_length(others, 1)
            USING DETAIL = 'No table was given to rollcall_owner, and the rights of PUBLIC are left as they are, so that '
                           'nothing is taken from others: everybody may connect, make temporary tables and large objects, '
                           'and take advisory locks, if that was so before. rollcall_owner may make things in "public".',
                  HINT = 'Give Rollcall a database of its own to have it locked.';
        RETURN;
    END IF;

    -- From before there were roles: the owner gets them.
    ALTER SCHEMA rollcall_triggers OWNER TO rollcall_owner;
    FOR made IN SELECT oid::regclass::text AS name FROM pg_class WHERE oid = ANY (own) AND relowner <> owner LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO rollcall_owner', made.name);
    END LOOP;
    FOR made IN SELECT oid::regprocedure::text AS name FROM pg_proc WHERE oid = ANY (functions) AND proowner <> owner LOOP
        EXECUTE format('ALTER FUNCTION %s OWNER TO rollcall_owner', made.name);
    END LOOP;
    FOR made IN
        SELECT stxname FROM pg_statistic_ext
        WHERE stxrelid = ANY (own) AND stxnamespace = 'public'::regnamespace AND stxowner <> owner
    LOOP
        EXECUTE format('ALTER STATISTICS public.%I OWNER TO rollcall_owner', made.stxname);
    END LOOP;

    -- Only roles that are named here may connect. No role makes temporary tables, and only the owner makes lasting
    -- ones.
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    REVOKE ALL ON SCHEMA public FROM PUBLIC;
    -- No role writes anything but rows: by default everybody may make large objects. No role takes advisory locks
    -- either, which Rollcall does not use: a session that takes enough of them leaves no lock to others on this server,
    -- so that nobody can even connect.
    FOR made IN
        SELECT oid::regprocedure::text AS signature FROM pg_proc
        WHERE pronamespace = 'pg_catalog'::regnamespace
          AND (proname IN ('lo_create', 'lo_creat', 'lo_from_bytea', 'lo_put', 'lowrite', 'lo_import', 'lo_open')
               OR proname ~ '^pg_(try_)?advisory_(xact_)?lock(_shared)?$')
    LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', made.signature);
    END LOOP;
END $$;
