#!/usr/bin/env bash
# Runs a command for a launcher that takes exit status 0 for a complete run: SIGTERM is passed on,
# and a command that then saves and ends well exits with 143, so that it is started again.
#
#   launch/until_complete.sh python -m diffusionrl_jax.main --config=... --workdir=...

set -uo pipefail

stopped=no child=''
trap 'stopped=yes; [[ -z $child ]] || kill -TERM "$child" 2>/dev/null' TERM

"$@" &
child=$!
while true; do
    wait "$child"
    status=$?
    # The signal ends the wait; the command is still saving.
    kill -0 "$child" 2>/dev/null || break
done
if [[ $stopped == yes && $status == 0 ]]; then
    status=143
fi
exit "$status"
