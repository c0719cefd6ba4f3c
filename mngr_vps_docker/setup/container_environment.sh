#!/bin/sh
# Writes the environment of the user's sessions, which Docker gives a container under other names, to files in $folder:
# their shells read `environment`, mngr's own commands read `path`. Commands after this see only the proxies.
environment='' path=''
for name in $(env | sed -n 's/^MNGR_CONTAINER_ENV_\([A-Za-z_][A-Za-z0-9_]*\)=.*/\1/p'); do
    hidden=MNGR_CONTAINER_ENV_$name
    eval "rest=\${$hidden-} is_set=\${$hidden+yes}"
    # A line of a value may look like a variable.
    [ -n "$is_set" ] || continue
    unset "$hidden"
    unless=''
    case $name in
    # A shell sets these itself, and some of them are read-only.
    IFS | OPTIND | LINENO | PPID | PWD | OLDPWD | SHLVL | _) continue ;;
    UID | EUID | SHELLOPTS | BASHOPTS | BASH_VERSINFO) continue ;;
    # A session in a terminal has its own.
    TERM) unless="[ -n \"\${TERM-}\" ] || " ;;
    # tmux ends if this shell does not start or refuses logins.
    SHELL) timeout 10 "$rest" -c : </dev/null >/dev/null 2>&1 || continue ;;
    PATH) path=$rest ;;
    # Without it, apt may not reach its mirror.
    *_proxy | *_PROXY) export "$name=$rest" ;;
    esac
    value=''
    while case $rest in *\'*) ;; *) false ;; esac; do
        value="$value${rest%%\'*}'\\''"
        rest=${rest#*\'}
    done
    environment="$environment${unless}export $name='$value$rest'
"
done
# shellcheck disable=SC2154 # set by container_setup.py
mkdir -p "$folder"
chmod 700 "$folder"
(umask 077 && printf %s "$environment" >"$folder/environment.new" && printf %s "$path" >"$folder/path.new")
mv -f "$folder/environment.new" "$folder/environment"
mv -f "$folder/path.new" "$folder/path"
# If no program starts with these settings of the loader, no login could correct them.
# As a parameter: the environment may have variables of any name.
set -- "$(command -v bash || command -v sh)"
# shellcheck source=/dev/null
if ! (. "$folder/environment" && exec "$1" -p -c :) >/dev/null 2>&1; then
    echo "unset LD_LIBRARY_PATH LD_PRELOAD LD_AUDIT" >>"$folder/environment"
    echo "Warning: No program starts with the LD_LIBRARY_PATH or LD_PRELOAD of this image: sessions do without"
fi
