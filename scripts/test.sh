#!/usr/bin/env bash
# Sets everything up in .venv and runs every check and test. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh train,dev
export HF_HUB_OFFLINE=1 PATH="$PWD/.venv/bin:$PATH"
unset PYTHONDONTWRITEBYTECODE # children would compile torch's sources at every start
ruff check .
ruff format --check .
mypy
lint-imports
exec python -m pytest "$@"
