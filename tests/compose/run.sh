#!/bin/bash
# `make test-compose`: runs the whole system in containers on this machine and checks it (test.py).
# Installs Debian's engine if there is none and it may, starts it if none answers, and stops it then.
# Images stay for the next run.
set -euo pipefail
cd "$(dirname "$0")/../.."

ENGINE_START_S=60

may_install() { [[ $(id -u) -eq 0 ]] && command -v apt-get >/dev/null; }

# Each package and a program of it that shows that it is there.
install_missing() {
  local missing=()
  command -v docker >/dev/null || missing+=(docker.io)
  docker info >/dev/null 2>&1 || command -v dockerd >/dev/null || missing+=(docker.io iptables)
  docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null || missing+=(docker-compose)
  command -v debootstrap >/dev/null || missing+=(debootstrap)
  [[ ${#missing[@]} -gt 0 ]] && may_install || return 0
  echo "installing ${missing[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
}

start_engine() {
  docker info >/dev/null 2>&1 && return
  if [[ $(id -u) -ne 0 ]] || ! command -v dockerd >/dev/null; then
    echo "no Docker engine answers, and none can be started here" >&2
    exit 1
  fi
  echo "starting dockerd"
  engine_log=$(mktemp)
  # In a session of its own, so that Ctrl-C reaches the test first and the engine by the trap.
  setsid dockerd >"$engine_log" 2>&1 &
  engine=$!
  trap stop_engine EXIT
  local deadline=$((SECONDS + ENGINE_START_S))
  until docker info >/dev/null 2>&1; do
    if ! kill -0 "$engine" 2>/dev/null || ((SECONDS >= deadline)); then
      tail -n 20 "$engine_log" >&2
      exit 1
    fi
    sleep 0.5
  done
}

stop_engine() {
  kill "$engine" && wait "$engine" || true
  rm -f "$engine_log"
}

install_missing
start_engine
tests/compose/standins.sh
python3 tests/compose/test.py "$@"
