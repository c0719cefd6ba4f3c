#!/bin/sh
# Lets root run commands by key, without expiry. PAM refuses an account that is not in /etc/shadow, or that expires
# itself or by its password, and a login shell that does not read quotes as sh does runs commands wrongly. Idempotent.
if ! grep -qs '^root:' /etc/shadow && pwconv; then
    echo "root was not in /etc/shadow: it is now"
fi
expiring=$(awk -F: '$1 == "root" && ($3 == "0" || ($5 != "" && $5 < 99999) || $8 != "")' /etc/shadow)
if [ -n "$expiring" ] && chage -d -1 -m 0 -M -1 -I -1 -E -1 root; then
    echo "The account of root was to expire or had expired: it does not any more"
fi
shell=$(awk -F: '$1 == "root" { print $7 }' /etc/passwd)
# csh expands "!" and stops at the end of the line, fish reads the two backslashes as one. A restricted shell does not
# set PATH, and runs no program by its path.
probe="PATH=\$PATH; printf %s '\\\\ !
.'"
if [ "$(timeout 10 "$shell" -c "$probe" 2>/dev/null </dev/null)" != "$(sh -c "$probe")" ]; then
    for new in /bin/bash /bin/sh; do
        if [ -x "$new" ] && usermod -s "$new" root; then
            echo "The login shell of root was '$shell', which does not run commands as sh does: it is $new now"
            break
        fi
    done
fi
