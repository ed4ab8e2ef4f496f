# shellcheck shell=sh
# Environment of Ray's processes and of jobs on every node. Edit it before `ray up`.
# It contains no secrets: S3 uses the instance profile, MLflow ~/.mlflow/credentials, and Ray the
# token in ~/.ray/auth_token.
export PATH="$HOME/venv/bin:$PATH"
export RAY_AUTH_MODE=token
export OMP_WAIT_POLICY=PASSIVE
export RAY_JOB_STOP_WAIT_TIME_S=120    # time to save a checkpoint after `ray job stop`
export RAY_health_check_timeout_ms=4000    # a silent node is lost after 5 x (4 + 3) s
export MLFLOW_TRACKING_URI=https://mlflow.example.com
export ORCHESTRATOR_DATA=s3://REPLACE-datasets
export ORCHESTRATOR_STORAGE=s3://REPLACE-runs
export AWS_DEFAULT_REGION=us-east-1
