-- The roles of Postgres: one owns and migrates, each service has its own, ingest's admin pages too, one streams to the replica.
--
-- Run on the primary, in the database of Rollcall, by a superuser; as often as you like. Passwords are not set here:
-- ALTER ROLE … PASSWORD with a SCRAM verifier (psql's \password makes one). What a service may do with a table is granted
-- when the table is made: see ingest_service/grants.py, which `migrate` runs as the owner.
--
-- Only what is Rollcall's is owned, granted or revoked here. Where the database holds anything else, the rights of PUBLIC,
-- which others may live on, stay as they are, and a warning says so.

-- Whoever runs this is a superuser: nothing is looked up in a schema where somebody else may make operators or functions.
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
        -- Also where it was there before, with more than this. A role may change its own settings: they are put back.
        EXECUTE format('ALTER ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS %s', role,
                       CASE role WHEN 'rollcall_replica' THEN 'REPLICATION' ELSE 'NOREPLICATION' END);
        EXECUTE format('ALTER ROLE %I RESET ALL', role);
        EXECUTE format('ALTER ROLE %I IN DATABASE %I RESET ALL', role, current_database());
        -- One service that opens connections without end leaves some to the others. Ingest has WORKERS x (THREADS + 1) of
        -- them, twice while it is reloaded: raise max_connections with them, and run this again.
        share := CASE role WHEN 'rollcall_ingest' THEN 0.8 WHEN 'rollcall_replica' THEN 0.1 ELSE 0.2 END;
        EXECUTE format('ALTER ROLE %I CONNECTION LIMIT %s', role,
                       greatest(10, floor(share * current_setting('max_connections')::numeric)));
    END LOOP;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO rollcall_owner, rollcall_ingest, rollcall_admin, rollcall_manage',
                   current_database());
END $$;

GRANT USAGE, CREATE ON SCHEMA public TO rollcall_owner;
GRANT USAGE ON SCHEMA public TO rollcall_ingest, rollcall_admin, rollcall_manage;

-- What a session may hold. Each service asks for less by itself; these are for a credential in other hands. The first three of a
-- role it may raise again in a session of its own, the files it may not.
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

-- The statements of the admin hold keys of sessions and hashes of passwords: nobody sees them in pg_stat_activity.
ALTER ROLE rollcall_admin SET track_activities = off;

-- Manage reads a replica, which cannot be written to. This says the same where it is given the primary by mistake.
ALTER ROLE rollcall_manage SET default_transaction_read_only = on;

-- A replica says which timeline it receives to those only who may read all statistics, and with them what others are asking:
-- see shared_models/source.py. Without this it is known from the replica's next restart point on, and until then runs wait after
-- a switchover. So manage gets this one number, and nothing else.
-- (Not in a schema "rollcall": of a user of this name, it would come before "public".)
CREATE SCHEMA IF NOT EXISTS rollcall_internal;
REVOKE ALL ON SCHEMA rollcall_internal FROM PUBLIC;
DO $$
BEGIN
    IF NOT (SELECT rolsuper FROM pg_roles JOIN pg_namespace ON nspowner = pg_roles.oid WHERE nspname = 'rollcall_internal') THEN
        RAISE EXCEPTION 'the schema "rollcall_internal" belongs to somebody else: rename it, or give Rollcall a database of its own';
    END IF;
END $$;
CREATE OR REPLACE FUNCTION rollcall_internal.received_timeline() RETURNS integer
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS 'SELECT received_tli FROM pg_catalog.pg_stat_wal_receiver';
REVOKE ALL ON FUNCTION rollcall_internal.received_timeline() FROM PUBLIC;
GRANT USAGE ON SCHEMA rollcall_internal TO rollcall_manage;
GRANT EXECUTE ON FUNCTION rollcall_internal.received_timeline() TO rollcall_manage;
DO $$
BEGIN
    -- From before there was the function.
    IF pg_has_role('rollcall_manage', 'pg_read_all_stats', 'MEMBER') THEN
        REVOKE pg_read_all_stats FROM rollcall_manage;
    END IF;
END $$;

-- Rollcall's own tables: those that `migrate` makes. The names are common ones, so what makes each of them Rollcall's is asked, too.
DO $$
DECLARE
    own oid[];
    foreign_names text[];
    made record;
