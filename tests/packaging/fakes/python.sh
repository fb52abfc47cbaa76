#!/usr/bin/env bash
# Stands for a Python of version $FAKE_VERSION: answers `-c` by a real one, and plays venv and pip.
# Every call but `-c` is a line in $CALLS.
here=$(dirname -- "$0")
if [[ $1 == -c ]]; then
  export PYTHONPATH=$here/../lib/python3.12/site-packages
  exec "$REAL_PYTHON" -S -c "
import sys
sys.version_info = (${FAKE_VERSION//./, }, 0)
sys.modules['ensurepip'] = ${FAKE_ENSUREPIP-sys}
exec(sys.argv[1])" "$2"
fi
echo "${0##*/} $*" >>"$CALLS"
case "$2 $3" in
  "venv "*)
    mkdir -p -- "$3/bin" "$3/lib/python3.12/site-packages"
    echo "version = $FAKE_VERSION.0" >"$3/pyvenv.cfg"
    cp -- "$0" "$3/bin/python"
    ;;
  "pip install")
    if [[ ${*: -1} == uv ]]; then
      [[ -z ${FAKE_NO_UV-} ]] || exit 1
      cp -- "$FAKE_UV" "$here/uv"
    else
      exit "${FAKE_PIP_EXIT:-0}"
    fi
    ;;
  "pip config") exit 1 ;;
esac
