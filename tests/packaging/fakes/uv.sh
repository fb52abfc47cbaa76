#!/usr/bin/env bash
# Stands for uv: its call is a line in $CALLS, and it does what $FAKE_UV_DOES says.
echo "uv $*" >>"$CALLS"
case ${FAKE_UV_DOES-} in
  fail) exit 2 ;;
  die) kill -9 "$PPID" ;;
esac
