#!/bin/sh
# Waits on a VPS until its first boot has made it ready, or for $timeout_seconds; see wait_for_ready_command.
# cloud-init writes result.json at the end of its last stage; no status comes after that. An error that it reports before
# may be of a part that does not matter here. The clock may be set while this waits: the uptime is not.
# shellcheck disable=SC2154 # timeout_seconds, timed_out_code and status_file are set by cloud_init.py
uptime() {
    read -r seconds _ </proc/uptime
    echo "${seconds%.*}"
}
deadline=$(($(uptime) + timeout_seconds))
explain() {
    for log in /var/log/mngr-vps-setup.log /var/log/cloud-init-output.log; do
        if [ -r "$log" ]; then
            echo "The end of $log:"
            tail -n 20 "$log"
        fi
    done >&2
    echo "$1" >&2
}
while :; do
    ended=
    [ ! -e /run/cloud-init/result.json ] || ended=yes
    if [ -r "$status_file" ]; then
        status=$(cat "$status_file")
        echo "$status"
        [ "$status" != ready ] || exit 0
        explain "$status"
        exit 1
    fi
    if [ -n "$ended" ]; then
        explain "cloud-init ended without preparing the VPS ($(timeout 10 cloud-init status 2>&1 | head -n 1))"
        exit 1
    fi
    if [ "$(uptime)" -ge "$deadline" ]; then
        explain "not ready after $timeout_seconds s ($(timeout 10 cloud-init status 2>&1 | head -n 1))"
        exit "$timed_out_code"
    fi
    sleep 0.2
done
