# Certificates and kubeconfigs of the control plane and the nodes, made once and kept, so that a kubeconfig stays good.
# shellcheck shell=bash

pki_ca() { # NAME COMMON-NAME, in the current folder
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=$2" -keyout "$1.key" -out "$1.crt"
}

pki_certificate() { # NAME COMMON-NAME ORGANISATION SUBJECT-ALT-NAMES [CA], in the current folder
  local ca=${5:-ca}
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "${3:+/O=$3}/CN=$2" -keyout "$1.key" -out "$1.csr"
  {
    echo 'keyUsage=digitalSignature,keyEncipherment'
    echo 'extendedKeyUsage=serverAuth,clientAuth'
    [ -z "$4" ] || echo "subjectAltName=$4"
  } >"$1.ext"
  openssl x509 -req -in "$1.csr" -CA "$ca.crt" -CAkey "$ca.key" -CAcreateserial -days 3650 -out "$1.crt" -extfile "$1.ext"
  rm "$1.csr" "$1.ext"
}

pki_kubeconfig() { # NAME, in the current folder
  cat >"$1.kubeconfig" <<Y
apiVersion: v1
kind: Config
clusters: [{name: lab, cluster: {server: "https://$CP_ADDRESS:6443", certificate-authority-data: $(base64 -w0 ca.crt)}}]
users: [{name: $1, user: {client-certificate-data: $(base64 -w0 "$1.crt"), client-key-data: $(base64 -w0 "$1.key")}}]
contexts: [{name: lab, context: {cluster: lab, user: $1}}]
current-context: lab
Y
}

pki_make() { # FOLDER
  local name
  cd "$1"
  pki_ca ca lab-ca
  openssl genrsa -out sa.key 2048
  openssl rsa -in sa.key -pubout -out sa.pub
  pki_certificate apiserver kube-apiserver "" "IP:$CP_ADDRESS,IP:10.96.0.1,IP:127.0.0.1,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:localhost"
  pki_certificate apiserver-kubelet-client apiserver-kubelet-client system:masters ""
  pki_certificate admin admin system:masters ""
  pki_certificate kcm system:kube-controller-manager "" ""
  pki_certificate scheduler system:kube-scheduler "" ""
  pki_certificate proxy system:kube-proxy "" ""
  pki_certificate front-proxy-client front-proxy-client "" ""
  for name in "${NODE_NAMES[@]}"; do
    pki_certificate "$name" "system:node:$name" system:nodes "IP:$(node_address "$name"),DNS:$name"
  done
  for name in admin kcm scheduler proxy "${NODE_NAMES[@]}"; do pki_kubeconfig "$name"; done
}

# Makes a folder whole, once: in another one, which is renamed.
pki_once() { # FOLDER LAST-FILE COMMAND WHAT
  local log
  log=$LOG/${1##*/}.log
  [ ! -e "$1/$2" ] || return 0
  rm -rf "$1" "$1.new"
  mkdir -p "$1.new"
  chmod 700 "$1.new"
  (set -euo pipefail && "$3" "$1.new") >"$log" 2>&1 || die "$4 could not be made; see $log"
  mv "$1.new" "$1"
}
pki_up() { pki_once "$PKI" admin.kubeconfig pki_make "the certificates"; }
