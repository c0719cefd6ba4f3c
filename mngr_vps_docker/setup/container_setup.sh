#!/bin/sh
# The steps of setting up a container, as functions; container_setup.py says in which order they run. Each leaves alone
# what is already done.
# shellcheck disable=SC2154,SC2086,SC2174 # container_setup.py sets volume, host_dir and sshd; options are several words

# Refuse an image without root, or one that puts mngr's data outside of the host's volume.
check_image() {
  while read -r _ _ _ _ place _; do
    case $place in "$host_dir" | "$host_dir"/* | "$volume"/*)
      echo "The image has a VOLUME at $place, where mngr keeps its own data: remove it from the Dockerfile" >&2
      exit 1 ;;
    esac
  done </proc/self/mountinfo
  if ! grep -q '^root:[^:]*:0:' /etc/passwd; then
    echo "The image has no user root, as whom mngr logs in: leave root in its /etc/passwd" >&2
    exit 1
  fi
  if [ -L "$host_dir" ] && [ "$(readlink -f "$host_dir")" != "$(readlink -f "$volume")" ]; then
    link=$(readlink "$host_dir")
    echo "$host_dir is a link to $link in the image, where mngr keeps its own data: remove it there" >&2
    exit 1
  elif [ -e "$host_dir" ] && [ ! -d "$host_dir" ]; then
    echo "$host_dir is a file in the image, where mngr has its own folder: remove it there" >&2
    exit 1
  fi
}

# Make the folders that every program expects. In an image, either may be a link to a folder that does not exist.
make_usual_folders() {
  [ -d "${HOME:-/root}" ] || mkdir -p -m 700 "$(readlink -m "${HOME:-/root}")"
  [ -d /tmp ] || mkdir -p -m 1777 "$(readlink -m /tmp)"
}

install_missing() { # PACKAGE...
  command -v apt-get >/dev/null 2>&1 || {
    echo "The image lacks $* and has no apt-get: use a Debian or Ubuntu image, or add them to it." >&2
    exit 1
  }
  echo "Installing what the image lacks: $*"
  install_packages "$@"
}

# Install packages by apt. In images, package sources are often broken, and installations incomplete. A source counts
# only if a package cannot be had without it. Configuration files of the image stay as they are, and nothing asks.
install_packages() ( # PACKAGE...
  export LC_ALL=C DEBIAN_FRONTEND=noninteractive UCF_FORCE_CONFFOLD=1
  keep="--force-confdef --force-confold"
  # apt makes its own folders, but not their parents, which small images often lack.
  mkdir -p /var/cache /var/log
  # The machine's clock may be behind. As root: apt's own user may be unable to read a source or to write to /tmp.
  options="-q -y -o DPkg::Lock::Timeout=120 -o Acquire::Retries=1 -o Acquire::http::Timeout=15
    -o Acquire::https::Timeout=15 -o Acquire::Max-FutureTime=86400 -o APT::Sandbox::User=root"
  for option in $keep; do options="$options -o Dpkg::Options::=$option"; done
  broken=
  # apt reads no source at all if one is malformed or contradicts another: use those that it can read together.
  if ! apt-get $options indextargets >/dev/null 2>&1; then
    readable=$(mktemp -d)
    trap 'rm -rf "$readable"' EXIT
    options="$options -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts=$readable"
    check_source() { # NAME SOURCE
      apt-get $options indextargets </dev/null >/dev/null 2>&1 && return
      rm -f "$readable/$1"
      broken="$broken$2: apt cannot read it; "
    }
    number=0
    cd /etc/apt || exit
    for file in sources.list sources.list.d/debian.sources sources.list.d/ubuntu.sources \
      sources.list.d/*.list sources.list.d/*.sources; do
      name=${file##*/}
      if [ ! -f "$file" ] || [ -e "$readable/$name" ]; then continue; fi
      if [ "${name%.list}" = "$name" ]; then
        cp "$file" "$readable/$name"
        check_source "$name" "$file"
        continue
      fi
      while read -r line || [ -n "$line" ]; do
        case $line in deb*) ;; *) continue ;; esac
        number=$((number + 1))
        printf '%s\n' "$line" >"$readable/$number.list"
        check_source "$number.list" "'$line' in $file"
      done <"$file"
    done
  fi
  dpkg $keep --configure -a >/dev/null 2>&1 || :
  tries=60
  until updated=$(timeout -k 5 150 apt-get $options update 2>&1); do
    # apt waits for dpkg's lock by itself, but not for that of its lists.
    case $updated in *"Could not get lock"*) [ $((tries -= 1)) -gt 0 ] && sleep 2 && continue ;; esac
    break
  done
  broken="$broken$(printf '%s\n' "$updated" |
    sed -n -e '/^Err:/{N;s/^Err:[0-9]* \(.*\)\n */\1: /;s/$/;/p;}' -e '/^E: Release file/s/$/;/p')"
  install() { apt-get $options --no-install-recommends --no-remove install "$@" 2>&1; }
  in_one_line() { printf '%s\n' "$2" | tail -n 8 | tr -s '\n\t ' ' ' | sed "s/^ */$1: /;s/[; ]*\$/\n/"; }
  if said=$(install "$@") || { install --fix-broken >/dev/null && said=$(install "$@"); }; then
    [ -z "$broken" ] || in_one_line "Not needed, and not to be used" "$broken"
  else
    in_one_line "apt-get cannot install $*" "$said"
    [ -z "$broken" ] || in_one_line "Sources that cannot be used" "$broken"
    exit 1
  fi
)

