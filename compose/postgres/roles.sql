-- The roles of Postgres: one owns and migrates, each service has its own, ingest's admin pages too, one streams to the replica.
--
-- Run on the primary, in the database of Rollcall, by a superuser; as often as you like. Passwords are not set here:
-- ALTER ROLE … PASSWORD with a SCRAM verifier (psql's \password makes one). What a service may do with a table is granted
-- when the table is made: see ingest_service/grants.py, which `migrate` runs as the owner.

DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['rollcall_owner', 'rollcall_ingest', 'rollcall_admin', 'rollcall_manage',
                                'rollcall_replica'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
            EXECUTE format('CREATE ROLE %I', role);
        END IF;
        -- Also where it was there before, with more than this.
        EXECUTE format('ALTER ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS %s', role,
                       CASE role WHEN 'rollcall_replica' THEN 'REPLICATION' ELSE 'NOREPLICATION' END);
    END LOOP;

    -- Nobody connects who is not named here, nobody makes temporary tables, and only the owner makes lasting ones.
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO rollcall_owner, rollcall_ingest, rollcall_admin, rollcall_manage',
                   current_database());
END $$;

REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO rollcall_owner;
GRANT USAGE ON SCHEMA public TO rollcall_ingest, rollcall_admin, rollcall_manage;

-- Manage reads a replica, which cannot be written to. This says the same where it is given the primary by mistake.
ALTER ROLE rollcall_manage SET default_transaction_read_only = on;

-- A replica says to no other role which timeline it receives: see shared_models/source.py. Without this it is known
-- only from the replica's next restart point on, and until then runs wait after a switchover.
GRANT pg_read_all_stats TO rollcall_manage;

-- Nobody writes anything but rows: large objects are everybody's by default.
DO $$
DECLARE
    made record;
BEGIN
    FOR made IN
        SELECT oid::regprocedure::text AS signature FROM pg_proc
        WHERE pronamespace = 'pg_catalog'::regnamespace
          AND proname IN ('lo_create', 'lo_creat', 'lo_from_bytea', 'lo_put', 'lowrite', 'lo_import', 'lo_open')
    LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', made.signature);
    END LOOP;
END $$;

-- Tables from before there were roles.
DO $$
DECLARE
    made record;
BEGIN
    FOR made IN
        SELECT relname, CASE relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS kind FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relowner <> 'rollcall_owner'::regrole
          AND (relkind = 'r' OR relkind = 'S' AND NOT EXISTS (
              SELECT FROM pg_depend WHERE objid = pg_class.oid AND deptype IN ('a', 'i')))
    LOOP
        EXECUTE format('ALTER %s public.%I OWNER TO rollcall_owner', made.kind, made.relname);
    END LOOP;
    FOR made IN
        SELECT oid::regprocedure::text AS signature FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace AND proowner <> 'rollcall_owner'::regrole
    LOOP
        EXECUTE format('ALTER FUNCTION %s OWNER TO rollcall_owner', made.signature);
    END LOOP;
    FOR made IN
        SELECT stxname FROM pg_statistic_ext
        WHERE stxnamespace = 'public'::regnamespace AND stxowner <> 'rollcall_owner'::regrole
    LOOP
        EXECUTE format('ALTER STATISTICS public.%I OWNER TO rollcall_owner', made.stxname);
    END LOOP;
END $$;
