#!/bin/sh
# Prepares a new VPS for its host: restricts sshd, starts Docker, closes the metadata service to containers.
# cloud-init runs it once; it is idempotent.
# At its end it writes one line to /var/lib/mngr-vps/status: "ready", or "failed: <stage>: <last words>".
set -eu
export LC_ALL=C DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1

# Settings of the provider, written by cloud-init.
settings_file=/etc/default/mngr-vps
state=/var/lib/mngr-vps
log=/var/log/mngr-vps-setup.log
per_boot=/var/lib/cloud/scripts/per-boot/mngr-vps-setup
sshd_config=/etc/ssh/sshd_config
# sshd uses the first value that it reads: this name sorts before all others.
drop_in=/etc/ssh/sshd_config.d/00-mngr.conf
apt_settings=/etc/apt/apt.conf.d/99-mngr
no_upgrades_of_docker='Unattended-Upgrade::Package-Blacklist { "docker"; "containerd"; "runc"; };'
# https://docs.docker.com/engine/install/debian/
docker_fingerprint=9DC858229FC7DD38854AE2D88D81803C0EBFCD88

# root_account.sh, written by cloud-init unless other user data replaced its bootcmd.
stage_account() { [ ! -e /usr/local/sbin/mngr-root-account ] || sh /usr/local/sbin/mngr-root-account; }

write_sshd_settings() { # FILE
    cat >"$1" <<'SETTINGS'
# Written by mngr. One connection carries many commands at once.
HostKey /etc/ssh/ssh_host_ed25519_key
AuthenticationMethods publickey
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AllowAgentForwarding no
X11Forwarding no
LoginGraceTime 20
MaxAuthTries 3
MaxSessions 100
MaxStartups 100:30:200
KexAlgorithms -ecdh-sha2-nistp*,diffie-hellman-group14-*,diffie-hellman-group-exchange-*
MACs -hmac-sha1*,umac-64*
SETTINGS
    # Idle connections from one address (of IPv6: one network) must not block others. OpenSSH before 8.5 has neither.
    if sshd -T -f "$1" | grep -qi '^persourcemaxstartups '; then
        printf '%s\n' 'PerSourceMaxStartups 10' 'PerSourceNetBlockSize 32:64' >>"$1"
    fi
}

# The settings set here that sshd applies to root, with all files and Match blocks, or with FILE alone.
effective_settings() { # [-f FILE]
    names=$(awk '/^[A-Z]/ { printf "%s%s", or, $1; or = "|" }' "$settings")
    sshd -T -C user=root,host=localhost,addr=192.0.2.1 "$@" | grep -iE "^($names) " | sort
}

# All lines count: of most settings sshd uses the first value that it reads, but of host keys all.
sshd_is_set() {
    wanted=$(effective_settings -f "$settings")
    found=$(effective_settings)
    [ -n "$wanted" ] && [ "$found" = "$wanted" ]
}

stage_sshd() {
    PATH=$PATH:/usr/sbin:/sbin
    # The privilege separation folder, which is missing while ssh.socket waits for a first connection.
    mkdir -p /run/sshd "$state" "$(dirname "$drop_in")"
    settings=$state/sshd_config
    write_sshd_settings "$settings"
    cp "$settings" "$drop_in.new"
    mv "$drop_in.new" "$drop_in"
    if ! { sshd -t && sshd_is_set; }; then
        # The drop-in is not included, or too late. At the top it precedes all other values and Match blocks.
        rm -f "$drop_in"
        cp -p "$sshd_config" "$sshd_config.mngr-new"
        { cat "$settings"; sed '/^[[:space:]]*HostKey[[:space:]=]/Id' "$sshd_config"; } >"$sshd_config.mngr-new"
        if ! sshd -t -f "$sshd_config.mngr-new"; then
            rm -f "$sshd_config.mngr-new"
            return 1
        fi
        mv "$sshd_config.mngr-new" "$sshd_config"
        sshd_is_set || {
            other=$(printf '%s\n' "$found" "$wanted" "$wanted" | sort | uniq -u | tr '\n' ';')
            echo "sshd does not take over the settings: another file or a Match block says $other" >&2
            return 1
        }
    fi
    # A reload keeps open connections. A unit that is not active reads its settings when it starts.
    for unit in ssh sshd; do
        if systemctl is-active --quiet "$unit"; then
            systemctl reload "$unit"
            break
        fi
    done
    # For reading its own host key. From Debian 14 on, openssh-server does not depend on openssh-client.
    command -v ssh-keyscan >/dev/null || { update_lists; install_packages openssh-client; }
}

