#!/bin/sh
# Run one service of a cluster in the foreground, for systemd (orchestrator@.service):
#
#   start.sh head | worker | mlflow | seaweedfs
#   start.sh setup      creates the buckets and the MLflow user of jobs, then exits
#
# Reads the files that hosts.sh created for this host from /etc/orchestrator, or from the folder
# ORCHESTRATOR_ETC. Further arguments are passed to the program:
#   start.sh worker --num-gpus=4 --temp-dir=/scratch/ray
set -eu
etc=${ORCHESTRATOR_ETC:-/etc/orchestrator}
[ -r "$etc/environment" ] || { echo "start.sh: cannot read $etc/environment; create it with hosts.sh" >&2; exit 3; }
cd "$(dirname "$0")/../.."
start=$PWD/deploy/containers/start.sh
set -a
# shellcheck source=/dev/null
. "$etc/environment"
set +a
export PATH="$PWD/.venv/bin:$PATH" SECRETS="$etc/secrets" OMP_WAIT_POLICY=PASSIVE
export RAY_AUTH_TOKEN_PATH="$SECRETS/ray_auth_token" AWS_SHARED_CREDENTIALS_FILE="$SECRETS/s3_jobs"
export RAY_USE_TLS=1 RAY_TLS_CA_CERT="$etc/tls/ca.crt"
export RAY_TLS_SERVER_CERT="$etc/tls/node.crt" RAY_TLS_SERVER_KEY="$etc/tls/node.key"
export MLFLOW_TRACKING_SERVER_CERT_PATH="$etc/tls/ca.crt" SSL_CERT_FILE="$etc/tls/ca.crt"
# Time that a job has to save a checkpoint after `ray job stop`.
export RAY_JOB_STOP_WAIT_TIME_S=120
# A silent host is lost after 5 x (4 + 3) s = 35 s; Ray's default is 65 s.
export RAY_health_check_timeout_ms=4000

service=${1:-}
[ $# -eq 0 ] || shift
case $service in
head | worker)
    # Fixed ports, for the firewall; Ray's workers and torch choose their own.
    set -- --node-ip-address="$NODE_IP" --node-manager-port=6380 --object-manager-port=6381 \
        --runtime-env-agent-port=6382 --dashboard-agent-grpc-port=6383 \
        --metrics-export-port=6384 --dashboard-agent-listen-port=6385 "$@"
    # The dashboard uses plain HTTP, which would expose the token on the network.
    export BIND=127.0.0.1 RAY_HEAD="$HEAD_IP:6379"
    ;;
mlflow)
    export MLFLOW_BACKEND_STORE_URI=postgresql+psycopg2://mlflow@127.0.0.1/mlflow
    export PGPASSFILE="$SECRETS/postgres_passfile" AWS_SHARED_CREDENTIALS_FILE="$SECRETS/s3_mlflow"
    export MLFLOW_ARTIFACTS_DESTINATION=s3://mlflow MLFLOW_SERVER_ALLOWED_HOSTS="$NODE_IP:5000"
    export UVICORN_OPTIONS="--ssl-certfile=$etc/tls/node.crt --ssl-keyfile=$etc/tls/node.key"
    export BIND="$NODE_IP" MLFLOW_DISABLE_TELEMETRY=true
    ;;
seaweedfs)
    data=${ORCHESTRATOR_STATE:-/var/lib/orchestrator}/seaweedfs
    mkdir -p "$data"
    set -- -dir="$data" "$@"
    export BIND="$NODE_IP"
    ;;
setup)
    export AWS_SHARED_CREDENTIALS_FILE="$SECRETS/s3_admin"
    ;;
*)
    echo "start.sh: unknown or missing service; use head, worker, mlflow, seaweedfs or setup" >&2
    exit 2
    ;;
esac
exec "$start" "$service" "$@"
