# Builds what the lab runs, each thing once: into $BUILT/NAME-VERSION-KEY, where KEY covers the recipe, its versions and its
# source files. A thing is built in a temporary folder and renamed, so that what is there is whole.
# shellcheck shell=bash

declare -A VERSION=(
  [kube]=$KUBE [etcd]=$ETCD [containerd]=$CONTAINERD [registry]=$REGISTRY [coredns]=$COREDNS [helm]=$HELM
  [noderoot]=$NODE_SUITE [redis]=$REDIS_SUITE [pause]=3.10 [counter]=1 [checks]=1 [iouring]=2 [hook]=1 [mends]=1 [kafka]=$KAFKA [kwok]=$KWOK
)
# The files and values that a recipe reads besides its version
declare -A SOURCES=(
  [kube]=$PARTS/go/kube/main.go [etcd]=$PARTS/go/etcd/main.go [registry]=$PARTS/go/registry/main.go
  [coredns]=$PARTS/go/coredns/main.go [noderoot]=$PARTS/rlimit.c
  [kafka]=$PARTS/kafka/KafkaLab.java [pause]=$E2E/images/pause.c [counter]=$E2E/images/counter.c [checks]=$E2E/images/checks.c [iouring]=$E2E/images/iouring.c [hook]=$E2E/images/hook.c [mends]=$E2E/images/mends.c
)
# Two lanes at once: a link or a download in one leaves a core to the other. The long one is Kubernetes.
LANE_1=(kube)
LANE_2=(noderoot redis kafka pause counter checks iouring hook mends etcd containerd registry coredns helm)
# What the lab itself does not run: built when somebody asks for it
ON_DEMAND=(kwok)
NODE_PACKAGES=runc,criu,iproute2,iptables,nftables,containernetworking-plugins,conntrack,mount,procps,ca-certificates,util-linux,kmod,ethtool,socat,curl
KUBE_MODULES=(api apiextensions-apiserver apimachinery apiserver cli-runtime client-go cloud-provider cluster-bootstrap
  code-generator component-base component-helpers controller-manager cri-api cri-client cri-streaming csi-translation-lib
  dynamic-resource-allocation endpointslice externaljwt kms kube-aggregator kube-controller-manager kube-proxy kube-scheduler
  kubectl kubelet metrics mount-utils pod-security-admission sample-apiserver sample-cli-plugin sample-controller streaming)

KUBE_REPLACE=()
for module in "${KUBE_MODULES[@]}"; do KUBE_REPLACE+=("replace k8s.io/$module => k8s.io/$module v$KUBE_STAGING"); done
# The client libraries at the version that Kubernetes is built with, so that they are compiled once for all
KUBE_CLIENT=()
for module in api apiextensions-apiserver apimachinery apiserver cli-runtime client-go component-base kubectl; do
  KUBE_CLIENT+=("require k8s.io/$module v$KUBE_STAGING")
done
declare -A VALUES=(
  [kube]="$KUBE_STAGING ${KUBE_MODULES[*]}" [coredns]=$KUBE_STAGING [helm]=$KUBE_STAGING [kwok]=$KUBE_STAGING
  [noderoot]="$NODE_PACKAGES $CRIU_MINIMUM $RUNC_MINIMUM" [kafka]=$(cat "$PARTS/kafka/pom.xml")
)

built() { # NAME: the folder of that thing, there or not
  local key
  key=$({
    declare -f "build_$1" go_build go_program build_static
    printf '%s\n' "${VERSION[$1]}" "${VALUES[$1]:-}"
    [ -z "${SOURCES[$1]:-}" ] || cat "${SOURCES[$1]}"
  } | sha256sum | cut -c1-12)
  echo "$BUILT/$1-${VERSION[$1]}-$key"
}

go_build() { # GO ARGUMENTS…: static, without this machine's paths
  CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS='-buildvcs=false -trimpath' go "$@"
}

# Builds a main package in a module of its own, whose go.mod gets the lines given. A program is built this way when its module
# cannot be installed by name (it has replace lines), or when parts of it are better left out.
go_program() { # OUT WORK NAME PACKAGE LINKER-FLAGS GO.MOD-LINE…
  local out=$1 work=$2 name=$3 package=$4 flags=$5
  shift 5
  [ ! -d "$PARTS/go/$name" ] || cp "$PARTS/go/$name/main.go" "$work/"
  printf '%s\n' "module lab/$name" "go $GO_MINIMUM" "$@" >"$work/go.mod"
  (cd "$work" && go_build mod tidy && go_build build -ldflags "-s -w $flags" -o "$out/$name" "$package")
}