docker_answers() { timeout 20 docker info >/dev/null 2>&1; }

wait_for_docker() {
    tries=0
    until docker_answers; do
        tries=$((tries + 1))
        if [ "$tries" -ge 120 ]; then
            timeout 20 docker info || true
            return 1
        fi
        sleep 0.5
    done
}

# Configuration files of the image stay, and apt asks nothing. By a clock that is behind, package lists may be up to a
# year in the future: their signatures count.
apt() {
    apt-get -q -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 -o APT::Update::Error-Mode=any \
        -o Acquire::Max-FutureTime=31536000 -o DPkg::Options::=--force-confdef -o DPkg::Options::=--force-confold "$@"
}

# apt-get waits for dpkg's lock by itself, but not for the lock of its package lists, nor for the clock to be set: until
# then certificates are invalid. A source may fail here: see install_packages.
update_lists() {
    tries=0
    until apt update >"$state/apt-update" 2>&1; do
        tries=$((tries + 1))
        case "$(cat "$state/apt-update")" in
            *"ould not get lock"*) [ "$tries" -lt 60 ] ;;
            *"not yet valid"*) [ "$tries" -lt 12 ] ;;
            *) false ;;
        esac || break
        sleep 5
    done
    cat "$state/apt-update"
}

# Succeeds if the packages are there; otherwise names the sources that failed.
install_packages() {
    if grep -q Y /sys/module/apparmor/parameters/enabled 2>/dev/null; then
        set -- "$@" apparmor
    fi
    # After an interrupted upgrade, apt refuses to work until this is done.
    if [ -n "$(ls /var/lib/dpkg/updates 2>/dev/null)" ]; then
        dpkg --force-confdef --force-confold --configure -a || true
    fi
    apt --fix-broken install --no-install-recommends "$@" && return
    there=$(dpkg-query -W -f '${db:Status-Status}\n' "$@" 2>/dev/null | grep -cx installed || true)
    [ "$there" -ne $# ] || return 0
    grep -E '^(E|W): ' "$state/apt-update" 2>/dev/null | grep -v 'Some index files' | head -n 2 >&2
    return 1
}

forget_docker_repository() { rm -f /etc/apt/sources.list.d/docker.list /etc/apt/keyrings/docker.asc; }

# Fails, and leaves no files, if Docker has no packages for this system, or they cannot be fetched or trusted.
install_from_docker() {
    # shellcheck source=/dev/null
    . /etc/os-release
    case "$ID:${VERSION_CODENAME:-}" in
        debian:?* | ubuntu:?*) ;;
        *) return 1 ;;
    esac
    if ! command -v curl >/dev/null || ! command -v gpg >/dev/null; then
        install_packages ca-certificates curl gnupg || return 1
    fi
    key=$state/docker.asc
    curl -fsSL --proto '=https' --retry 2 --connect-timeout 10 --max-time 60 -o "$key" \
        "https://download.docker.com/linux/$ID/gpg" || return 1
    # Exactly this one primary key: apt trusts every key in the file.
    found=$(gpg --homedir "$state" --batch --show-keys --with-colons "$key" |
        awk -F: '$1 == "pub" { primary = 1 } $1 == "fpr" && primary { printf "%s", $10; primary = 0 }')
    if [ "$found" != "$docker_fingerprint" ]; then
        echo "Docker's signing key has the fingerprint '$found', not $docker_fingerprint: not used" >&2
        return 1
    fi
    mkdir -p /etc/apt/keyrings
    install -m 644 "$key" /etc/apt/keyrings/docker.asc
    echo "deb [arch=$(dpkg --print-architecture) signed-by=/etc/apt/keyrings/docker.asc]" \
        "https://download.docker.com/linux/$ID $VERSION_CODENAME stable" >/etc/apt/sources.list.d/docker.list
    if update_lists && install_packages docker-ce docker-ce-cli containerd.io docker-buildx-plugin; then
        return 0
    fi
    forget_docker_repository
    update_lists || true
    return 1
}

