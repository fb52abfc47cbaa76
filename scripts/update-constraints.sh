#!/usr/bin/env bash
# Writes constraints.txt and constraints-torch.txt from pyproject.toml: names and versions, for every supported Python.
# Versions already there stay while they fit; arguments go to `uv pip compile` (--upgrade renews everything).
set -euo pipefail

cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.."
uv=$PWD/.venv/bin/uv
[[ -x $uv ]] || uv=uv
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# torch's own set. sympy is in it because torch 2.5 and 2.6 demand another one than the rest do.
torch_set='^(torch|torchvision|torchaudio|sympy|mpmath)=='
# What only torch's CUDA builds bring, at versions that torch itself fixes.
cuda_only='^(nvidia-|cuda-|triton==)'
# Released as source only (pure Python, or a few lines that build without a compiler).
no_wheels=(jieba rouge-score)

cat constraints.txt constraints-torch.txt >"$work/all.txt" 2>/dev/null || true
"$uv" pip compile --quiet --universal --python-version 3.11 --all-extras --no-annotate --no-header \
  --output-file "$work/all.txt" "$@" pyproject.toml >/dev/null

{
  echo "# What iisft[train,dev] installs, all but torch's own set. Written by scripts/update-constraints.sh."
  grep -Ev "$torch_set|$cuda_only" "$work/all.txt"
} >"$work/constraints.txt"
{
  echo "# torch's own set: only where no torch is installed from elsewhere. Written by scripts/update-constraints.sh."
  grep -E "$torch_set" "$work/all.txt"
} >"$work/constraints-torch.txt"

for version in 3.11 3.12 3.13; do
  "$uv" pip compile --quiet --python-version "$version" --python-platform x86_64-manylinux_2_28 --all-extras \
    --only-binary :all: "${no_wheels[@]/#/--no-binary=}" \
    -c "$work/constraints.txt" -c "$work/constraints-torch.txt" pyproject.toml >/dev/null
  echo "Python $version: every version has a wheel"
done
mv "$work/constraints.txt" "$work/constraints-torch.txt" .
