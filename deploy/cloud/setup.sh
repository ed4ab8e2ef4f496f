#!/usr/bin/env bash
# Set up a node of a cloud cluster from ~/orchestrator: Python 3.11 and the dependencies, with the
# versions and hashes of requirements.lock. Ray's launcher runs it again after changes.
#
# PYTHON selects another Python 3.11 than the one that uv downloads.
set -euo pipefail
umask 077

source=$HOME/orchestrator
venv=$HOME/venv
uv=$HOME/.uv/bin/uv

if [ -e "$HOME/.ray/auth_token" ]; then
    chmod 600 "$HOME/.ray/auth_token"
fi
if [ ! -x "$uv" ]; then
    python3 -m venv "$HOME/.uv" 2>/dev/null || {
        sudo apt-get -o DPkg::Lock::Timeout=300 update -qq
        sudo apt-get -o DPkg::Lock::Timeout=300 install -qq -y python3-venv
        python3 -m venv --clear "$HOME/.uv"
    }
    "$HOME/.uv/bin/pip" install --quiet uv==0.13.9
fi
[ -x "$venv/bin/python" ] || "$uv" venv --quiet --python "${PYTHON:-3.11}" "$venv"
cd "$source"
VIRTUAL_ENV=$venv "$uv" pip install --quiet --require-hashes --constraints requirements.lock \
    --requirements pyproject.toml --extra cloud --extra data
echo "$source" >"$venv/lib/python3.11/site-packages/orchestrator.pth"
cat >"$venv/bin/orchestrator" <<END
#!$venv/bin/python
import sys
from orchestrator.__main__ import main
sys.exit(main())
END
chmod 755 "$venv/bin/orchestrator"

# For the shells of `ray exec` and `ray attach`.
touch "$HOME/.bashrc"
grep -qF '. ~/environment.sh' "$HOME/.bashrc" || echo '. ~/environment.sh' >>"$HOME/.bashrc"
