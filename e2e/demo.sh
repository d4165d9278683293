#!/usr/bin/env bash
# The demo: a cluster, Kanchi by its chart, RabbitMQ and Redis with a sample Celery application on each, and then
# `kubectl apply -f examples/`, watched until both brokers are Ready and their tasks are in Postgres.
#
#   e2e/demo.sh                      on the lab of this machine (built at the first time), which it leaves up
#   CLUSTER=<context> e2e/demo.sh    on a cluster of yours; it needs images that the cluster can pull:
#                                    KANCHI_OPERATOR_IMAGE, KANCHI_MONITOR_IMAGE, KANCHI_CELERY_IMAGE
set -euo pipefail
shopt -s inherit_errexit
ROOT=$(cd "$(dirname "$0")/.." && pwd)
LAB=$ROOT/e2e/lab/lab
SYSTEM=kanchi-system # where Kanchi runs
SHOP=shop            # where the brokers and the applications run
WATCH_SECONDS=${DEMO_SECONDS:-45}

say() { printf '\n\e[1m==> %s\e[0m\n' "$*"; }

fail() {
  printf 'demo: %s\n' "$*" >&2
  kubectl get celerybrokers,pods -A -o wide >&2 || true
  kubectl -n "$SHOP" describe celerybrokers >&2 || true
  kubectl get events -A --field-selector type=Warning >&2 || true
  exit 1
}

# await <seconds> <what> <command…>: shows what it waits for while the command does not succeed.
await() {
  local within=$1 what=$2 begin=$SECONDS shown=0
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ $((SECONDS - begin)) -lt "$within" ] || fail "$what did not happen within $within s"
    if [ $((SECONDS - begin)) -ge $((shown + 10)) ]; then
      shown=$((SECONDS - begin))
      echo "    waiting for $what ($shown s)"
    fi
    sleep 1
  done
  echo "    $what after $((SECONDS - begin)) s"
}

restricted_namespace() {
  kubectl create namespace "$1" --dry-run=client -o yaml | kubectl apply -f - >/dev/null
  kubectl label --overwrite namespace "$1" pod-security.kubernetes.io/enforce=restricted >/dev/null
}

# On a cluster of one's own, public images of the same services.
services() {
  local name
  for name in rabbitmq redis; do
    if [ -n "${CLUSTER:-}" ]; then
      sed -e "s|image: kanchi.lab/services:1|image: docker.io/library/$([ "$name" = redis ] && echo redis:7.2 || echo rabbitmq:3.13)|" \
        "$ROOT/e2e/services/$name.yaml"
    else
      cat "$ROOT/e2e/services/$name.yaml"
    fi | kubectl -n "$SHOP" apply -f - >/dev/null
  done
}

install_kanchi() {
  helm upgrade --install kanchi "$ROOT/charts/kanchi" --namespace "$SYSTEM" \
    --set "operator.image.repository=${KANCHI_OPERATOR_IMAGE%:*}" --set-string "operator.image.tag=${KANCHI_OPERATOR_IMAGE##*:}" \
    --set "monitor.image.repository=${KANCHI_MONITOR_IMAGE%:*}" --set-string "monitor.image.tag=${KANCHI_MONITOR_IMAGE##*:}" \
    "${POSTGRES_VALUES[@]}" >/dev/null
}