# Replace a ping that carries a capability, as Debian 12's does, by a copy without: containers do not have it. It needs
# none: Docker lets every user of a container send echo requests (net.ipv4.ping_group_range).
replace_ping() {
  ping=$(command -v ping) || ping=
  if [ -n "$ping" ] && { "$ping" -V >/dev/null 2>&1; [ $? -eq 126 ]; }; then
    cp -p "$ping" "$ping.new" && mv -f "$ping.new" "$ping"
  fi
}

link_host_dir() {
  if [ ! -L "$host_dir" ]; then
    if [ -d "$host_dir" ]; then
      cp -an "$host_dir/." "$volume/"
      rm -rf "$host_dir"
    fi
    mkdir -p "$(dirname "$host_dir")"
    ln -s "$volume" "$host_dir"
  fi
  mkdir -p "$volume/agents" "$volume/activity" "$volume/commands" "$volume/logs"
}

is_running() { # PATTERN: does any process other than this shell have it in its command line?
  for process in /proc/[0-9]*; do
    [ "$process" != "/proc/$$" ] || continue
    tr '\0' ' ' <"$process/cmdline" 2>/dev/null | grep -q -- "$1" && return 0
  done
  return 1
}

# Start sshd and the activity watcher if they do not run. Pid files survive a restart on some images and then name other
# processes, so the process itself is looked for. A watcher that does not run means that the container has just started:
# that is the time of BOOT activity, which the watcher must find when it starts, and a host lock of before is stale.
start_services() {
  if ! is_running "^sshd: /usr/sbin/sshd .*$sshd\\|^/usr/sbin/sshd .*$sshd"; then
    /usr/sbin/sshd -t -f "$sshd/sshd_config"
    /usr/sbin/sshd -f "$sshd/sshd_config" -E "$sshd/log"
  fi
  if ! is_running "^[^ ]*bash $host_dir/commands/activity_watcher.sh "; then
    rm -f "$volume/stop_reason" "$volume/host_lock"
    printf '{"time": %s000, "source": "container start"}\n' "$(date +%s)" >"$volume/activity/boot"
    export BASH_ENV="$host_dir/commands/steady_clock.sh"
    nohup "$host_dir/commands/activity_watcher.sh" "$host_dir" >>"$volume/logs/activity_watcher.log" 2>&1 &
  fi
}