install_from_distribution() {
    set -- docker.io
    for extra in docker-cli docker-buildx; do
        if apt-cache show "$extra" >/dev/null 2>&1; then
            set -- "$@" "$extra"
        fi
    done
    install_packages "$@"
}

# Containers outlive restarts of Docker, and it is not restarted unasked. Settings of the image stay.
configure_docker() {
    mkdir -p /etc/docker /etc/apt/apt.conf.d
    echo "$no_upgrades_of_docker" >"$apt_settings"
    python3 - /etc/docker/daemon.json <<'MERGE'
import json, os, sys
path = sys.argv[1]
try:
    text = open(path).read() if os.path.exists(path) else ""
    settings = dict(json.loads(text) if text.strip() else {})
except (ValueError, TypeError) as error:
    sys.exit(f"{path} of the image is not a JSON object: {error}")
ours = {}
# Docker does not start with both.
if not os.path.exists(settings.get("data-root", "/var/lib/docker") + "/swarm/docker-state.json"):
    ours["live-restore"] = True
mtu = os.environ["mtu"]
if mtu:
    ours["mtu"] = int(mtu)
    # Also for networks that users create; an older Docker does not start with it.
    if int(os.environ["version"] or 0) >= 24:
        ours["default-network-opts"] = {"bridge": {"com.docker.network.driver.mtu": mtu}}
with open(path + ".new", "w") as file:
    json.dump({**ours, **settings}, file, indent=2)
os.replace(path + ".new", path)
MERGE
}

# The smallest MTU of the default routes and their interfaces, if it is below Docker's own.
uplink_mtu() {
    routes=$(ip -4 route show default 2>/dev/null; ip -6 route show default 2>/dev/null) || true
    {
        echo "$routes" | sed -n 's/.* mtu \(lock \)\{0,1\}\([0-9]*\).*/\2/p'
        for device in $(echo "$routes" | sed -n 's/.* dev \([^ ]*\).*/\1/p'); do
            cat "/sys/class/net/$device/mtu"
        done
    } | sort -n | awk 'NR == 1 && $1 < 1500'
}

dockerd_version() { dockerd --version 2>/dev/null | sed -n 's/.*version \([0-9]*\).*/\1/p'; }

refuse_stand_ins() {
    case "$(readlink -e "$(command -v docker || echo /snap/bin/docker)") $(docker --version 2>&1)" in
        */snap*) found="a snap" ;;
        *odman*) found=Podman ;;
        *) return 0 ;;
    esac
    echo "The docker command here comes from $found: choose an image with Docker from packages, or without any" >&2
    return 1
}

# Docker reads the MTU only when it starts, the other settings also while it runs.
start_docker() {
    how=reload
    [ -z "$mtu" ] || how=restart
    if command -v systemctl >/dev/null; then
        systemctl enable --now docker && systemctl "$how" docker
    else
        service docker start
    fi
}

stage_docker() {
    refuse_stand_ins
    command -v python3 >/dev/null || { update_lists; install_packages python3; }
    mtu=$(uplink_mtu)
    version=$(dockerd_version)
    export mtu version
    configure_docker
    if docker_answers; then
        echo "Docker is there already"
    elif ! command -v dockerd >/dev/null; then
        command -v apt-get >/dev/null || {
            echo "no apt-get here: choose a Debian or Ubuntu image, or one with Docker" >&2
            return 1
        }
        update_lists
        install_from_docker || install_from_distribution
        version=$(dockerd_version)
        configure_docker
    fi
    if ! { start_docker >"$state/docker-start" 2>&1 && wait_for_docker; }; then
        # systemd itself only says where to look.
        words=$(journalctl -b -t dockerd -o cat 2>/dev/null | grep -v 'level=[iw]' | tail -n 1)
        words=${words:-$(cat "$state/docker-start")}
        [ -z "$words" ] || echo "Docker does not start: $words" >&2
        return 1
    fi
    case "$(docker info --format '{{.SecurityOptions}}')" in
        *name=userns*)
            echo "Docker has userns-remap here, so files that mngr puts on volumes would belong to nobody in containers:" \
                "choose an image without" >&2
            return 1
            ;;
    esac
}

add_rule() { # IPTABLES TABLE CHAIN MATCH...
    iptables=$1
    table=$2
    shift 2
    "$iptables" -w -t "$table" -C "$@" 2>/dev/null || "$iptables" -w -t "$table" -A "$@"
}

