# The control plane and the image registry: processes of this machine in the network namespace drover-cp.
# shellcheck shell=bash

CONTROL_PLANE=(registry etcd apiserver kcm scheduler coredns)
KUBECTL=("$BIN/kube" kubectl --kubeconfig "$PKI/admin.kubeconfig")

is_part() {
  local part
  for part in "${CONTROL_PLANE[@]}" kafka; do [ "$part" = "$1" ] && return 0; done
  return 1
}

# Sets COMMAND, and writes what that part reads.
part_registry() {
  cat >"$RUN/registry.yml" <<Y
version: 0.1
log: {accesslog: {disabled: true}, level: warn}
storage: {filesystem: {rootdirectory: $LAB/registry}, delete: {enabled: true}, maintenance: {uploadpurging: {enabled: false}}}
http: {addr: "$REGISTRY_ADDRESS", secret: lab, relativeurls: true}
Y
  COMMAND=("$BIN/registry" serve "$RUN/registry.yml")
}

part_etcd() {
  COMMAND=("$BIN/etcd" --data-dir "$LAB/etcd" --unsafe-no-fsync
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380)
}

# With the aggregator's routing the API server reaches webhooks in pods by their endpoints, without a kube-proxy on its side.
part_apiserver() {
  # shellcheck disable=SC2054  # the comma is the option's
  COMMAND=("$BIN/kube" kube-apiserver --etcd-servers=http://127.0.0.1:2379
    "--advertise-address=$CP_ADDRESS" --bind-address=0.0.0.0 --secure-port=6443
    "--tls-cert-file=$PKI/apiserver.crt" "--tls-private-key-file=$PKI/apiserver.key" "--client-ca-file=$PKI/ca.crt"
    "--kubelet-client-certificate=$PKI/apiserver-kubelet-client.crt" "--kubelet-client-key=$PKI/apiserver-kubelet-client.key"
    "--kubelet-certificate-authority=$PKI/ca.crt" --kubelet-preferred-address-types=InternalIP
    --service-account-issuer=https://kubernetes.default.svc
    "--service-account-key-file=$PKI/sa.pub" "--service-account-signing-key-file=$PKI/sa.key"
    --service-cluster-ip-range=10.96.0.0/24 --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction
    --enable-aggregator-routing=true --allow-privileged=true
    --feature-gates=EvictionRequestAPI=true --runtime-config=lifecycle.k8s.io/v1alpha1=true
    "--requestheader-client-ca-file=$PKI/ca.crt" --requestheader-allowed-names=front-proxy-client
    --requestheader-extra-headers-prefix=X-Remote-Extra- --requestheader-group-headers=X-Remote-Group
    --requestheader-username-headers=X-Remote-User
    "--proxy-client-cert-file=$PKI/front-proxy-client.crt" "--proxy-client-key-file=$PKI/front-proxy-client.key")
}

part_kcm() {
  COMMAND=("$BIN/kube" kube-controller-manager "--kubeconfig=$PKI/kcm.kubeconfig"
    "--service-account-private-key-file=$PKI/sa.key" "--root-ca-file=$PKI/ca.crt" --use-service-account-credentials=true
    "--cluster-signing-cert-file=$PKI/ca.crt" "--cluster-signing-key-file=$PKI/ca.key"
    --leader-elect=false --bind-address=127.0.0.1
    --node-monitor-grace-period=16s --node-monitor-period=2s # as kubelet.yaml's lease: a node that is away is seen soon
    "--authentication-kubeconfig=$PKI/kcm.kubeconfig" "--authorization-kubeconfig=$PKI/kcm.kubeconfig")
}

part_scheduler() {
  [ -e "$LAB/scheduler.yaml" ] || scheduler_config_default
  COMMAND=("$BIN/kube" kube-scheduler "--config=$LAB/scheduler.yaml" --bind-address=127.0.0.1
    "--authentication-kubeconfig=$PKI/scheduler.kubeconfig" "--authorization-kubeconfig=$PKI/scheduler.kubeconfig")
}

part_coredns() {
  cat >"$RUN/Corefile" <<C
.:53 {
  bind $CP_ADDRESS
  errors
  kubernetes cluster.local in-addr.arpa {
    kubeconfig $PKI/admin.kubeconfig
  }
  cache 5
}
C
  COMMAND=("$BIN/coredns" -conf "$RUN/Corefile")
}

