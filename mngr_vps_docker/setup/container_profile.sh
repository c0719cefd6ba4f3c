# shellcheck shell=sh
# Debian's /etc/profile replaces PATH: a login shell gets back the one that it was started with.
case $PATH in
/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin | /usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games)
    PATH=$(
        unset LD_LIBRARY_PATH LD_PRELOAD
        tr '\0' '\n' 2>/dev/null <"/proc/$$/environ" | sed -n 's/^PATH=//p' | grep . || echo "$PATH"
    )
    ;;
esac
