#!/bin/sh
# Makes the roles of roles.sql on the primary, with the passwords that lie in the secrets. It runs before every migration:
# a changed roles.sql takes effect with the next start, and so does a changed password.
#
# libpq's variables say where the primary is (PGHOST, PGUSER, PGDATABASE, …).
set -eu
secrets=${SECRETS_FOLDER:-/run/secrets}
here=$(dirname "$0")

PGPASSWORD=$(cat "$secrets/postgres_superuser")
# Nothing is looked up where another role may make something: this is a superuser.
PGOPTIONS='-c search_path=pg_catalog,pg_temp -c client_min_messages=warning'
export PGPASSWORD PGOPTIONS

run_sql() {
    psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 "$@"
}

# The password in a URL; only letters and digits, so that nothing has to be unescaped.
password_in() {
    found=$(sed -nE 's|^postgres(ql)?://[^:/]+:([A-Za-z0-9]+)@.*$|\2|p' "$1")
    if [ -z "$found" ]; then
        echo "$1: has to be postgres://role:password@host:port/rollcall, with a password of letters and digits" >&2
        exit 1
    fi
    printf %s "$found"
}

# psql gets the password by the environment, not by its arguments. It is in no log, also if the statement fails, and the
# server shows it neither in its sessions nor in its statistics of statements.
set_password() {
    ROLE=$1 PASSWORD=$2 run_sql <<'SQL'
\getenv role ROLE
\getenv password PASSWORD
SET log_statement = 'none';
SET log_min_duration_statement = -1;
SET log_min_error_statement = 'panic';
SET track_activities = off;
SET pg_stat_statements.track = 'none';
ALTER ROLE :"role" PASSWORD :'password';
SQL
}

run_sql --single-transaction --file "$here/roles.sql"
for role in owner ingest admin manage; do
    password=$(password_in "$secrets/${role}_database_url")
    set_password "rollcall_$role" "$password"
done
set_password rollcall_replica "$(cat "$secrets/postgres_replica")"
echo "The roles are as roles.sql says."
