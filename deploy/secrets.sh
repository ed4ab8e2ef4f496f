#!/bin/sh
# Makes the secrets of a cluster: deploy/secrets.sh FOLDER
# Every value is drawn anew and written to a file of mode 0600.
set -eu
umask 077
folder=${1:?which folder? usage: secrets.sh FOLDER}

if [ -e "$folder" ]; then
    echo "secrets.sh: $folder is there already, and the databases keep what they were made with;" \
        "to begin anew, remove it and their data" >&2
    exit 2
fi
command -v openssl >/dev/null || { echo "secrets.sh: needs openssl" >&2; exit 3; }
mkdir -p "$folder"
echo '*' >"$folder/.gitignore"

draw() { openssl rand -hex "$1"; }
write() { cat >"$folder/$1"; }

draw 32 | write ray_auth_token
draw 32 | write mlflow_flask_key
draw 16 | write mlflow_admin_password

draw 16 | write postgres_password
write postgres_passfile <<END
*:*:*:mlflow:$(cat "$folder/postgres_password")
END

write mlflow_credentials <<END
[mlflow]
mlflow_tracking_username = trainer
mlflow_tracking_password = $(draw 16)
END

# Three pairs of S3 keys: to make buckets, for MLflow's artifacts, for the jobs.
identities=
identity() { # NAME ACTIONS
    access=$(draw 10) secret=$(draw 20)
    write "s3_$1" <<END
[default]
aws_access_key_id = $access
aws_secret_access_key = $secret
END
    identities="$identities${identities:+,
}  {\"name\": \"$1\", \"actions\": [$2],
   \"credentials\": [{\"accessKey\": \"$access\", \"secretKey\": \"$secret\"}]}"
}
on() { # BUCKET: everything in it, not the bucket itself
    printf '"Read:%s", "Write:%s", "List:%s", "Tagging:%s"' "$1" "$1" "$1" "$1"
}
identity admin '"Admin"'
identity mlflow "$(on mlflow)"
identity jobs "$(on datasets), $(on runs)"
write s3_identities <<END
{"identities": [
$identities
]}
END
echo "wrote $folder" >&2
