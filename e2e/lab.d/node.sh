# A node: own network, mount, pid, uts, ipc and cgroup namespaces over an overlay of the node root; in it containerd, kubelet
# and kube-proxy. The node's disk is $NODES/NODE and outlives a power-off; its memory file systems do not.
# shellcheck shell=bash

# shellcheck disable=SC2034  # for the other parts
NODE_DAEMONS=(containerd kubelet proxy)

# Writes a new disk. It is not touched again: what is changed on a node stays, as on a real one.
node_disk() { # NODE
  local disk=$NODES/$1 etc
  [ ! -d "$disk" ] || return 0
  rm -rf --one-file-system "$disk.new"
  mkdir -p "$disk.new"/{upper,work,root} "$disk.new"/var/{lib/{containerd,kubelet,cni},log/pods}
  chmod 755 "$disk.new/upper"
  etc=$disk.new/upper/etc
  mkdir -p "$etc"/{containerd/conf.d,"containerd/certs.d/$REGISTRY_ADDRESS",cni/net.d,criu,kubernetes}
  printf '[host."http://%s"]\n  capabilities = ["pull","resolve"]\n' "$REGISTRY_ADDRESS" >"$etc/containerd/certs.d/$REGISTRY_ADDRESS/hosts.toml"
  printf 'nameserver 10.96.0.10\n' >"$etc/resolv.conf"
  printf '127.0.0.1 localhost\n%s %s\n' "$(node_address "$1")" "$1" >"$etc/hosts"
  printf 'tcp-close\nskip-in-flight\nfile-locks\nghost-limit 1073741824\n' >"$etc/criu/runc.conf"
  node_containerd_config >"$etc/containerd/config.toml"
  node_cni_config "$1" >"$etc/cni/net.d/10-lab.conflist"
  node_kubelet_config "$1" >"$etc/kubernetes/kubelet.yaml"
  node_proxy_config >"$etc/kubernetes/kubeproxy.yaml"
  cached noderoot >"$disk.new/lower" # for the disk's life: an overlay does not bear another lower folder
  mv "$disk.new" "$disk"
}

