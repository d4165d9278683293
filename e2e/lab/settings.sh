# shellcheck shell=bash disable=SC2034  # read by the scripts beside it
# Where things are and what they are called. Labs are numbered 0–15, so that several live on one machine without meeting.

KANCHI_CACHE=${KANCHI_CACHE:-$HOME/.cache/kanchi}
LAB_HOME=$KANCHI_CACHE/lab
COMPONENTS=$LAB_HOME/components
IMAGES=$LAB_HOME/images

LAB_NUMBER=${KANCHI_LAB:-0}
[[ $LAB_NUMBER =~ ^([0-9]|1[0-5])$ ]] || { echo "lab: KANCHI_LAB must be a number from 0 to 15, not '$LAB_NUMBER'" >&2; exit 2; }
LAB_NAME=kanchi-lab-$LAB_NUMBER
RUN=$LAB_HOME/run-$LAB_NUMBER
KUBECONFIG_FILE=$RUN/kubeconfig

CHECKOUT=$(cd "$LAB/../.." && pwd)
CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$KANCHI_CACHE/target}

# shellcheck source=e2e/lab/versions.env
source "$LAB/versions.env"
KUBERNETES_VERSION=${KUBERNETES_VERSION:-${KUBERNETES_VERSIONS[0]}}

# Addresses: a /30 between machine and node, 4,000 pods, 4,000 services.
NODE_IP=10.76.0.$((LAB_NUMBER * 4 + 1))
HOST_IP=10.76.0.$((LAB_NUMBER * 4 + 2))
POD_RANGE=10.77.$((LAB_NUMBER * 16)).0/20
SERVICE_RANGE=10.78.$((LAB_NUMBER * 16)).0/20
API_SERVICE_IP=10.78.$((LAB_NUMBER * 16)).1
DNS_IP=10.78.$((LAB_NUMBER * 16)).10
LINK_HOST=kanchi$LAB_NUMBER
LINK_NODE=node$LAB_NUMBER
TOXIPROXY_PORT=8474
