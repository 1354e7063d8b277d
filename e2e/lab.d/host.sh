# What the machine must have: checked, and installed from Debian's packages when missing.
# shellcheck shell=bash

check_host() {
  local version
  [ "$(id -u)" = 0 ] || die "the lab makes namespaces, mounts and cgroups: run it as root"
  [ -d /sys/fs/cgroup/freezer ] || die "the nodes need cgroup v1 hierarchies in /sys/fs/cgroup (freezer is not there); boot with systemd.unified_cgroup_hierarchy=0"
  mkdir -p "$CACHE"
  [ "$(stat -f -c %T "$CACHE")" != overlayfs ] || die "$CACHE lies on overlayfs, where containerd cannot keep its layers; set XDG_CACHE_HOME to a folder on another file system"
  version=$(go env GOVERSION 2>/dev/null) || die "Go is not installed; the lab builds Kubernetes with Go $GO_MINIMUM or later"
  [ "$(printf '%s\n' "$GO_MINIMUM" "${version#go}" | sort -V | head -1)" = "$GO_MINIMUM" ] || die "Go ${version#go} is too old; the lab needs $GO_MINIMUM or later"
}

# Installs the packages of those programs that are missing: PROGRAM:PACKAGE…
install_packages() {
  local pair missing=()
  for pair in "$@"; do command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}"); done
  [ ${#missing[@]} != 0 ] || return 0
  say "installing Debian packages: ${missing[*]}"
  {
    apt-get update && DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "${missing[@]}"
  } >"$LOG/apt.log" 2>&1 9>&- || die "apt-get could not install ${missing[*]}; what it said is in $LOG/apt.log"
}
install_build_packages() {
  install_packages mmdebstrap:mmdebstrap gcc:gcc mvn:maven javac:default-jdk-headless
  [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || install_packages no-such-program:debian-archive-keyring
  [ -e /usr/include/stdio.h ] || install_packages no-such-program:libc6-dev
}
install_run_packages() {
  mkdir -p "$LOG"
  install_packages ip:iproute2 nsenter:util-linux flock:util-linux openssl:openssl python3:python3 curl:curl
}
