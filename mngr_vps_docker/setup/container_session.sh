#!/bin/sh
# What sshd runs for each command and each login of root, if the container has an environment of its own. The programs
# that mngr itself runs might not start in it: they run without it, and search its PATH last.
folder=${0%/*} shell=$SHELL command=${SSH_ORIGINAL_COMMAND-}
unset SSH_ORIGINAL_COMMAND
case $command in
# Commands of this package (ssh/framing.py).
'sh -c '*'\036%s:%d'* | 'under() { '*)
    more=$(cat "$folder/path")
    PATH=$PATH${more:+:$more}
    exec /bin/sh -c "$command"
    ;;
# Commands of mngr, and of programs that copy files.
'bash -c '*'tmux attach -t '* | 'git-receive-pack '* | 'git-upload-pack '* | 'rsync --server '* | 'scp '*)
    exec "$shell" -c "$command"
    ;;
internal-sftp*)
    for server in /usr/lib/openssh /usr/libexec/openssh /usr/lib/ssh /usr/libexec; do
        [ ! -x "$server/sftp-server" ] || exec "$server/sftp-server"
    done
    echo "The image has no sftp-server" >&2
    exit 127
    ;;
esac
# As parameters: the environment may have variables of any name.
if [ -n "$command" ]; then
    set -- "$shell" -c "$command"
else
    set -- "$shell" -l
fi
# shellcheck source=/dev/null
. "$folder/environment"
exec "$@"
