#!/usr/bin/env bash
# Sets everything up in .venv and trains the demo: no GPU, no model hub.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$here/scripts/setup.sh" train
cd "$here"
exec .venv/bin/iisft train --preset demo "$@"
