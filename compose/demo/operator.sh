#!/bin/sh
# What an operator types for a run among the companies named as arguments. The coordinator may still be starting.
set -eu

for company in "$@"; do
    tries=0
    until fedtrain site invite "$company" --dir /hub > "/tmp/$company"; do
        tries=$((tries + 1))
        [ "$tries" -lt 60 ] || { echo "the coordinator does not answer" >&2; exit 4; }
        sleep 1
    done
    # Only whole lines are shown to the company: its agent reads the file as soon as it is there.
    cp "/tmp/$company" "/invites/$company/.invite"
    chmod 0640 "/invites/$company/.invite"
    mv "/invites/$company/.invite" "/invites/$company/invite"
done

tries=0
until fedtrain run check /demo/run.yaml --dir /hub; do
    tries=$((tries + 1))
    [ "$tries" -lt 120 ] || { echo "the companies did not come" >&2; exit 4; }
    sleep 1
done

fedtrain run start /demo/run.yaml --dir /hub
fedtrain run watch texts --dir /hub
fedtrain run rounds texts --dir /hub
fedtrain model export texts /tmp/model.safetensors --dir /hub
fedtrain audit verify /hub/state/journal.db
echo "the demo is done"
