#!/bin/sh
# Compose, whichever this machine has, with the visits owned by whoever calls it. Root would gain
# nothing by that: for root, and where .env says who, the default stays.
set -eu
cd "$(dirname "$0")/.."

if [ "$(id -u)" -ne 0 ] && ! grep -qs '^PIXEL_UID=' .env; then
  PIXEL_UID=${PIXEL_UID:-$(id -u)} PIXEL_GID=${PIXEL_GID:-$(id -g)}
  export PIXEL_UID PIXEL_GID
fi

# Which edge: HAProxy, unless EDGE or .env says otherwise. Files that are named count as they are.
edge=${EDGE:-$(sed -n 's/^EDGE=//p' .env 2>/dev/null || true)}
more=
case ${edge:-haproxy} in
  haproxy) ;;
  caddy) more=:deploy/caddy/docker-compose.yml ;;
  *)
    echo "EDGE is haproxy or caddy, not $edge" >&2
    exit 2
    ;;
esac

# With OBSERVE=1, here or in .env, also who watches: Prometheus, Grafana and Jaeger.
observe=${OBSERVE:-$(sed -n 's/^OBSERVE=//p' .env 2>/dev/null || true)}
case ${observe:-0} in
  0) ;;
  1) more=$more:deploy/observe/docker-compose.yml ;;
  *)
    echo "OBSERVE is 0 or 1, not $observe" >&2
    exit 2
    ;;
esac

# With REPORT=1, here or in .env, also a live report of the visits.
report=${REPORT:-$(sed -n 's/^REPORT=//p' .env 2>/dev/null || true)}
case ${report:-0} in
  0) ;;
  1) more=$more:deploy/report/docker-compose.yml ;;
  *)
    echo "REPORT is 0 or 1, not $report" >&2
    exit 2
    ;;
esac

if [ -n "$more" ] && ! grep -qs '^COMPOSE_FILE=' .env; then
  export COMPOSE_FILE="${COMPOSE_FILE:-docker-compose.yml}$more"
fi

if docker compose version >/dev/null 2>&1; then
  exec docker compose "$@"
fi
exec docker-compose "$@"
