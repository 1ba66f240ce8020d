#!/bin/sh
# What the image nginx documents of its entrypoint, as far as the compose file uses it: *.template below /etc/nginx/templates is
# written, with the variables that NGINX_ENVSUBST_FILTER matches, below NGINX_ENVSUBST_OUTPUT_DIR.
set -eu
names=$(env | cut -d= -f1 | grep -E "${NGINX_ENVSUBST_FILTER:-}" | sed 's/.*/${&}/' | tr '\n' ' ')
cd /etc/nginx/templates
find . -follow -name '*.template' | while read -r template; do
    target="${NGINX_ENVSUBST_OUTPUT_DIR:-/etc/nginx/conf.d}/${template%.template}"
    mkdir -p "$(dirname "$target")"
    envsubst "$names" < "$template" > "$target"
done
cd /
exec "$@"
