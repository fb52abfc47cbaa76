#!/usr/bin/env bash
# Makes or repairs .venv with iisft and the named extras: scripts/setup.sh train | train,dev
# Quick when nothing changed. A torch that is already there (ROCm, for example) is never replaced.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extras=$1
python=.venv/bin/python

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }

find_python() {
  local name
  for name in python3 python3.12 python3.11 python3.13; do
    if command -v "$name" >/dev/null && fits "$name"; then command -v "$name" && return; fi
  done
  cat >&2 <<'END'
error: iisft needs Python 3.11, 3.12 or 3.13 (LLaMA-Factory 0.9.5 needs 3.11), and none was found.
  fix, one of:
    conda create -n iisft -c conda-forge --override-channels python=3.11 -y && conda activate iisft
    curl -LsSf https://astral.sh/uv/install.sh | sh && uv python install 3.11 --default
    sudo add-apt-repository ppa:deadsnakes/ppa && sudo apt install -y python3.11 python3.11-venv
  then run this script again.
END
  exit 4
}

stamp_of() { # $1: extras
  { echo "$1"; cat pyproject.toml constraints.txt constraints-torch.txt; pwd; } | cksum
}

is_done() { # $1: extras
  [ -x .venv/bin/iisft ] && [ "$(cat ".venv/.iisft-$1" 2>/dev/null)" = "$(stamp_of "$1")" ]
}

if is_done "$extras" || { [ "$extras" = train ] && is_done train,dev; }; then exit 0; fi

if ! { [ -x $python ] && fits $python && $python -m pip --version >/dev/null 2>&1; }; then
  found=$(find_python)
  echo "making .venv with $found ($("$found" --version))" >&2
  if ! "$found" -m venv --clear .venv; then
    echo "error: this Python can't make a virtual environment" >&2
    echo "  fix: sudo apt install -y python3-venv (or python3.11-venv for the python3.11 of deadsnakes)" >&2
    exit 4
  fi
fi

# uv is ten times faster than pip; it does not read pip's settings, so a configured mirror is handed on.
$python -m pip install --quiet --disable-pip-version-check uv 2>/dev/null || true
if .venv/bin/uv --version >/dev/null 2>&1; then
  mirror=$($python -m pip config get global.index-url 2>/dev/null || true)
  if [ -n "${mirror:-}" ]; then export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$mirror}"; fi
  install=(.venv/bin/uv pip install --python "$python")
else
  install=("$python" -m pip install --disable-pip-version-check)
fi

constraints=(-c constraints.txt)
torch=$($python -c 'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null || true)
if [ -z "$torch" ] || grep -qx "torch==$torch" constraints-torch.txt; then
  constraints+=(-c constraints-torch.txt)
else
  echo "keeping torch $torch" >&2
fi
echo "installing iisft[$extras] (the first time fetches a few GB of torch)" >&2
"${install[@]}" --quiet "${constraints[@]}" -e ".[$extras]"
stamp_of "$extras" >".venv/.iisft-$extras"
