#!/bin/sh
# Start one service of deploy/compose.yaml: start.sh head | worker | mlflow | seaweedfs | setup
# Further arguments are passed to the program. `start.sh healthy URL...` fails unless all URLs answer.
#
# Secrets are files in $SECRETS, and never part of a command line.
set -eu
umask 077
secrets=${SECRETS:-/run/secrets}
here=$(dirname "$0")

# Print a secret. An empty secret would disable authentication, so it is an error.
secret() {
    [ -s "$secrets/$1" ] || { echo "start.sh: missing or empty secret: $secrets/$1" >&2; exit 3; }
    cat "$secrets/$1"
}

# MLflow's client in the jobs reads this file; jobs inherit HOME from Ray's processes.
mlflow_credentials() {
    mkdir -p "$HOME/.mlflow"
    ln -sfn "$secrets/mlflow_credentials" "$HOME/.mlflow/credentials"
}

[ $# -gt 0 ] || { echo "start.sh: missing service; use head, worker, mlflow, seaweedfs, setup or healthy" >&2; exit 2; }
name=$1
shift
case $name in
head)
    mlflow_credentials
    # No CPUs: training runs on the workers, and only the drivers of jobs run here.
    exec ray start --head --block --disable-usage-stats --num-cpus=0 --num-gpus=0 \
        --port=6379 --dashboard-host="${BIND:-0.0.0.0}" --dashboard-port=8265 \
        --object-store-memory="${RAY_OBJECT_STORE_BYTES:-500000000}" "$@"
    ;;
worker)
    mlflow_credentials
    exec ray start --block --disable-usage-stats --address="${RAY_HEAD:-head:6379}" \
        --object-store-memory="${RAY_OBJECT_STORE_BYTES:-1000000000}" "$@"
    ;;
mlflow)
    password=$(secret mlflow_admin_password)
    MLFLOW_FLASK_SERVER_SECRET_KEY=$(secret mlflow_flask_key)
    export MLFLOW_FLASK_SERVER_SECRET_KEY
    # Users have no permissions by default; MLflow's own default is READ.
    # Checking a password takes 0.1 s, so the result is cached for a minute.
    cat >"$HOME/basic_auth.ini" <<END
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = $MLFLOW_BACKEND_STORE_URI
admin_username = admin
admin_password = $password
auth_cache_ttl_seconds = 60
END
    export MLFLOW_AUTH_CONFIG_PATH="$HOME/basic_auth.ini" MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
    cd "$HOME"
    # By default a worker that does not answer its parent for 5 s is killed, as on a busy machine.
    exec mlflow server --app-name basic-auth --host "${BIND:-0.0.0.0}" --port 5000 --workers 2 \
        --uvicorn-opts "--timeout-worker-healthcheck=60 ${UVICORN_OPTIONS:-}" "$@"
    ;;
seaweedfs)
    # Only the S3 gateway requires keys, so only it listens outside of this container.
    export WEED_MASTER_VOLUME_GROWTH_COPY_1=1
    unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY  # SeaweedFS would make these keys an administrator's
    exec weed -logtostderr=true server -dir=/data -ip=127.0.0.1 -ip.bind=127.0.0.1 \
        -master.telemetry=false -master.volumeSizeLimitMB=1024 -volume.max=0 \
        -volume.preStopSeconds=0 -filer=true -s3=true -s3.port=8333 -s3.ip.bind="${BIND:-0.0.0.0}" \
        -s3.config="$secrets/s3_identities" -s3.autoCreateBucket=false -s3.iam=false \
        -s3.port.iceberg=0 -s3.port.lance=0 "$@"
    ;;
setup)
    exec python "$here/setup.py" "$secrets"
    ;;
healthy)
    [ $# -gt 0 ] || { echo "start.sh: healthy needs a URL" >&2; exit 2; }
    exec python -c 'import sys, urllib.request as u
for url in sys.argv[1:]: u.urlopen(url, timeout=5).close()' "$@"
    ;;
*)
    echo "start.sh: $name is not a service; use head, worker, mlflow, seaweedfs, setup or healthy" >&2
    exit 2
    ;;
esac
