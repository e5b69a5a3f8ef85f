#!/bin/sh
# `make up`: builds the images, starts the system, waits until every part is healthy, and says where
# to go from there.
set -eu
cd "$(dirname "$0")/.."

TIMEOUT_S=180

if ! docker info >/dev/null 2>&1; then
  echo "no Docker engine answers here; \`make run\` runs Pixel as one program without it" >&2
  exit 1
fi

compose() { deploy/compose.sh "$@"; }

log=$(mktemp)
trap 'rm -f "$log"' EXIT

# One line on the terminal for each step; what it printed only if it failed.
step() {
  echo "$1"
  shift
  "$@" > "$log" 2>&1 || { tail -n 40 "$log" >&2; exit 1; }
}

unhealthy() {
  # shellcheck disable=SC2046 # one argument for each container
  docker inspect --format '{{if .State.Health}}{{if ne .State.Health.Status "healthy"}}{{.Name}}{{end}}{{end}}' \
    $(compose ps --all -q) | sed '/^$/d; s|^/||'
}

wait_until_healthy() {
  deadline=$(($(date +%s) + TIMEOUT_S))
  while [ -n "$(unhealthy)" ]; do
    if [ "$(date +%s)" -ge $deadline ]; then
      echo "not healthy after $TIMEOUT_S s: $(unhealthy | tr '\n' ' ')"
      compose ps
      return 1
    fi
    sleep 1
  done
}

step 'building the images (minutes the first time, seconds after)' compose build
step 'starting' compose up -d
step 'waiting until all is healthy' wait_until_healthy

address=$(compose port edge 8080)
source='{{range .Mounts}}{{if eq .Destination "/visits"}}{{.Source}}{{end}}{{end}}'
visits=$(docker inspect --format "$source" "$(compose ps -q pixel-storage | head -n 1)")
echo
echo "  Pixel is up. Try it:    curl -o /dev/null -D - http://$address/track -H 'Referer: https://example.com/'"
echo "  The visits are in       $visits/visits.log"
if report=$(compose port report-page 8080 2>/dev/null) && [ -n "$report" ]; then
  echo "  What they are, live     http://$report (GoAccess)"
fi
if grafana=$(compose port grafana 3000 2>/dev/null) && [ -n "$grafana" ]; then
  echo "  How it is               http://$grafana (Grafana), Prometheus and Jaeger beside it"
fi
