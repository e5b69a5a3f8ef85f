#!/usr/bin/env bash
# The life of the Debian package in a machine of its own with systemd as PID 1: installed, started, upgraded under
# visits, purged; then of what `make install` makes. As root on Debian; the machine is a systemd-nspawn of debootstrap's.
#
#   tests/package/run.sh [DEB]     without one, of `make deb`
set -eu

cd "$(dirname "$0")/../.."
deb=${1:-}
[ -n "$deb" ] || {
	make --no-print-directory deb
	deb=$(find target/debian -name 'pixel_*.deb' | sort | tail -n 1)
}
lintian --allow-root --fail-on error,warning "$deb"
folder=$(mktemp -d)
trap 'rm -rf --one-file-system "$folder"' EXIT
machine=$folder/machine

debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,adduser,curl,logrotate bookworm "$machine" >"$folder/debootstrap.log" ||
	{ tail "$folder/debootstrap.log" >&2 && exit 1; }

# The same package as a newer version of itself.
mkdir --parents "$machine/life/old" "$machine/life/new"
cp --recursive docs "$machine/life/docs"
cp "$deb" "$machine/life/old/"
dpkg-deb --raw-extract "$deb" "$folder/newer"
sed -i 's/^Version: .*/&+newer/' "$folder/newer/DEBIAN/control"
dpkg-deb --root-owner-group -Zgzip -z1 --build "$folder/newer" "$machine/life/new/$(basename "$deb")" >/dev/null

tests/package/install.sh "$machine/life/installed"
cp tests/package/life.sh "$machine/life/"
cat >"$machine/etc/systemd/system/life.service" <<'UNIT'
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/bash /life/life.sh
StandardOutput=file:/life/log
StandardError=inherit
TimeoutStartSec=600
ExecStopPost=/bin/systemctl --no-block poweroff
[Install]
WantedBy=default.target
UNIT
systemctl --root="$machine" --quiet enable life.service

timeout 700 systemd-nspawn --quiet --register=no --keep-unit --directory="$machine" --boot >"$folder/boot.log" 2>&1 || true
if [ ! -e "$machine/life/passed" ]; then
	tail -n 20 "$folder/boot.log" >&2
	cat "$machine/life/log" >&2
	echo "the package's life failed: see the last line above" >&2
	exit 1
fi
cat "$machine/life/scores" "$machine/life/passed"