# Drop packets to ADDRESS that do not come from the VPS itself, but from containers. The raw table comes before routing
# and before all of Docker's rules, which leave it alone. DNS stays open, as some clouds have it there too; by TCP as
# well, which long answers need (RFC 7766).
drop_from_containers() { # IPTABLES ADDRESS [MATCH...]
    program=$1
    address=$2
    shift 2
    for protocol in tcp udp; do
        add_rule "$program" raw PREROUTING -d "$address" -p $protocol ! --dport 53 "$@" -j DROP
    done
}

# Drop connections that containers open to NETWORKs. Before the filter table, which is Docker's, addresses are already
# translated, so that connections to published ports (DNAT) and answers differ from new connections. Packets on one
# bridge are between containers. DNS stays open: the VPS's own name servers may be in such a network.
close_networks() { # IPTABLES "ALLOWED..." NETWORK...
    program=$1
    allowed=$2
    shift 2
    {
        printf '*mangle\n:MNGR-PRIVATE -\n'
        printf -- '-A MNGR-PRIVATE -p %s --dport 53 -j RETURN\n' tcp udp
        for network in $allowed; do echo "-A MNGR-PRIVATE -d $network -j RETURN"; done
        printf -- '-A MNGR-PRIVATE -d %s -j DROP\n' "$@"
        echo COMMIT
    } | "$program-restore" -w --noflush
    # TCP uses the uplink's MTU also on networks for which Docker does not know it.
    add_rule "$program" mangle FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu ||
        echo "the MSS of connections is left as it is"
    add_rule "$program" mangle FORWARD -m conntrack ! --ctstate ESTABLISHED,RELATED,DNAT \
        -m physdev ! --physdev-is-bridged -j MNGR-PRIVATE
}

# Drop connections to sshd, the VPS's or the container's, that come faster than ten a second from one SOURCE: before
# authentication, each costs some milliseconds of the processor (CVE-2002-20001). A client retries after a second.
# Unlike hashlimit, this match drops nothing when many sources fill its table.
# shellcheck disable=SC2154 # the settings' variable
limit_logins() { # IPTABLES SOURCE-MASK
    for action in '--rcheck --seconds 1 --hitcount 10 -j DROP' --set; do
        # shellcheck disable=SC2086 # several words
        add_rule "$1" raw PREROUTING -p tcp --syn -m multiport --dports "22,$container_ssh_port" \
            -m addrtype --dst-type LOCAL -m recent --name "mngr-$1" --mask "$2" $action
    done
}

# The cloud's metadata service shows the user data, and on some clouds credentials, to everyone who reaches it.
# shellcheck disable=SC2154 # the settings' variables
stage_firewall() {
    PATH=$PATH:/usr/sbin:/sbin
    # shellcheck source=/dev/null
    . "$settings_file"
    command -v iptables >/dev/null || { update_lists; install_packages iptables; }
    # All link-local addresses except the VPS's own, where answers to it arrive.
    drop_from_containers iptables 169.254.0.0/16 -m addrtype ! --dst-type LOCAL
    # That of most clouds, even if the VPS itself has it; Alibaba's; Azure's; Oracle's older one.
    for address in 169.254.169.254 100.100.100.200 168.63.129.16 192.0.0.192; do
        drop_from_containers iptables "$address"
    done
    # Private networks (RFC 1918), and those of carriers (RFC 6598).
    close_networks iptables "$allowed_ipv4" 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10
    limit_logins iptables 255.255.255.255 || echo "this kernel cannot limit how fast one address connects to sshd"
    if [ -e /proc/net/if_inet6 ]; then
        # OpenStack's; all of AWS's; Google's, Scaleway's, Akamai's, Oracle's, Alibaba's.
        for address in fe80::a9fe:a9fe fd00:ec2::/32 fd20:ce::254 fd00:42::42 fd00:a9fe:a9fe::1 fd00:c1::a9fe:a9fe \
            fd00:100::100:200; do
            drop_from_containers ip6tables "$address"
        done
        # RFC 4193.
        close_networks ip6tables "$allowed_ipv6" fc00::/7
        limit_logins ip6tables ffff:ffff:ffff:ffff:: || echo "nor by IPv6"
    fi
    # At every boot, before Docker, which does not start without it.
    unit=/etc/systemd/system/mngr-vps-firewall.service
    if command -v systemctl >/dev/null && [ ! -e "$unit" ]; then
        mkdir -p /etc/systemd/system/docker.service.d
        printf '%s\n' '[Unit]' 'Before=docker.service' '[Service]' 'Type=oneshot' 'RemainAfterExit=yes' \
            'ExecStart=/usr/local/sbin/mngr-vps-setup firewall' >"$unit"
        printf '%s\n' '[Unit]' 'Requires=mngr-vps-firewall.service' 'After=mngr-vps-firewall.service' \
            >/etc/systemd/system/docker.service.d/mngr.conf
        # Each of these may flush all rules, at boot after ours, or later.
        for service in nftables netfilter-persistent ufw firewalld; do
            mkdir -p "/etc/systemd/system/$service.service.d"
            printf '%s\n' '[Service]' 'ExecStartPost=-/usr/local/sbin/mngr-vps-setup firewall' \
                'ExecReload=-/usr/local/sbin/mngr-vps-setup firewall' \
                'ExecStopPost=-/usr/local/sbin/mngr-vps-setup firewall' \
                >"/etc/systemd/system/$service.service.d/mngr.conf"
        done
        systemctl daemon-reload
    fi
}