node_containerd_config() {
  cat <<T
version = 3
imports = ["/etc/containerd/conf.d/*.toml"]
root = "/var/lib/containerd"
state = "/run/containerd"

[grpc]
address = "/run/containerd/containerd.sock"

[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "$REGISTRY_ADDRESS/pause:3.10"

[plugins.'io.containerd.cri.v1.images'.registry]
config_path = "/etc/containerd/certs.d"

[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true # no CAP_SYS_RESOURCE here
enable_criu = true
enable_experimental_restore_via_create = true

[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["/usr/lib/cni"]
conf_dir = "/etc/cni/net.d"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
T
}

node_cni_config() { # NODE
  cat <<J
{"cniVersion": "1.0.0", "name": "lab", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "/var/lib/cni", "ranges": [[{"subnet": "10.244.${1#n}.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
J
}

node_kubelet_config() { # NODE
  cat <<Y
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 0.0.0.0
port: 10250
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: /lab/pki/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: /lab/pki/$1.crt
tlsPrivateKeyFile: /lab/pki/$1.key
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupsPerQOS: false # these two go together
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
protectKernelDefaults: false
makeIPTablesUtilChains: false
localStorageCapacityIsolation: false
oomScoreAdj: 0 # no CAP_SYS_RESOURCE here
maxOpenFiles: 65536
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {memory.available: "0%", nodefs.available: "0%", imagefs.available: "0%", nodefs.inodesFree: "0%", imagefs.inodesFree: "0%"}
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
resolvConf: /etc/resolv.conf
registerNode: true
nodeLeaseDurationSeconds: 12 # renewed each 3 s; the controller manager waits for 16 s
Y
}

node_proxy_config() {
  cat <<Y
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection: {kubeconfig: /lab/pki/proxy.kubeconfig}
clusterCIDR: 10.244.0.0/16
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
Y
}

# The node's part of every cgroup hierarchy; the node's cgroup namespace makes it look like the root.
node_cgroups() { # NODE
  local hierarchy file
  for hierarchy in /sys/fs/cgroup/*/; do mkdir -p "$hierarchy$(node_ns "$1")"; done
  for file in cpus mems; do cat "/sys/fs/cgroup/cpuset/cpuset.$file" >"/sys/fs/cgroup/cpuset/$(node_ns "$1")/cpuset.$file"; done
}
# What is in them is the node's, so it ends with it.
node_cgroups_remove() { # NODE
  local hierarchy folder pid left=0
  for hierarchy in /sys/fs/cgroup/*/; do
    folder=$hierarchy$(node_ns "$1")
    [ -d "$folder" ] || continue
    find "$folder" -name cgroup.procs -exec cat {} + | while read -r pid; do kill -KILL "$pid" 2>/dev/null || true; done
    find "$folder" -depth -type d -exec rmdir {} + 2>/dev/null || left=1
  done
  return "$left"
}
# Moves this process, and so what it becomes, into the node's cgroups.
node_join_cgroups() { # NODE
  local hierarchy
  for hierarchy in /sys/fs/cgroup/*/; do
    [ ! -f "$hierarchy$(node_ns "$1")/cgroup.procs" ] || echo "$BASHPID" >"$hierarchy$(node_ns "$1")/cgroup.procs"
  done
}

# The first process is the child of unshare, which itself stays in the machine's pid namespace.
node_start() { # NODE
  local outer first=
  ! pid_of "$1" >/dev/null || return 0
  node_clear "$1"
  node_disk "$1"
  net_node_up "$1"
  node_cgroups "$1"
  date +%s >"$RUN/$1.booted"
  rm -f "$RUN/$1-outer.pid"
  in_background "$1-outer" node_boot "$1"
  until [ -n "$first" ]; do
    wait_until 5 test -e "$RUN/$1-outer.pid"
    outer=$(pid_of "$1-outer") || die "$1 did not start; see: e2e/lab logs $1-outer"
    [ "$(cat "/proc/$outer/comm")" != unshare ] || first=$(awk '{print $1}' "/proc/$outer/task/$outer/children" 2>/dev/null) || true
    sleep 0.05
  done
  remember "$1" "$first" || die "$1 ended at once; see: e2e/lab logs $1-outer"
}
node_boot() { # NODE: becomes the node
  local root
  root=$(cat "$NODES/$1/lower")
  [ -d "$root" ] || die "$root, on which the disk of $1 stands, is gone; begin anew: e2e/lab down && e2e/lab up"
  node_join_cgroups "$1"
  exec setsid nsenter "--net=/run/netns/$(node_ns "$1")" unshare -C -m -p -u -i --fork --kill-child --propagation private \
    bash "$PARTS/node-init.sh" "$1" "$NODES/$1" "$root" "$BIN" "$PKI" "$LOG" "$SHARED"
}

# A frozen process dies of a SIGKILL only once it is thawed, and with the signal pending it executes nothing any more. First the node itself, so that
# nobody in it sees the others die.
node_kill_frozen() { # NODE
  local pid state
  ! pid=$(pid_of "$1") || kill -KILL "$pid" 2>/dev/null || true
  find "/sys/fs/cgroup/freezer/$(node_ns "$1")" -name freezer.state 2>/dev/null | while read -r state; do
    [ "$(cat "$state" 2>/dev/null)" != THAWED ] || continue
    xargs -r kill -KILL <"${state%/*}/cgroup.procs" 2>/dev/null || true
    echo THAWED >"$state"
  done || true
}

# Ends what is left of a node that ran: its processes, cgroups and network. Its disk stays.
node_clear() { # NODE
  node_kill_frozen "$1"
  end_process "$1" KILL
  end_process "$1-outer" KILL
  wait_until 20 node_cgroups_remove "$1" || die "the cgroups of $1 cannot be removed; what is in them: find /sys/fs/cgroup/*/$(node_ns "$1") -name cgroup.procs -exec cat {} +"
  net_node_down "$1"
}

# Replaces this process by a command inside the node: all its namespaces, its cgroups.
node_exec() { # NODE COMMAND…
  local pid
  pid=$(pid_of "$1") || die "$1 is powered off; e2e/lab power-on $1"
  node_join_cgroups "$1"
  shift
  exec nsenter -t "$pid" -m -p -u -i -n -C env PATH=/lab/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@" 9>&-
}

# A signal to a daemon, if the process with its pid is that daemon; 0 only asks.
daemon_signal() { # NODE DAEMON SIGNAL
  pid_of "$1" >/dev/null || die "$1 is powered off; e2e/lab power-on $1"
  # shellcheck disable=SC2016  # the node's shell expands it
  (node_exec "$1" sh -c 'pid=$(cat "/run/lab/$0.pid") && grep -qzxE "(kube-)?$0" "/proc/$pid/cmdline" && kill "-$1" "$pid"' "$2" "$3")
}
daemon_alive() { pid_of "$1" >/dev/null && daemon_signal "$1" "$2" 0 2>/dev/null; } # NODE DAEMON
daemon_ready() { # NODE DAEMON
  daemon_alive "$1" "$2" || return 1
  case $2 in
  containerd) (node_exec "$1" timeout 2 ctr version) ;;
  kubelet) (node_exec "$1" curl -sf --max-time 2 http://127.0.0.1:10248/healthz) ;;
  esac >/dev/null 2>&1
}
# Ready by what it said since it booted: the API server believes a dead node for a while.
node_is_ready() { # NODE
  local renewed
  [ "$("${KUBECTL[@]}" get node "$1" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}' 2>/dev/null)" = True ] || return 1
  renewed=$("${KUBECTL[@]}" get lease -n kube-node-lease "$1" -o 'jsonpath={.spec.renewTime}' 2>/dev/null) || return 1
  [ "$(date -d "$renewed" +%s)" -ge "$(cat "$RUN/$1.booted")" ]
}
node_wait() { # NODE
  wait_until 30 daemon_ready "$1" containerd || die "containerd does not come up on $1; see: e2e/lab logs $1-containerd"
  wait_until 60 daemon_ready "$1" kubelet || die "the kubelet does not come up on $1; see: e2e/lab logs $1-kubelet"
  wait_until 90 node_is_ready "$1" || die "$1 does not get Ready; see: e2e/lab logs $1-kubelet, e2e/lab kubectl describe node $1"
}
