# shellcheck shell=sh
# What Ray's processes and the jobs find in their environment, on every node. Edit it before `ray up`.
# No secrets here: S3 is reached by the instance profile, MLflow by ~/.mlflow/credentials, Ray by
# the token in ~/.ray/auth_token.
export PATH="$HOME/venv/bin:$PATH"
export RAY_AUTH_MODE=token
export OMP_WAIT_POLICY=PASSIVE
export RAY_JOB_STOP_WAIT_TIME_S=120    # `ray job stop`: how long the driver may save its step
export RAY_health_check_timeout_ms=4000    # a node that does not answer is lost after 5 x (4 + 3) s
export MLFLOW_TRACKING_URI=https://mlflow.example.com
export ORCHESTRATOR_DATA=s3://REPLACE-datasets
export ORCHESTRATOR_STORAGE=s3://REPLACE-runs
export AWS_DEFAULT_REGION=us-east-1