apply_examples() {
  if [ -n "${CLUSTER:-}" ]; then
    sed -e "s|image: kanchi.lab/celery-app:1|image: $KANCHI_CELERY_IMAGE|" "$ROOT"/examples/*.yaml | kubectl apply -f -
  else
    kubectl apply -f "$ROOT/examples/"
  fi
}

all_ready() { [ "$(kubectl -n "$SYSTEM" get pods --no-headers | grep -vc ' 1/1 ')" = 0 ]; }
condition() { kubectl -n "$SHOP" wait "celerybroker/$1" --for="condition=$2=True" --timeout=1s; }
brokers() { kubectl -n "$SHOP" get celerybrokers; }

psql() { kubectl -n "$SYSTEM" exec "$POSTGRES_POD" -- psql -h /tmp -X -q -d kanchi -U kanchi "$@"; }

# Tasks by state, finished or not, as they stand in Postgres.
TASKS='(select broker_id, state from kanchi.task_live union all select broker_id, state from kanchi.task)'

counts() {
  psql -P footer=off -c "
    select b.namespace || '/' || b.name as broker, t.state, count(*) as tasks
    from $TASKS t
    join kanchi.broker b using (broker_id) group by 1, 2 order by 1, 3 desc"
}

some_tasks() { [ "$(psql -At -c "select count(distinct broker_id) from $TASKS t where state = 'SUCCESS'")" -ge 2 ]; }

watch_counts() {
  local until=$((SECONDS + WATCH_SECONDS))
  while [ "$SECONDS" -lt "$until" ]; do
    brokers
    counts
    sleep 10
  done
}

if [ -z "${CLUSTER:-}" ]; then
  say "A real Kubernetes on this machine (the first time takes some minutes)"
  "$LAB" up
  "$LAB" load kanchi services celery
fi
environment=$("$LAB" env)
eval "$environment"
: "${KANCHI_OPERATOR_IMAGE:?set it to an image that the cluster can pull}" "${KANCHI_MONITOR_IMAGE:?the same}" "${KANCHI_CELERY_IMAGE:?the same}"
# The password only has to be the same at the next run of the demo, whose Postgres has its data still.
POSTGRES_VALUES=(--set store.evaluation.enabled=true --set store.evaluation.password=evaluation-only)
if [ -z "${CLUSTER:-}" ]; then
  POSTGRES_VALUES+=(--set "store.evaluation.image.repository=${KANCHI_SERVICES_IMAGE%:*}" --set-string "store.evaluation.image.tag=${KANCHI_SERVICES_IMAGE##*:}")
fi

say "Kanchi by its chart (with an evaluation Postgres), RabbitMQ and Redis beside it"
restricted_namespace "$SYSTEM"
restricted_namespace "$SHOP"
services
install_kanchi
await 180 "RabbitMQ" kubectl -n "$SHOP" rollout status statefulset/rabbitmq --timeout=1s
await 60 "Redis" kubectl -n "$SHOP" rollout status statefulset/redis --timeout=1s
await 180 "Kanchi" all_ready
POSTGRES_POD=$(kubectl -n "$SYSTEM" get pods -l app.kubernetes.io/component=postgres -o jsonpath='{.items[0].metadata.name}')

say "kubectl apply -f examples/"
apply_examples

say "kubectl get celerybrokers"
for broker in orders mail; do
  for wanted in Ready BrokerReachable; do await 120 "$broker $wanted" condition "$broker" "$wanted"; done
done
brokers
await 120 "tasks of both in Postgres" some_tasks

say "Live figures, for $WATCH_SECONDS s"
watch_counts

say "To look further"
cat <<TEXT
  ${CLUSTER:+kubectl --context $CLUSTER}${CLUSTER:-make lab-shell}    # then:
  kubectl -n $SHOP get celerybrokers -o wide
  kubectl -n $SHOP describe celerybroker orders          # conditions, counts of the last hour, top queues
  kubectl explain celerybroker.spec
  kubectl -n $SHOP exec deploy/orders-worker -- python -m shop publish retry-failure 20
  kubectl -n $SHOP scale deploy/orders-worker --replicas 0   # and see workers and queue depth follow
  kubectl -n $SHOP logs orders-monitor-0
  kubectl -n $SYSTEM exec -it $POSTGRES_POD -- psql -h /tmp -U kanchi kanchi   # kanchi.task_live, kanchi.task, kanchi.worker, kanchi.queue
TEXT
if [ -n "${CLUSTER:-}" ]; then
  echo "  Stop: kubectl --context $CLUSTER delete namespace $SHOP && helm --kube-context $CLUSTER uninstall kanchi -n $SYSTEM"
else
  echo "  The lab stays up. Stop: make lab-down"
fi
