#!/bin/bash
# Makes stand-ins for the images that the Dockerfile and the tested Compose files name, from Debian's
# packages and this machine's Rust toolchain, and tags them with those names. For a machine that
# reaches Debian's packages and crates.io but no container registry. An image that is present, or can
# be pulled, is left alone.
#
# A stand-in is alike only in what Pixel's files use of the image: names of users, paths and
# environment variables. It takes over how this machine reaches its package servers: its mirror,
# apt's and cargo's settings, its own certificate authorities, its proxy.
#
# Needs a running Docker engine; debootstrap and root for debian:bookworm-slim.
set -euo pipefail
cd "$(dirname "$0")/../.."

DEBIAN=debian:bookworm-slim
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

main() {
  local image
  for image in $DEBIAN $(images | grep -vx $DEBIAN); do
    present "$image" || pull "$image" || make_standin "$image"
  done
}

# Every image that the files of the test's systems name, without the ones that they build.
images() {
  {
    sed -n 's/^FROM \([^ ]*:[^ ]*\).*/\1/p' Dockerfile
    sed -n 's/^ *image: \([a-z][^ "]*\)$/\1/p' docker-compose.yml deploy/{caddy,cluster,haproxy}/docker-compose.yml
  } | sort -u
}

present() { docker image inspect "$1" >/dev/null 2>&1; }

pull() { timeout 300 docker pull --quiet "$1" >/dev/null 2>&1; }

make_standin() {
  local kind=${1%%:*}
  echo "no $1 to be had: making a stand-in"
  case $kind in
    debian|rust|rabbitmq|caddy|haproxy) mkdir "$work/$kind" ;;
    *) echo "no stand-in is known for $1" >&2; return 1 ;;
  esac
  { "$kind" "$work/$kind" > "$work/Dockerfile" &&
    docker build --label pixel.standin --tag "$1" --file "$work/Dockerfile" "$work/$kind"
  } > "$work/log" 2>&1 || { tail -n 30 "$work/log" >&2; return 1; }
  rm -rf "${work:?}/$kind"
}

# Each function below prints a Dockerfile, and puts what that copies into the folder it is given.

# debian:bookworm-slim: as debootstrap makes it, without documentation and package lists.
debian() {
  local context=$1 root=$1/root mirror
  # shellcheck disable=SC2016 # apt's own variable
  mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 2>/dev/null | head -n 1)
  : "${mirror:=http://deb.debian.org/debian}"
  debootstrap --variant=minbase bookworm "$root" "$mirror" >&2 || return

  # As in the image itself: apt keeps no caches.
  printf '%s\n' 'Dir::Cache::pkgcache "";' 'Dir::Cache::srcpkgcache "";' 'APT::Keep-Downloaded-Packages "false";' \
    'DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb || true"; };' > "$root/etc/apt/apt.conf.d/docker-clean"
  apt-config dump | grep -E '^Acquire::(http|https|Retries|Check)' > "$root/etc/apt/apt.conf.d/90host" || true
  printf 'path-exclude /usr/share/%s/*\n' doc man info locale > "$root/etc/dpkg/dpkg.cfg.d/slim"
  find /usr/local/share/ca-certificates -name '*.crt' -exec install -D -m 644 -t \
    "$root/usr/local/share/ca-certificates" {} + 2>/dev/null || true
  rm -rf "$root"/usr/share/{doc,man,info,locale}/* "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* \
    "$root"/var/log/*.log
  tar -C "$root" -cf "$context/root.tar" --one-file-system .
  rm -rf "$root"

  printf '%s\n' 'FROM scratch' 'ADD root.tar /' 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
    'CMD ["bash"]'
}

# rust:*-slim: this machine's own toolchain, and what it links with.
rust() {
  local context=$1 part sysroot
  sysroot=$(rustc --print sysroot)
  mkdir "$context/toolchain"
  for part in bin lib; do cp -a "$sysroot/$part" "$context/toolchain/"; done
  mkdir "$context/cargo"
  cp "${CARGO_HOME:-$HOME/.cargo}"/config* "$context/cargo/" 2>/dev/null || true
  cat <<EOF
FROM $DEBIAN
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
COPY toolchain /usr/local
COPY cargo /usr/local/cargo
ENV CARGO_HOME=/usr/local/cargo $(proxies)
EOF
}

# rabbitmq:4-management, Debian trixie's: the node as the user rabbitmq, the log on the console, the management
# plugin; rabbitmq itself reads RABBITMQ_DEFAULT_USER, RABBITMQ_DEFAULT_PASS and
# RABBITMQ_ERLANG_COOKIE.
rabbitmq() {
  local context=$1 root plugins
  root=$(tests/broker-4) || return
  # Debian has them where only its own scripts look.
  plugins=$(cd "$root" && echo usr/lib/rabbitmq/lib/*/plugins)
  # What is mounted in it stays out; /tmp is this machine's, perhaps of the same file system.
  tar -C "$root" -cf "$context/root.tar" --one-file-system --exclude='./tmp/*' .
  cat <<EOF
