#!/bin/sh
# Create the secrets of deploy/compose.yaml: sudo deploy/compose-secrets.sh [FOLDER]
# The default folder is deploy/secrets.
#
# Compose mounts these files with their owners, so each must belong to the user of its container: 10001
# in our image, 999 in PostgreSQL's. Only root can set that.
set -eu
here=$(dirname "$0")
folder=${1:-$here/secrets}
"$here/secrets.sh" "$folder"
if [ "$(id -u)" = 0 ]; then
    chown -R 10001:10001 "$folder"
    chown 999:999 "$folder/postgres_password"
else
    echo "compose-secrets.sh: not run as root, so the containers cannot read the files; for compose" \
        "run: sudo $0" >&2
fi
