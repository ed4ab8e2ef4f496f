#!/usr/bin/env bash
# Sets up a node of a cloud cluster from ~/orchestrator: Python 3.11 and exactly what requirements.lock
# lists of what the tool needs, by its hashes. Ray's launcher runs it again where something changed.
#
# PYTHON names another interpreter of version 3.11 than the one that uv brings.
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
    --requirements pyproject.toml --extra data
echo "$source" >"$venv/lib/python3.11/site-packages/orchestrator.pth"
cat >"$venv/bin/orchestrator" <<END
#!$venv/bin/python
import sys
from orchestrator.cli.app import main
sys.exit(main())
END
chmod 755 "$venv/bin/orchestrator"

# For `ray exec` and `ray attach`, which come with a shell of their own.
touch "$HOME/.bashrc"
grep -qF '. ~/environment.sh' "$HOME/.bashrc" || echo '. ~/environment.sh' >>"$HOME/.bashrc"