FROM scratch
ADD root.tar /
ENV RABBITMQ_PLUGINS_DIR=/$plugins
RUN mkdir -p /tmp /proc && chmod 1777 /tmp \
 && rm -rf /var/lib/apt/lists/* /var/lib/rabbitmq/.erlang.cookie /var/lib/rabbitmq/mnesia \
 && /usr/lib/rabbitmq/bin/rabbitmq-plugins enable --offline rabbitmq_management \
 && mkdir -p /etc/rabbitmq/conf.d && chown -R rabbitmq:rabbitmq /etc/rabbitmq /var/lib/rabbitmq \
 && chmod 777 /etc/rabbitmq /etc/rabbitmq/conf.d /var/lib/rabbitmq /var/log/rabbitmq
ENV PATH=/usr/lib/rabbitmq/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ENV HOME=/var/lib/rabbitmq RABBITMQ_LOGS=- LANG=C.UTF-8
EXPOSE 5672 15672
CMD ["rabbitmq-server"]
EOF
}

# caddy:*: the same paths and command, and wget and nc, which Alpine's busybox brings. Of the same version where the
# linters brought one.
caddy() {
  local context=$1
  [[ ! -x target/lint/bin/caddy ]] || cp target/lint/bin/caddy "$context/newer-caddy"
  touch "$context/nothing"
  cat <<EOF
FROM $DEBIAN
RUN apt-get update && apt-get install -y --no-install-recommends busybox ca-certificates caddy \
 && rm -rf /var/lib/apt/lists/* && ln -s busybox /usr/bin/wget && ln -s busybox /usr/bin/nc \
 && mkdir -p /config/caddy /data/caddy
COPY nothing newer-cadd[y] /tmp/
RUN [ ! -e /tmp/newer-caddy ] || mv /tmp/newer-caddy /usr/bin/caddy
ENV XDG_CONFIG_HOME=/config XDG_DATA_HOME=/data
EXPOSE 80 443 8080
CMD ["caddy", "run", "--config", "/etc/caddy/Caddyfile", "--adapter", "caddyfile"]
EOF
}

# haproxy:*: the same path and command, and wget and nc.
haproxy() {
  cat <<EOF
FROM $DEBIAN
RUN apt-get update && apt-get install -y --no-install-recommends busybox haproxy \\
 && rm -rf /var/lib/apt/lists/* && ln -s busybox /usr/bin/wget && ln -s busybox /usr/bin/nc
USER haproxy
CMD ["haproxy", "-W", "-db", "-f", "/usr/local/etc/haproxy/haproxy.cfg"]
EOF
}

proxies() {
  local name
  for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
    [[ -z ${!name:-} ]] || printf '%s="%s" ' "$name" "${!name}"
  done
}

main
