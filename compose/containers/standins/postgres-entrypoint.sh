#!/bin/sh
# What the image postgres documents of its entrypoint, as far as the compose file uses it: POSTGRES_PASSWORD(_FILE),
# POSTGRES_USER, POSTGRES_DB, POSTGRES_INITDB_ARGS, PGDATA, and *.sql in /docker-entrypoint-initdb.d, once, for an empty folder.
set -eu
[ "$1" = postgres ] || exec "$@"
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    user=${POSTGRES_USER:-postgres}
    password=${POSTGRES_PASSWORD:-$(cat "${POSTGRES_PASSWORD_FILE:?set POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE}")}
    mkdir -p "$PGDATA"
    chmod 700 "$PGDATA"
    printf '%s\n' "$password" > /tmp/pwfile
    # The arguments are words, as in the image.
    # shellcheck disable=SC2086
    initdb --username="$user" --pwfile=/tmp/pwfile --auth-host=scram-sha-256 --auth-local=trust --pgdata="$PGDATA" ${POSTGRES_INITDB_ARGS:-}
    rm /tmp/pwfile
    # Only its socket, until it is set up.
    pg_ctl --pgdata="$PGDATA" --options="-c listen_addresses=''" --wait start
    psql="psql --no-psqlrc -v ON_ERROR_STOP=1 --host=/var/run/postgresql --username=$user --dbname=postgres"
    if [ "${POSTGRES_DB:-$user}" != postgres ]; then
        $psql -c "CREATE DATABASE \"${POSTGRES_DB:-$user}\""
    fi
    for script in /docker-entrypoint-initdb.d/*.sql; do
        [ ! -e "$script" ] || $psql --dbname="${POSTGRES_DB:-$user}" --file="$script"
    done
    pg_ctl --pgdata="$PGDATA" --mode=fast --wait stop
    echo "PostgreSQL init process complete; ready for start up."
fi
shift
exec postgres "$@"
