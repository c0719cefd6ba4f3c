"""Local package repositories with higher versions, for a machine's upgrades to find."""

from collections.abc import Mapping

# The same files under a higher version. dpkg-deb does not compress what is unpacked a moment later.
_SCRIPT = r"""
set -eu
offer() { # PACKAGE
    root=$(mktemp -d)
    mkdir "$root/DEBIAN"
    dpkg-query --listfiles "$1" | while read -r path; do [ ! -f "$path" ] || echo "${path#/}"; done |
        tar -C / -cf - -T - | tar -C "$root" -xf -
    dpkg-query --status "$1" | awk '/^[A-Z]/ { dropped = /^(Status|Conffiles):/ } !dropped' |
        sed 's/^Version: .*/&+1/' >"$root/DEBIAN/control"
    for script in preinst postinst prerm postrm conffiles; do
        [ ! -e "/var/lib/dpkg/info/$1.$script" ] || cp "/var/lib/dpkg/info/$1.$script" "$root/DEBIAN/"
    done
    dpkg-deb -Znone --build "$root" "$1.deb" >/dev/null
    rm -r "$root"
    dpkg-deb --field "$1.deb" >>Packages
    printf 'Filename: ./%s\nSize: %s\nSHA256: %s\n\n' "$1.deb" "$(stat -c %s "$1.deb")" \
        "$(sha256sum "$1.deb" | cut -d ' ' -f 1)" >>Packages
}
repository() { # NAME RELEASE PACKAGE...
    folder=/srv/apt/$1 release=$2
    shift 2
    mkdir -p "$folder"
    cd "$folder"
    for package in "$@"; do offer "$package"; done
    printf '%s\nSHA256:\n %s %s Packages\n' "$release" "$(sha256sum Packages | cut -d ' ' -f 1)" \
        "$(stat -c %s Packages)" >Release
    echo "deb [trusted=yes] file:$folder ./" >>/srv/apt/sources.list
}
. /etc/os-release
"""
_APT_SETTINGS = "/etc/apt/apt.conf.d/zz-test"
_ONLY_THESE = 'Dir::Etc { sourcelist "/srv/apt/sources.list"; sourceparts "-"; };'

# What the repositories of security upgrades and of Docker say of themselves in their Release files.
SECURITY = "Origin: Debian\nLabel: Debian-Security\nCodename: $VERSION_CODENAME-security"
DOCKER = "Origin: Docker\nLabel: Docker CE\nSuite: $VERSION_CODENAME"

FORGET_HIGHER_VERSIONS = f"rm -r /srv/apt {_APT_SETTINGS}"


def offer_higher_versions(packages: Mapping[str, str]) -> str:
    """Shell text that has apt know these packages alone, each in a repository that is what its value says."""
    repositories = "".join(
        f'repository {number} "{release}" {" ".join(name for name in packages if packages[name] == release)}\n'
        for number, release in enumerate(dict.fromkeys(packages.values()))
    )
    return f"{_SCRIPT}{repositories}echo '{_ONLY_THESE}' >{_APT_SETTINGS}"
