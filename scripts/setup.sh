#!/usr/bin/env bash
# Makes .venv in the checkout ready for the extras named (train, or train,dev): installs what is missing, repairs what
# an interrupted call left, and returns at once when there is nothing to do. demo.sh and test.sh call it.
set -euo pipefail
export PIP_DISABLE_PIP_VERSION_CHECK=1

root=$(dirname -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")")
extras=${1:-train}
venv=$root/.venv
python=$venv/bin/python
state=$venv/.iisft-setup      # three lines: fingerprint or "installing", extras, the checkout's folder
made_here=$venv/.iisft-made    # stands in a .venv that this script made
own_torch=$venv/.iisft-torch  # the torch version that this script installed

say() { printf 'setup: %s\n' "$*" >&2; }
stop() { printf 'setup: %s\n' "$@" >&2; exit 4; }

fingerprint() {
  { echo "$root"; grep '^version' "$venv/pyvenv.cfg"; cat "$root/pyproject.toml" "$root"/constraints*.txt; } | sha256sum
}

is_ready() {
  local done_for
  [[ -x $python && -f $state ]] || return 1
  mapfile -t done_for <"$state"
  [[ ,${done_for[1]:-}, == *,"$extras",* && ${done_for[0]} == "$(fingerprint)" ]]
}

is_supported() {
  "$1" -c 'import sys; sys.exit(not ((3, 11) <= sys.version_info[:2] < (3, 14)))' >/dev/null 2>&1
}

find_python() {
  local name path without_venv=
  for name in python3.13 python3.12 python3.11 python3 python "$(uv python find --system '>=3.11,<3.14' 2>/dev/null)"; do
    path=$(command -v -- "$name") && is_supported "$path" || continue
    if "$path" -c 'import venv, ensurepip' 2>/dev/null; then
      echo "$path"
      return
    fi
    without_venv=${without_venv:-$path}
  done
  [[ -z $without_venv ]] ||
    stop "$without_venv can't make a virtual environment." "Run: sudo apt-get install -y ${without_venv##*/}-venv"
  local found uv_way='uv python install 3.11'
  local conda_way='conda create -y -n iisft -c conda-forge --override-channels python=3.11 && conda activate iisft'
  local apt_way='sudo add-apt-repository -y ppa:deadsnakes/ppa && sudo apt-get install -y python3.11 python3.11-venv'
  found=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || found=none
  local ways=("Ubuntu 22.04: $apt_way" "uv:           $uv_way" "conda:        $conda_way") first=$apt_way
  if command -v uv >/dev/null; then first=$uv_way; elif command -v conda >/dev/null; then first=$conda_way; fi
  stop "iisft needs Python 3.11, 3.12 or 3.13; python3 here: $found." "Run: $first" \
    "then this script again. Every way to get it:" "${ways[@]/#/  }"
}

holds_foreign_torch() {
  local dist
  for dist in "$venv"/lib/python*/site-packages/torch-*.dist-info; do
    dist=${dist##*/torch-}
    [[ $dist == '*.dist-info' || ${dist%.dist-info} == "$(cat "$own_torch" 2>/dev/null)" ]] || return 0
  done
  return 1
}

# A .venv made here is made anew; one that somebody else made, or put a torch of their own into, is theirs to delete.
discard_venv() {
  if [[ ! -f $made_here ]] || holds_foreign_torch; then
    stop "$1, and it holds what this script did not install." "Delete $venv yourself, then run this script again."
  fi
  say "$1: making it anew"
  rm -rf -- "$venv"
}

make_venv() {
  local base
  base=$(find_python)
  say "making .venv with $base"
  mkdir -p -- "$venv"
  : >"$made_here"
  printf 'installing\n%s\n%s\n' "$extras" "$root" >"$state"
  "$base" -m venv "$venv" || stop "$base could not make $venv"
}

# Sets `pins`: the arguments that keep torch as it is, or that choose it.
pin_torch() {
  local installed missing=() name
  installed=$("$python" -c '
from importlib import metadata
for name in ("torch", "torchvision", "torchaudio"):
    try:
        print(f"{name}=={metadata.version(name)}")
    except metadata.PackageNotFoundError:
        pass')
  if [[ $installed != torch==* || ${installed%%$'\n'*} == "torch==$(cat "$own_torch" 2>/dev/null)" ]]; then
    pins=(-c constraints-torch.txt)
    sed -n 's/^torch==\([^ ;]*\).*/\1/p' constraints-torch.txt >"$own_torch"
    [[ ! -e /dev/kfd ]] || say "an AMD GPU is here, but the ordinary torch can't use it: the README has torch for ROCm"
    return
  fi
  for name in torchvision torchaudio; do
    [[ $installed == *"$name=="* ]] || missing+=("$name")
  done
  if ((${#missing[@]})); then
    stop "${installed%%$'\n'*} is here without ${missing[*]}." \
      "Install what belongs to it from where torch came from (README), then run this script again."
  fi
  say "keeping ${installed//$'\n'/, }"
  printf '%s\n' "$installed" >"$venv/.iisft-kept-torch.txt"
  pins=(-c .venv/.iisft-kept-torch.txt)
}

install() {
  local arguments=(-e ".[$extras]" -c constraints.txt "${pins[@]}") repair=() uv=$venv/bin/uv index
  "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip >/dev/null 2>&1 || true
  [[ -x $uv ]] || "$python" -m pip install --quiet uv >&2 || uv=$(command -v uv) || uv=
  if [[ -n $uv ]]; then
    # uv doesn't read pip's settings, and a mirror is set there.
    index=${PIP_INDEX_URL:-$("$python" -m pip config get global.index-url 2>/dev/null)}
    index=${UV_DEFAULT_INDEX:-${UV_INDEX_URL:-$index}}
    [[ -z $index ]] || export UV_DEFAULT_INDEX=$index
    # What an interrupted call had half copied counts as installed, unless it is copied again.
    if [[ $interrupted == yes ]]; then
      mapfile -t repair < <(sed -n 's/^\([a-z][^= ]*\)==.*/--reinstall-package=\1/p' constraints.txt)
    fi
    "$uv" pip install --python "$python" "${repair[@]}" "${arguments[@]}" >&2 && return
    say "uv could not install: trying pip"
  fi
  "$python" -m pip install "${arguments[@]}" >&2
}

! is_ready || exit 0
cd -- "$root"
exec 9<scripts
if command -v flock >/dev/null; then flock 9; fi
! is_ready || exit 0 # another call has just done it

interrupted=no
if [[ -e $venv ]]; then
  mapfile -t last < <(cat "$state" 2>/dev/null)
  if ! is_supported "$python"; then
    discard_venv "the Python of .venv is missing, broken, or not 3.11 to 3.13"
  elif [[ ${last[2]:-$root} != "$root" ]]; then
    discard_venv ".venv was made when the checkout was in ${last[2]}"
  elif [[ ${last[0]:-} == installing ]]; then
    if [[ -f $made_here ]] && ! holds_foreign_torch; then discard_venv "the last set-up did not finish"; fi
    interrupted=yes
  fi
fi
[[ -e $venv ]] || make_venv
pin_torch
printf 'installing\n%s\n%s\n' "$extras" "$root" >"$state"
install || stop "installing failed, the lines above say why. Run this script again when it is mended: downloads are kept."
printf '%s\n' "$(fingerprint)" "$extras" "$root" >"$state.new"
mv -- "$state.new" "$state"
say "ready"
