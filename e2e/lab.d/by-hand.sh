#!/bin/bash
# One migration by hand on a running lab: a counter from n1 to n2, frozen, checkpointed by the kubelet, pushed as an image and
# restored by containerd. It is what Drover does by itself, and proves that the lab can carry it.
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$HERE/common.sh"
k() { "$E2E/lab" kubectl -n by-hand "$@"; }

pod() { # NAME NODE IMAGE
  cat <<Y
apiVersion: v1
kind: Pod
metadata: {name: $1}
spec:
  nodeName: $2
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  securityContext: {runAsUser: 1000, runAsGroup: 1000}
  containers: [{name: c, image: "$3", args: ["16", "100"]}]
Y
}

base=$REGISTRY_ADDRESS/counter
digest=$(curl -sfI -H 'Accept: application/vnd.oci.image.manifest.v1+json' "http://$REGISTRY_ADDRESS/v2/counter/manifests/1" |
  tr -d '\r' | awk 'tolower($1) == "docker-content-digest:" {print $2}') || die "the registry has no counter:1; run: e2e/lab up"
k create namespace by-hand --dry-run=client -o yaml | k apply -f - >/dev/null
k delete pod --all --grace-period=1 >/dev/null
wait_until 30 k get serviceaccount default
pod source n1 "$base:1" | k apply -f - >/dev/null
# containerd restores only from a base image that it has under its digest: a placeholder with an image volume pulls it
k apply -f - >/dev/null <<Y
apiVersion: v1
kind: Pod
metadata: {name: placeholder}
spec:
  nodeName: n2
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 0
  volumes: [{name: base, image: {reference: "$base@$digest", pullPolicy: IfNotPresent}}]
  containers: [{name: c, image: "$REGISTRY_ADDRESS/pause:3.10", volumeMounts: [{name: base, mountPath: /base}]}]
Y
k wait --for=condition=Ready pod/source pod/placeholder --timeout=60s
sleep 1

id=$(k get pod source -o 'jsonpath={.status.containerStatuses[0].containerID}')
id=${id##*/}
frozen=$(date +%s%N)
"$E2E/lab" exec n1 ctr -n k8s.io task pause "$id"
reply=$(curl -sf --cacert "$PKI/ca.crt" --cert "$PKI/apiserver-kubelet-client.crt" --key "$PKI/apiserver-kubelet-client.key" \
  -X POST "https://$(node_address n1):10250/checkpoint/by-hand/source/c") || die "the checkpoint failed; see: e2e/lab logs n1-containerd"
archive=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["items"][0])' <<<"$reply")
"$E2E/lab" push by-hand/source:1 "$NODES/n1$archive" \
  --annotation org.criu.checkpoint.container.name=c --annotation io.kubernetes.cri-o.annotations.checkpoint.name=c
last=$(k logs source --tail=1 | cut -d' ' -f1)
pod replacement n2 "$REGISTRY_ADDRESS/by-hand/source:1" | k apply -f - >/dev/null
k wait --for=condition=Ready pod/replacement --timeout=60s
first_line() { k logs replacement | awk -v last="$last" '$1 > last {print; exit}' | grep .; }
wait_until 10 first_line || die "the replacement runs but prints nothing new; see: e2e/lab kubectl -n by-hand logs replacement"
read -r first at <<<"$(first_line)"
# Delete first, then kill: a container of a pod that is not being deleted would be started again
k delete pod source --wait=false >/dev/null
"$E2E/lab" exec n1 ctr -n k8s.io task kill -s SIGKILL "$id" || true
k delete pod --all --grace-period=1 >/dev/null
echo "last on n1: $last, first on n2: $first, frozen for $(awk -v from="$frozen" -v to="$at" 'BEGIN {printf "%.2f", to - from / 1e9}') s"
[ "$first" = $((last + 1)) ] || die "the counter did not go on where it stopped"
