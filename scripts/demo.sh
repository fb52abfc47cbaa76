#!/usr/bin/env bash
# Installs iisft into .venv and runs the demo training, without a GPU. Arguments go to `iisft train`.
set -euo pipefail

root=$(dirname -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")")
"$root/scripts/setup.sh" train
export IISFT_HOME=${IISFT_HOME:-$root}
exec "$root/.venv/bin/iisft" train --preset demo "$@"
