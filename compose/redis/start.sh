#!/bin/sh
# Starts Redis with the users of users.acl: their passwords, as SHA-256, come from the secrets. Arguments go to redis-server.
set -eu
secrets=${SECRETS_FOLDER:-/run/secrets}
here=$(dirname "$0")
users=${TMPDIR:-/tmp}/users.acl

sha256() {
    printf %s "$1" | sha256sum | cut -d ' ' -f 1
}

# The password in a URL; only letters and digits, so that nothing has to be unescaped.
password_in() {
    found=$(sed -nE 's|^rediss?://[^:/]+:([A-Za-z0-9]+)@.*$|\1|p' "$1")
    if [ -z "$found" ]; then
        echo "$1: has to be redis://user:password@host:port/0, with a password of letters and digits" >&2
        exit 1
    fi
    printf %s "$found"
}

admin=$(sha256 "$(cat "$secrets/redis_admin")")
ingest=$(password_in "$secrets/ingest_redis_url")
manage=$(password_in "$secrets/manage_redis_url")
query=$(password_in "$secrets/query_redis_url")

umask 077
# An ACL file takes no comments.
grep '^user ' "$here/users.acl" | sed \
    -e "s/\${ADMIN_SHA256}/$admin/" \
    -e "s/\${INGEST_SHA256}/$(sha256 "$ingest")/" \
    -e "s/\${MANAGE_SHA256}/$(sha256 "$manage")/" \
    -e "s/\${QUERY_SHA256}/$(sha256 "$query")/" > "$users"

exec redis-server "$here/redis.conf" --aclfile "$users" "$@"