# Also of Docker, if containers outlive that. Without the setting, the image's own upgrades stay as they are. Nothing
# reboots the VPS: a listing says when it should.
# shellcheck disable=SC2154 # the settings' variable
stage_upgrades() {
    # shellcheck source=/dev/null
    . "$settings_file"
    [ -n "$security_upgrades" ] || return 0
    command -v apt-get >/dev/null || { echo "no apt-get here: upgrades are up to the image"; return 0; }
    command -v unattended-upgrade >/dev/null || { update_lists; install_packages unattended-upgrades; }
    {
        echo 'APT::Periodic { Enable "1"; Update-Package-Lists "1"; Unattended-Upgrade "1"; };'
        echo 'Unattended-Upgrade::Automatic-Reboot "false";'
        if [ "$(docker info --format '{{.LiveRestoreEnabled}}')" = true ]; then
            # The origin of download.docker.com; the distribution's own Docker is among its security upgrades.
            echo 'Unattended-Upgrade::Origins-Pattern { "origin=Docker"; };'
        else
            echo "$no_upgrades_of_docker"
        fi
    } >"$state/apt-settings"
    install -m 644 "$state/apt-settings" "$apt_settings"
    # Without systemd timers, cron does it.
    command -v systemctl >/dev/null || return 0
    mkdir -p /etc/systemd/system/apt-daily-upgrade.service.d
    printf '%s\n' '[Service]' 'ExecStartPost=/usr/local/sbin/mngr-vps-setup upgraded_docker' \
        >/etc/systemd/system/apt-daily-upgrade.service.d/mngr.conf
    systemctl unmask apt-daily.timer apt-daily-upgrade.timer
    systemctl enable --now apt-daily.timer apt-daily-upgrade.timer
}

# Debian's package leaves the old dockerd running. If an upgrade would end containers, Docker was not upgraded.
stage_upgraded_docker() {
    case $(readlink "/proc/$(systemctl show --property=MainPID --value docker)/exe") in
        *' (deleted)') systemctl restart docker ;;
    esac
}

report() {
    printf '%s\n' "$1" >"$state/status.new"
    sync "$state/status.new"
    mv "$state/status.new" "$state/status"
}

if [ $# -eq 1 ]; then
    "stage_$1"
    exit
fi

mkdir -p "$state"
stages='account sshd docker firewall'
if grep -qx ready "$state/status" 2>/dev/null && docker_answers; then
    [ -e "$per_boot" ] || exit 0
    stages=
fi
# After a power cut half-way, cloud-init does not run this again.
if [ -d "$(dirname "$per_boot")" ]; then
    ln -sf /usr/local/sbin/mngr-vps-setup "$per_boot"
fi
for stage in $stages; do
    # In a process of its own, where set -e counts in all functions.
    if sh -eu "$0" "$stage" >"$log" 2>&1; then
        cat "$log"
    else
        cat "$log"
        report "failed: $stage: $(tail -n 3 "$log" | tr -c '[:print:]' ' ' | cut -c 1-400)"
        rm -f "$per_boot"
        exit 1
    fi
done
report ready
# Create does not wait for this. If it fails, the next boot tries again.
sh -eu "$0" upgrades
rm -f "$per_boot"
