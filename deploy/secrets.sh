#!/bin/sh
# Create the secrets of a cluster: deploy/secrets.sh FOLDER
# Each value is random, and written to a file of mode 0600.
set -eu
umask 077
folder=${1:?missing FOLDER; usage: secrets.sh FOLDER}

if [ -e "$folder" ]; then
    echo "secrets.sh: $folder already exists, and the databases still use its secrets; to start over," \
        "remove it and their data" >&2
    exit 2
fi
command -v openssl >/dev/null || { echo "secrets.sh: openssl is not installed" >&2; exit 3; }
mkdir -p "$folder"
echo '*' >"$folder/.gitignore"

random() { openssl rand -hex "$1"; }
write() { cat >"$folder/$1"; }

random 32 | write ray_auth_token
random 32 | write mlflow_flask_key
random 16 | write mlflow_admin_password

random 16 | write postgres_password
write postgres_passfile <<END
*:*:*:mlflow:$(cat "$folder/postgres_password")
END

write mlflow_credentials <<END
[mlflow]
mlflow_tracking_username = trainer
mlflow_tracking_password = $(random 16)
END

# Three pairs of S3 keys: for creating buckets, for MLflow's artifacts, and for jobs.
identities=
identity() { # NAME ACTIONS
    access=$(random 10) secret=$(random 20)
    write "s3_$1" <<END
[default]
aws_access_key_id = $access
aws_secret_access_key = $secret
END
    identities="$identities${identities:+,
}  {\"name\": \"$1\", \"actions\": [$2],
   \"credentials\": [{\"accessKey\": \"$access\", \"secretKey\": \"$secret\"}]}"
}
access_to() { # BUCKET: all of its objects, but not the bucket itself
    printf '"Read:%s", "Write:%s", "List:%s", "Tagging:%s"' "$1" "$1" "$1" "$1"
}
identity admin '"Admin"'
identity mlflow "$(access_to mlflow)"
identity jobs "$(access_to datasets), $(access_to runs)"
write s3_identities <<END
{"identities": [
$identities
]}
END
echo "wrote $folder" >&2
