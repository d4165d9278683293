# shellcheck shell=bash
# The cluster's certificates: one authority, the API server, and one identity per component, as in a real cluster.

pki() {
  mkdir -p "$RUN/pki"
  (cd "$RUN/pki" && certificates)
  local who
  for who in controllers scheduler proxy node; do kubeconfig_of $who >"$RUN/$who.kubeconfig"; done
  (umask 077 && kubeconfig_of admin >"$KUBECONFIG_FILE")
  [ -z "${SUDO_UID:-}" ] || chown "$SUDO_UID:${SUDO_GID:-}" "$KUBECONFIG_FILE"
}

certificates() { # into the current folder
  openssl ecparam -name prime256v1 -genkey -noout -out ca.key
  openssl req -x509 -new -key ca.key -days 365 -subj /CN=lab-ca -out ca.crt
  certificate api /CN=kube-apiserver
  certificate admin /O=system:masters/CN=admin
  certificate controllers /CN=system:kube-controller-manager
  certificate scheduler /CN=system:kube-scheduler
  certificate proxy /CN=system:kube-proxy
  certificate node /O=system:nodes/CN=system:node:lab
  openssl ecparam -name prime256v1 -genkey -noout -out sa.key
  openssl ec -in sa.key -pubout -out sa.pub
}

certificate() { # name, subject
  openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"
  openssl req -new -key "$1.key" -subj "$2" -out "$1.csr"
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 365 -out "$1.crt" -extfile <(
    echo "extendedKeyUsage=serverAuth,clientAuth"
    echo "subjectAltName=IP:$NODE_IP,IP:$API_SERVICE_IP,IP:127.0.0.1,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:localhost,DNS:lab"
  )
}

kubeconfig_of() { # whole in one file, so that it can be copied
  cat <<YAML
apiVersion: v1
kind: Config
clusters: [{name: lab, cluster: {server: "https://$NODE_IP:6443", certificate-authority-data: $(base64 -w0 "$RUN/pki/ca.crt")}}]
users: [{name: $1, user: {client-certificate-data: $(base64 -w0 "$RUN/pki/$1.crt"), client-key-data: $(base64 -w0 "$RUN/pki/$1.key")}}]
contexts: [{name: $LAB_NAME, context: {cluster: lab, user: $1}}]
current-context: $LAB_NAME
YAML
}