BEGIN
    SELECT coalesce(array_agg(c.oid), '{}') INTO own FROM pg_class c
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND (
        c.relname = 'message' AND EXISTS (
            SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgname = 'rollcall_stamp_xact')
        OR c.relname = 'receipt' AND (
            SELECT array_agg(a.attname ORDER BY a.attname) FROM pg_attribute a
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        ) = ARRAY['answer', 'create_time', 'fingerprint', 'key']::name[]);
    -- Django's tables are Rollcall's where nothing else was migrated in this database.
    IF to_regclass('public.django_migrations') IS NOT NULL THEN
        FOR made IN EXECUTE
            'SELECT coalesce(bool_and(app IN (''shared_models'', ''ingest_service'', ''contenttypes'', ''auth'', ''admin'',
                                              ''sessions'')), true) AS ours FROM public.django_migrations'
        LOOP
            IF made.ours THEN
                own := own || (
                    SELECT array_agg(c.oid) FROM pg_class c
                    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND c.relname IN (
                        'django_migrations', 'django_content_type', 'django_admin_log', 'django_session', 'auth_permission',
                        'auth_group', 'auth_group_permissions', 'auth_user', 'auth_user_groups',
                        'auth_user_user_permissions'));
            END IF;
        END LOOP;
    END IF;

    -- From before there were roles: the owner gets them.
    FOR made IN SELECT c.relname FROM pg_class c WHERE c.oid = ANY (own) AND c.relowner <> 'rollcall_owner'::regrole LOOP
        EXECUTE format('ALTER TABLE public.%I OWNER TO rollcall_owner', made.relname);
    END LOOP;
    IF to_regprocedure('public.rollcall_stamp_xact()') IS NOT NULL THEN
        ALTER FUNCTION public.rollcall_stamp_xact() OWNER TO rollcall_owner;
    END IF;
    FOR made IN
        SELECT stxname FROM pg_statistic_ext
        WHERE stxrelid = ANY (own) AND stxnamespace = 'public'::regnamespace AND stxowner <> 'rollcall_owner'::regrole
    LOOP
        EXECUTE format('ALTER STATISTICS public.%I OWNER TO rollcall_owner', made.stxname);
    END LOOP;

    -- Whatever else somebody has made here, but for what belongs to an extension.
    SELECT array_agg(thing ORDER BY thing) INTO foreign_names FROM (
        SELECT c.oid::regclass::text AS thing FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
          AND c.relowner <> 'rollcall_owner'::regrole
          AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype IN ('e', 'i', 'a'))
        UNION ALL
        SELECT p.oid::regprocedure::text FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
        WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'rollcall_internal')
          AND p.proowner <> 'rollcall_owner'::regrole
          AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
        UNION ALL
        SELECT 'schema ' || n.nspname FROM pg_namespace n
        WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'public', 'rollcall_internal')
          AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = n.oid AND d.deptype = 'e')
        UNION ALL
        SELECT 'large object ' || oid::text FROM pg_largeobject_metadata
    ) AS others;
    IF foreign_names IS NOT NULL THEN
        RAISE WARNING 'this database is not Rollcall''s alone: it holds % (% in all)',
            foreign_names[1], array_length(foreign_names, 1)
            USING DETAIL = 'The rights of PUBLIC are left as they are, so that nothing is taken from others: everybody may '
                           'connect, make temporary tables and large objects, if that was so before.',
                  HINT = 'Give Rollcall a database of its own to have it locked.';
    ELSE
        -- Nobody connects who is not named here, nobody makes temporary tables, and only the owner makes lasting ones.
        EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
        REVOKE ALL ON SCHEMA public FROM PUBLIC;
        -- Nobody writes anything but rows: large objects are everybody's by default.
        FOR made IN
            SELECT oid::regprocedure::text AS signature FROM pg_proc
            WHERE pronamespace = 'pg_catalog'::regnamespace
              AND proname IN ('lo_create', 'lo_creat', 'lo_from_bytea', 'lo_put', 'lowrite', 'lo_import', 'lo_open')
        LOOP
            EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', made.signature);
        END LOOP;
    END IF;
END $$;