# Is it of use, and not only alive?
cp_curl() { nsenter "--net=/run/netns/$CP" curl -sfk --max-time 2 "$@"; }
part_ready() { # PART
  pid_of "$1" >/dev/null || return 1
  case $1 in
  registry) cp_curl "http://$REGISTRY_ADDRESS/v2/" ;;
  etcd) cp_curl http://127.0.0.1:2379/health ;;
  apiserver) cp_curl --cert "$PKI/admin.crt" --key "$PKI/admin.key" "https://$CP_ADDRESS:6443/readyz" ;;
  kcm) cp_curl https://127.0.0.1:10257/healthz ;;
  scheduler) cp_curl https://127.0.0.1:10259/healthz ;;
  kafka) kafka_ready ;;
  esac >/dev/null 2>&1
}

start_part() { # PART
  local COMMAND
  ! pid_of "$1" >/dev/null || return 0
  "part_$1"
  rm -f "$RUN/$1.pid"
  in_background "$1" exec setsid nsenter "--net=/run/netns/$CP" -- "${COMMAND[@]}"
  wait_until 5 test -e "$RUN/$1.pid"
}
wait_part() { # PART
  wait_until 60 part_ready_or_gone "$1" || die "$1 runs but does not get ready; see: e2e/lab logs $1"
  pid_of "$1" >/dev/null || {
    tail -n 5 "$LOG/$1.log" >&2
    die "$1 ended by itself; its last lines are above, the rest: e2e/lab logs $1"
  }
}
part_ready_or_gone() { part_ready "$1" || is_gone "$1"; }

# The controller manager and the scheduler give up when there is no API server.
control_plane_up() {
  local part
  for part in registry etcd apiserver; do start_part "$part"; done
  wait_part registry
  wait_part etcd
}
control_plane_finish() {
  local part
  wait_part apiserver
  for part in kcm scheduler coredns; do start_part "$part"; done
  dns_service
}
control_plane_wait() {
  local part
  for part in "${CONTROL_PLANE[@]}"; do wait_part "$part"; done
  wait_until 60 "${KUBECTL[@]}" get serviceaccount default || # pods are refused before it exists
    die "the default service account does not appear; see: e2e/lab logs kcm"
}

# Cluster DNS is a process here, behind a Service without a selector and an EndpointSlice made by hand.
dns_service() {
  "${KUBECTL[@]}" apply -f - >/dev/null <<Y
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec: {clusterIP: 10.96.0.10, ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kube-dns, namespace: kube-system, labels: {kubernetes.io/service-name: kube-dns}}
addressType: IPv4
ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]
endpoints: [{addresses: [$CP_ADDRESS], conditions: {ready: true}}]
Y
}

scheduler_config_default() {
  printf 'apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n' | scheduler_config_write
}
# What every configuration needs here is added when the file does not say it.
scheduler_config_write() {
  local text
  text=$(cat)
  {
    printf '%s\n' "$text"
    grep -q '^leaderElection:' <<<"$text" || echo 'leaderElection: {leaderElect: false}'
    grep -q '^clientConnection:' <<<"$text" || echo "clientConnection: {kubeconfig: $PKI/scheduler.kubeconfig}"
  } >"$LAB/scheduler.yaml.new"
  mv "$LAB/scheduler.yaml.new" "$LAB/scheduler.yaml"
}
scheduler_config() { # FILE|default: nothing happens where it runs with that already
  local before
  before=$(cat "$LAB/scheduler.yaml") || die "the lab is not up; run: e2e/lab up"
  case ${1:-} in
  '') die "usage: e2e/lab scheduler-config FILE|default" ;;
  default) scheduler_config_default ;;
  *)
    [ -r "$1" ] || die "cannot read $1"
    scheduler_config_write <"$1"
    ;;
  esac
  ! part_ready scheduler || [ "$(cat "$LAB/scheduler.yaml")" != "$before" ] || return 0
  end_process scheduler
  start_part scheduler
  if ! (wait_part scheduler); then
    scheduler_config_write <<<"$before"
    start_part scheduler
    wait_part scheduler
    die "the scheduler refuses that configuration; the former one is back"
  fi
}
