#!/usr/bin/env bash
# Installs iisft with its dev tools into .venv and runs every check:
#   test.sh            everything, with coverage, as CI does
#   test.sh --fast     without the tests marked slow: for daily work
#   test.sh PYTEST...  what these arguments of pytest choose
set -euo pipefail

root=$(dirname -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")")
"$root/scripts/setup.sh" train,dev
cd -- "$root"
export HF_HUB_OFFLINE=1
unset PYTHONDONTWRITEBYTECODE # with it every child compiles torch's sources again, half a minute each

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
# Three at a time on two cores: the tests of runs wait for other processes more than half of their time.
# Each file by one worker, for what its tests share is made once. The files come in the order of
# tests/conftest.py, the longest first; xdist's own order has those of few tests last.
tests=(pytest -n 3 --dist loadfile --no-loadscope-reorder)
if [[ ${1:-} == --fast ]]; then
  check "${tests[@]}" -m "not matrix and not slow" "${@:2}"
elif (($#)); then
  check pytest "$@"
else
  rm -f .coverage .coverage.*
  for place in .venv/lib/python3.*/site-packages; do
    [[ ! -d $place ]] || cp "$root/scripts/untraced_imports.py" "$place/"
  done
  check coverage run -m "${tests[@]}"
  .venv/bin/coverage combine --quiet
  check coverage report --skip-covered
fi
if [[ -n $failed ]]; then
  printf 'failed:%s\n' "$failed" >&2
  exit 1
fi
