#!/bin/sh
# `make edge`: the edge in front of a Pixel that runs on this machine: EDGE=haproxy or caddy; unset, Caddy where
# PIXEL_SITE names a site, as it gets the certificate, and HAProxy otherwise. Their configurations name the other
# variables. Without a site it listens in clear on port 8000.
set -eu
cd "$(dirname "$0")/.."

# Debian has HAProxy outside the PATH of ordinary users.
PATH=$PATH:/usr/sbin
EDGE=${EDGE:-${PIXEL_SITE:+caddy}}
EDGE=${EDGE:-haproxy}
case $EDGE in
  caddy)
    export PIXEL_SITE="${PIXEL_SITE:-:8000}"
    case $(caddy version 2>/dev/null) in
      2.6.[0-2]* | v2.6.[0-2]*) export PIXEL_CADDY_BUFFERING="${PIXEL_CADDY_BUFFERING:-buffer_requests}" ;;
    esac
    set -- caddy run --adapter caddyfile --config deploy/Caddyfile
    ;;
  haproxy)
    export PIXEL_EDGE_LISTEN="${PIXEL_EDGE_LISTEN:-:8000}"
    set -- haproxy -W -db -f deploy/haproxy/haproxy.cfg
    ;;
  *)
    echo "EDGE is caddy or haproxy, not $EDGE" >&2
    exit 2
    ;;
esac
if ! command -v "$1" >/dev/null; then
  echo "$1 is not on this machine; on Debian: apt-get install $1" >&2
  exit 1
fi
exec "$@"