# One program for all of Kubernetes: the compile units are shared, so six commands cost little more than one.
build_kube() { # OUT WORK
  local flags='' package
  for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    flags+=" -X $package.gitVersion=v$KUBE -X $package.gitMajor=${KUBE%%.*} -X $package.gitMinor=$(cut -d. -f2 <<<"$KUBE")"
    flags+=" -X $package.gitTreeState=clean -X $package.gitCommit=0000000 -X $package.buildDate=2026-01-01T00:00:00Z"
  done
  go_program "$1" "$2" kube . "$flags" "require k8s.io/kubernetes v$KUBE" \
    "${KUBE_REPLACE[@]}"
}

build_etcd() { go_program "$1" "$2" etcd . '' "require go.etcd.io/etcd/server/v3 v$ETCD"; } # OUT WORK

# Without the clouds' drivers and plugins, which would take most of the time
build_registry() { go_program "$1" "$2" registry . '' "require github.com/distribution/distribution/v3 v$REGISTRY"; } # OUT WORK
build_coredns() { # OUT WORK
  go_program "$1" "$2" coredns . '' "require github.com/coredns/coredns v$COREDNS" "${KUBE_CLIENT[@]}"
}

build_helm() { # OUT WORK
  go_program "$1" "$2" helm helm.sh/helm/v3/cmd/helm "-X helm.sh/helm/v3/internal/version.version=v$HELM" \
    "require helm.sh/helm/v3 v$HELM" 'tool helm.sh/helm/v3/cmd/helm' "${KUBE_CLIENT[@]}"
}

build_containerd() { # OUT
  local module=github.com/containerd/containerd/v2
  GOBIN=$1 go_build install -tags 'no_btrfs no_devmapper no_zfs' -ldflags "-s -w -X $module/version.Version=$CONTAINERD" \
    "$module/cmd/containerd@v$CONTAINERD" "$module/cmd/containerd-shim-runc-v2@v$CONTAINERD" "$module/cmd/ctr@v$CONTAINERD"
}

build_kwok() { # OUT WORK
  go_program "$1" "$2" kwok sigs.k8s.io/kwok/cmd/kwok "-X sigs.k8s.io/kwok/pkg/consts.Version=v$KWOK" \
    "require sigs.k8s.io/kwok v$KWOK" 'tool sigs.k8s.io/kwok/cmd/kwok' "${KUBE_CLIENT[@]}"
}

# The nodes' root file system. A mirror's Release file of unstable can be past its date.
build_noderoot() { # OUT
  local root=$1/root tool version
  mmdebstrap --quiet --variant=minbase --aptopt='Acquire::Check-Valid-Until "false"' --include="$NODE_PACKAGES" "$NODE_SUITE" "$root"
  for tool in criu:$CRIU_MINIMUM runc:$RUNC_MINIMUM; do
    version=$(dpkg-query --admindir="$root/var/lib/dpkg" -W -f '${Version}' "${tool%%:*}")
    dpkg --compare-versions "$version" ge "${tool#*:}" || die "Debian $NODE_SUITE has ${tool%%:*} $version, the lab needs ${tool#*:}"
  done
  # In the lab only: rlimit.c says why
  gcc -shared -fPIC -O2 -o "$root/usr/lib/criu-rlimit.so" "$PARTS/rlimit.c" -ldl
  mv "$root/usr/sbin/criu" "$root/usr/sbin/criu.real"
  printf '#!/bin/sh\nLD_PRELOAD=/usr/lib/criu-rlimit.so exec /usr/sbin/criu.real "$@"\n' >"$root/usr/sbin/criu"
  chmod +x "$root/usr/sbin/criu"
}

# Also the tool box: a shell, coreutils, ss, curl.
build_redis() { # OUT
  # shellcheck disable=SC2016  # mmdebstrap's shell expands it
  mmdebstrap --quiet --variant=minbase --include=redis-server,redis-tools,procps,iproute2,curl \
    --customize-hook='mkdir -m 1777 "$1"/data' \
    --customize-hook='rm -rf "$1"/usr/share/doc "$1"/usr/share/man "$1"/usr/share/locale "$1"/var/cache/apt "$1"/var/lib/apt/lists' \
    "$REDIS_SUITE" "$1/redis.tar"
}

