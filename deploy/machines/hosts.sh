#!/bin/sh
# Create the files of a cluster's hosts (/etc/orchestrator) and of its users (~/.orchestrator):
#
#   hosts.sh FOLDER HEAD [WORKER ...]      hosts by their IPv4 addresses
#
# FOLDER/ADDRESS is for a host: its secrets, its certificate and the addresses of services.
# FOLDER/client is for users. Existing files are kept, so that hosts can be added later.
set -eu
umask 077
here=$(cd "$(dirname "$0")" && pwd)

fail() { echo "hosts.sh: $1" >&2; exit 2; }
[ $# -ge 2 ] || fail "usage: hosts.sh FOLDER HEAD [WORKER ...]"
folder=$1 head=$2
shift
for host in "$@"; do
    expr "$host" : '[0-9]\{1,3\}\.[0-9]\{1,3\}\.[0-9]\{1,3\}\.[0-9]\{1,3\}$' >/dev/null ||
        fail "$host is not an IPv4 address such as 10.0.0.1"
done
mkdir -p "$folder"
cd "$folder"
[ -e head-address ] || echo "$head" >head-address
[ "$(cat head-address)" = "$head" ] ||
    fail "the head of $folder is $(cat head-address), not $head: list it first, or use another folder"

[ -e secrets ] || "$here/../secrets.sh" secrets

# One certificate authority. A host's certificate is valid for its address and for loopback.
key='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes'
# shellcheck disable=SC2086
[ -s ca.crt ] || openssl req -x509 $key -days 3650 -subj /CN=orchestrator \
    -addext keyUsage=critical,keyCertSign -keyout ca.key -out ca.crt 2>/dev/null

create_certificate() {
    # shellcheck disable=SC2086
    openssl req $key -subj "/CN=$1" -keyout "$1/tls/node.key" -out request 2>/dev/null
    cat >extensions <<END
subjectAltName = IP:$1, IP:127.0.0.1, DNS:localhost
extendedKeyUsage = serverAuth, clientAuth
END
    openssl x509 -req -in request -CA ca.crt -CAkey ca.key -CAcreateserial -days 825 \
        -extfile extensions -out "$1/tls/node.crt" 2>/dev/null
    rm request extensions
}

service_addresses() {
    cat <<END
MLFLOW_TRACKING_URI=https://$head:5000
AWS_ENDPOINT_URL_S3=http://$head:8333
AWS_DEFAULT_REGION=us-east-1
AWS_EC2_METADATA_DISABLED=true
ORCHESTRATOR_DATA=s3://datasets
ORCHESTRATOR_STORAGE=s3://runs
RAY_AUTH_MODE=token
END
}

for host in "$@"; do
    mkdir -p "$host/tls" "$host/secrets"
    cp ca.crt "$host/tls/"
    [ -s "$host/tls/node.crt" ] || create_certificate "$host"
    cd secrets
    if [ "$host" = "$head" ]; then
        cp -- * "../$host/secrets/"
    else
        cp ray_auth_token mlflow_credentials s3_jobs "../$host/secrets/"
    fi
    cd ..
    { printf 'HEAD_IP=%s\nNODE_IP=%s\n' "$head" "$host"; service_addresses; } >"$host/environment"
done
cat >"$head/mlflow.sql" <<END
CREATE ROLE mlflow LOGIN PASSWORD '$(cat secrets/postgres_password)';
CREATE DATABASE mlflow OWNER mlflow;
END

mkdir -p client
cp ca.crt secrets/ray_auth_token secrets/s3_jobs client/
{
    service_addresses | sed 's/^/export /'
    sed -n 's/^mlflow_tracking_\(.*\) = /\1=/p' secrets/mlflow_credentials |
        sed 's/^username/export MLFLOW_TRACKING_USERNAME/; s/^password/export MLFLOW_TRACKING_PASSWORD/'
    # shellcheck disable=SC2088
    for pair in RAY_AUTH_TOKEN_PATH=ray_auth_token AWS_SHARED_CREDENTIALS_FILE=s3_jobs \
        MLFLOW_TRACKING_SERVER_CERT_PATH=ca.crt; do
        echo "export ${pair%%=*}=~/.orchestrator/${pair#*=}"
    done
} >client/environment
echo "copy $folder/ADDRESS to /etc/orchestrator on each host, and $folder/client to ~/.orchestrator" >&2
