# shellcheck shell=bash
# Bash's BASH_ENV for mngr's activity watcher: a clock that is never set. With the machine's clock, a step
# forward would stop a host at once, and a step back keep it awake for as long.
# The time is that of the watcher's start plus what has passed since; a file's time is when its change was first seen.
unset BASH_ENV
_seen=${BASH_SOURCE[0]%/commands/*}/.activity_seen
rm -rf "$_seen"
mkdir -p "$_seen" || true

_uptime() {
    local seconds
    read -r seconds _ </proc/uptime
    echo "${seconds%.*}"
}
_started=$(($(command date +%s) - $(_uptime)))

date() {
    if [ "$*" = +%s ]; then
        echo $((_started + $(_uptime)))
    else
        command date "$@"
    fi
}

stat() {
    if [ "${1-} ${2-}" != "-c %Y" ]; then
        command stat "$@"
        return
    fi
    local changed at="" before="" note=$_seen/${3//\//:}
    changed=$(command stat "$@") || return
    { read -r before at <"$note"; } 2>/dev/null || true
    if [ "$before" != "$changed" ]; then
        at=$(date +%s)
        # On a full disk, the machine's clock is better than a change at each check.
        { echo "$changed $at" >"$note"; } 2>/dev/null || at=$changed
    fi
    echo "$at"
}