# The broker's jars, and the lab's own client
build_kafka() { # OUT WORK
  sed "s/KAFKA_VERSION/$KAFKA/" "$PARTS/kafka/pom.xml" >"$2/pom.xml"
  (cd "$2" && mvn -B -q dependency:copy-dependencies -DincludeScope=runtime "-DoutputDirectory=$1/jars")
  javac -encoding UTF-8 -Xlint:-options -cp "$1/jars/*" -d "$1/jars/lab" "$PARTS/kafka/KafkaLab.java"
}

build_static() { gcc -static -O2 -Wall -Wextra -Werror -o "$1/$2" "$E2E/images/$2.c"; } # OUT NAME
build_pause() { build_static "$1" pause; }
build_counter() { build_static "$1" counter; }
build_checks() { build_static "$1" checks; }
build_iouring() { build_static "$1" iouring; }
build_hook() { build_static "$1" hook; }
build_mends() { build_static "$1" mends; }

build_one() { # NAME
  local out begin=$SECONDS work
  out=$(built "$1")
  [ ! -d "$out" ] || return 0
  work=$BUILT/.work.$1
  rm -rf "$work"
  mkdir -p "$work/out" "$work/src"
  say "building $1 ${VERSION[$1]}"
  # In a shell of its own: `set -e` does not hold inside a function that is part of a condition
  (set -euo pipefail && "build_$1" "$work/out" "$work/src") >"$LOG/build-$1.log" 2>&1 9>&- &
  if ! wait $!; then
    tail -n 20 "$LOG/build-$1.log" >&2
    die "building $1 failed; all it said is in $LOG/build-$1.log. A failed download can be tried again: e2e/lab build"
  fi
  mv "$work/out" "$out"
  rm -rf "$work"
  say "built $1 in $((SECONDS - begin)) s"
}
# The same where n2 has a containerd of its own
of_n2() { # COMMAND…
  (VERSION[containerd]=$CONTAINERD_N2 CONTAINERD=$CONTAINERD_N2 && "$@")
}
build_lane() {
  local name
  for name in "$@"; do build_one "$name"; done
}

build_all() {
  local name missing=() lane failed=0
  mkdir -p "$BUILT" "$LOG"
  for name in "${LANE_1[@]}" "${LANE_2[@]}"; do [ -d "$(built "$name")" ] || missing+=("$name"); done
  if [ ${#missing[@]} != 0 ]; then
    say "to build: ${missing[*]} (everything takes about 10 min on 2 cores)"
    install_build_packages
    (build_lane "${LANE_1[@]}") &
    lane=$!
    (build_lane "${LANE_2[@]}") || failed=1
    wait "$lane" || failed=1
    [ "$failed" = 0 ] || die "not everything could be built; what was built is kept"
  fi
  [ -z "$CONTAINERD_N2" ] || of_n2 build_one containerd
}

# Builds one of ON_DEMAND where it is missing.
build_on_demand() { # NAME
  [ ! -d "$(built "$1")" ] || return 0
  lock
  mkdir -p "$BUILT" "$LOG"
  build_one "$1"
}

# Prints the path of one cached thing, by the name of its program. What the lab does not run is built first.
cached() { # NAME
  local path name
  for name in "${ON_DEMAND[@]}"; do [ "${1:-}" != "$name" ] || build_on_demand "$name"; done
  case ${1:-} in
  kube | etcd | registry | coredns | helm | kwok | pause | counter | checks | iouring | hook | mends) path=$(built "$1")/$1 ;;
  containerd | containerd-shim-runc-v2 | ctr) path=$(built containerd)/$1 ;;
  redis.tar) path=$(built redis)/redis.tar ;;
  noderoot) path=$(built noderoot)/root ;;
  kafka) path=$(built kafka)/jars ;;
  *) die "'${1:-}' is not cached. Known: kube etcd registry coredns helm kafka kwok pause counter checks iouring hook mends containerd containerd-shim-runc-v2 ctr redis.tar noderoot" ;;
  esac
  [ -e "$path" ] || die "$1 is not built yet; run: e2e/lab build"
  echo "$path"
}
