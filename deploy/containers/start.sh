#!/bin/sh
# Starts one process of deploy/compose.yaml: start.sh head | worker | mlflow | seaweedfs | setup.
# What follows the name goes to the program. `start.sh healthy URL...` fails unless all answer.
#
# Secrets are files in $SECRETS; no value of theirs gets into a command line.
set -eu
umask 077
secrets=${SECRETS:-/run/secrets}
here=$(dirname "$0")

# The value of a secret; an empty one would switch the protection off.
secret() {
    [ -s "$secrets/$1" ] || { echo "start.sh: no secret in $secrets/$1" >&2; exit 3; }
    cat "$secrets/$1"
}

# MLflow's client reads this file; Ray's processes hand the home folder to the jobs.
mlflow_credentials() {
    mkdir -p "$HOME/.mlflow"
    ln -sfn "$secrets/mlflow_credentials" "$HOME/.mlflow/credentials"
}

[ $# -gt 0 ] || { echo "start.sh: what? head, worker, mlflow, seaweedfs, setup or healthy" >&2; exit 2; }
name=$1
shift
case $name in
head)
    mlflow_credentials
    # No CPUs: training happens on the workers, the driver of a job here.
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
    # A user gets nothing that was not given to them: NO_PERMISSIONS, where MLflow's default is READ.
    # To hash the password of each request takes 0.1 s: a right one is remembered for a minute.
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
    # A worker that a busy machine keeps from answering its parent for 5 s would be killed.
    exec mlflow server --app-name basic-auth --host "${BIND:-0.0.0.0}" --port 5000 --workers 2 \
        --uvicorn-opts "--timeout-worker-healthcheck=60 ${UVICORN_OPTIONS:-}" "$@"
    ;;
seaweedfs)
    # Only the S3 gateway asks for keys, so only it is heard outside of this container.
    export WEED_MASTER_VOLUME_GROWTH_COPY_1=1
    unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY  # whoever has them would be an administrator
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
    echo "start.sh: $name? head, worker, mlflow, seaweedfs, setup or healthy" >&2
    exit 2
    ;;
esac
