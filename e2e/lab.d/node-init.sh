#!/bin/bash
# First process of a node: builds the node's file tree, pivots into it (CRIU refuses a plain chroot) and keeps its daemons
# running. Its end is the node's end, since the node is a pid namespace.
# Arguments: NODE, its folder, the node root, the folders that appear as /lab/bin, /lab/pki, /lab/log and /lab/shared (what a network volume would be).
set -euo pipefail
NODE=$1 FOLDER=$2 LOWER=$3 BIN=$4 PKI=$5 LOG=$6 SHARED=$7

hostname "$NODE"
mount -t overlay overlay -o "lowerdir=$LOWER,upperdir=$FOLDER/upper,workdir=$FOLDER/work" "$FOLDER/root"
cd "$FOLDER/root"
mkdir -p lab/{bin,pki,log,shared} sys proc dev run tmp lib/modules
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t tmpfs tmpfs sys/fs/cgroup
for controller in cpu cpuacct cpuset memory devices freezer blkio pids; do
  mkdir -p "sys/fs/cgroup/$controller"
  mount -t cgroup -o "$controller" cgroup "sys/fs/cgroup/$controller"
done
mkdir -p sys/fs/cgroup/systemd
mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
mount --rbind /dev dev
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mkdir -p run/netns run/lab
# Overlay snapshots need a directory that is not itself on an overlay; the rest is there to be as on a real node
for folder in lib/containerd lib/kubelet lib/cni log/pods; do
  mkdir -p "var/$folder"
  mount --bind "$FOLDER/var/$folder" "var/$folder"
done
mount --make-rshared var/lib/kubelet
mount --bind "$BIN" lab/bin
mount --bind "$PKI" lab/pki
mount --bind "$LOG" lab/log
mount --bind "$SHARED" lab/shared
mkdir -p .old
pivot_root . .old
cd /
umount -l .old
rmdir .old
mount --make-rshared /
exec </dev/null
export PATH=/lab/bin/$NODE:/lab/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ulimit -n 65536 2>/dev/null || true

declare -A PIDS=()
command_of() { # DAEMON: sets COMMAND
  case $1 in
  containerd) COMMAND=(containerd) ;;
  kubelet)
    COMMAND=(kube kubelet --config /etc/kubernetes/kubelet.yaml --kubeconfig "/lab/pki/$NODE.kubeconfig"
      --hostname-override "$NODE" --node-ip "10.88.0.1${NODE#n}" --v=2)
    ;;
  proxy) COMMAND=(kube kube-proxy --config /etc/kubernetes/kubeproxy.yaml --hostname-override "$NODE") ;;
  esac
}
# Runs what does not run, unless it was stopped by hand. The kubelet gives up without a runtime, so it waits for its socket.
supervise() {
  local daemon COMMAND
  for daemon in containerd kubelet proxy; do
    [ ! -e "/run/lab/$daemon.stopped" ] || continue
    [ -z "${PIDS[$daemon]:-}" ] || ! kill -0 "${PIDS[$daemon]}" 2>/dev/null || continue
    [ "$daemon" = containerd ] || [ -S /run/containerd/containerd.sock ] || continue
    command_of "$daemon"
    "${COMMAND[@]}" >>"/lab/log/$NODE-$daemon.log" 2>&1 &
    PIDS[$daemon]=$!
    echo "${PIDS[$daemon]}" >"/run/lab/$daemon.pid"
  done
}
# Bash reaps what the node's processes leave behind while it waits for the sleep
while :; do
  supervise
  sleep 0.3
done
