#!/usr/bin/env bash
# Read LLaMA-Factory's prompt templates into src/iisft/llamafactory/templates-VERSION.json.
# Usage: scripts/update-templates.sh [PYTHON]   (a Python that has the LLaMA-Factory)
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
version=$("$python" -c 'from importlib.metadata import version; print(version("llamafactory"))')
"$python" src/iisft/child/llamafactory_templates.py \
  "src/iisft/llamafactory/templates-$version.json"
