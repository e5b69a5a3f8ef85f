#!/bin/sh
# Checks everything that only a deployment would show to be wrong: Dockerfile, Compose files,
# the edges' configurations, the dashboard, workflows. Run by `make lint-deploy`, which brings the linters.
set -eu
cd "$(dirname "$0")/.."
tools=target/lint

hadolint Dockerfile
actionlint

for caddy in $tools/bin/caddy /usr/bin/caddy; do
  [ -x "$caddy" ] || continue
  case $("$caddy" version) in
    2.6.[0-2]* | v2.6.[0-2]*) buffering=buffer_requests ;;
    *) buffering=request_buffers ;;
  esac
  "$caddy" fmt deploy/Caddyfile | diff deploy/Caddyfile -
  for discovery in fixed dns; do
    PIXEL_DISCOVERY=$discovery PIXEL_CADDY_BUFFERING=$buffering XDG_DATA_HOME=$tools XDG_CONFIG_HOME=$tools \
      "$caddy" validate --config deploy/Caddyfile --adapter caddyfile > $tools/caddy.log 2>&1 \
      || { cat $tools/caddy.log >&2; exit 1; }
  done
done

if [ -x /usr/sbin/haproxy ]; then
  for discovery in fixed dns; do
    PIXEL_DISCOVERY=$discovery /usr/sbin/haproxy -q -c -f deploy/haproxy/haproxy.cfg
  done
fi

deploy/compose.sh config --quiet
PIXEL_CERTIFICATES=/certificates deploy/compose.sh -f docker-compose.yml -f deploy/haproxy/docker-compose.yml \
  config --quiet
EDGE=caddy deploy/compose.sh config --quiet
OBSERVE=1 deploy/compose.sh config --quiet
OBSERVE=1 EDGE=caddy deploy/compose.sh config --quiet
REPORT=1 OBSERVE=1 deploy/compose.sh config --quiet
RABBITMQ_ERLANG_COOKIE=x deploy/compose.sh -f docker-compose.yml -f deploy/cluster/docker-compose.yml config --quiet
PIXEL_SITE=px.example.com deploy/compose.sh -f docker-compose.yml -f deploy/caddy/docker-compose.yml \
  -f deploy/public.yml config --quiet
# Of the ServiceMonitor there is no schema: its kind is the Prometheus Operator's.
for file in deploy/kubernetes/collector.yaml deploy/kubernetes/storage.yaml; do
  $tools/bin/kubernetes-validate --strict --quiet "$file"
done
$tools/bin/python deploy/grafana/check.py deploy/grafana/pixel.json
for file in deploy/systemd/*.service; do
  systemd-analyze security --offline=true --threshold=15 "$file" > $tools/systemd.log 2>&1 \
    || { cat $tools/systemd.log >&2; exit 1; }
done
echo "deployment files: no findings"
