#!/bin/sh
# A streaming replica that seeds itself: at its first start it copies the primary, then it streams. Arguments go to postgres.
#
# PGDATA is complete or missing: the copy is made beside it, and then moved. A replica that the primary has left behind
# (max_slot_wal_keep_size), or that has another primary than before, says so in its log: remove its volume, and it
# copies again.
set -eu
primary_host=${PRIMARY_HOST:-primary}
primary_port=${PRIMARY_PORT:-5432}
slot=${SLOT:-replica}

# In the environment, so that the password is not in the data folder: the process that streams reads it from here, too.
PGPASSWORD=$(cat "${SECRETS_FOLDER:-/run/secrets}/postgres_replica")
export PGPASSWORD
from="host=$primary_host port=$primary_port user=rollcall_replica application_name=$slot"

if [ ! -e "$PGDATA/PG_VERSION" ]; then
    echo "Copying the primary at $primary_host:$primary_port …"
    rm -rf "$PGDATA.new"
    mkdir -p "$(dirname "$PGDATA")"
    # The slot makes the primary keep what this replica has not read yet.
    pg_receivewal --dbname "$from" --no-password --slot "$slot" --create-slot --if-not-exists
    pg_basebackup --dbname "$from" --no-password --slot "$slot" --wal-method stream --checkpoint fast --pgdata "$PGDATA.new"
    touch "$PGDATA.new/standby.signal"
    rm -rf "$PGDATA"
    mv "$PGDATA.new" "$PGDATA"
fi

# hot_standby_feedback: so that vacuum on the primary does not cancel a long read here.
exec postgres -D "$PGDATA" -c primary_conninfo="$from" -c primary_slot_name="$slot" -c hot_standby=on \
    -c hot_standby_feedback=on -c wal_receiver_status_interval=1s "$@"
