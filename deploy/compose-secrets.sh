#!/bin/sh
# Makes the secrets of deploy/compose.yaml: sudo deploy/compose-secrets.sh [FOLDER], by default deploy/secrets.
#
# Compose mounts these files as they are, so each must belong to the user that reads it in its
# container, which only root can arrange: 10001 in our image, 999 in PostgreSQL's.
set -eu
here=$(dirname "$0")
folder=${1:-$here/secrets}
"$here/secrets.sh" "$folder"
if [ "$(id -u)" = 0 ]; then
    chown -R 10001:10001 "$folder"
    chown 999:999 "$folder/postgres_password"
else
    echo "compose-secrets.sh: not run as root, so the files are yours, and containers that run as" \
        "other users cannot read them; for compose: sudo $0" >&2
fi
