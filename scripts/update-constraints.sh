#!/usr/bin/env bash
# Writes constraints.txt (everything but torch) and constraints-torch.txt (the trio that works together).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
trio=(torch torchvision torchaudio)
resolved=$(.venv/bin/uv pip compile pyproject.toml --universal --python-version 3.11 --extra train --extra dev \
  --no-annotate --no-header --quiet "$@")
{
  echo "# Everything that iisft[train,dev] installs except torch: pip install -c constraints.txt"
  echo "# Written by scripts/update-constraints.sh; names and versions only."
  grep -vE '^(torch|torchvision|torchaudio|triton|nvidia-|cuda-)' <<<"$resolved"
} >constraints.txt
{
  echo "# torch, torchvision and torchaudio from the ordinary index (CUDA and CPU). On ROCm leave this file out."
  for name in "${trio[@]}"; do grep -E "^$name==" <<<"$resolved" | sed 's/ ;.*//'; done
} >constraints-torch.txt
