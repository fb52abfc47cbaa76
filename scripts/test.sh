#!/usr/bin/env bash
# Installs iisft with its dev tools into .venv and runs every check. Arguments go to pytest.
set -euo pipefail

root=$(dirname -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")")
"$root/scripts/setup.sh" train,dev
cd -- "$root"
export HF_HUB_OFFLINE=1
unset PYTHONDONTWRITEBYTECODE # with it every child compiles torch's sources anew, half a minute each

failed=
check() {
  printf '== %s\n' "$*"
  ".venv/bin/$1" "${@:2}" || failed+=" '$*'"
}
check ruff check
check ruff format --check
check mypy
check lint-imports
check zensical build --strict --clean
check pytest "$@"
if [[ -n $failed ]]; then
  printf 'failed:%s\n' "$failed" >&2
  exit 1
fi
