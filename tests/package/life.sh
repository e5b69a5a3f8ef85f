#!/usr/bin/env bash
# What happens in the machine of run.sh: every line of it must succeed. Much of it are the commands of documents, as they
# stand there.
set -euxo pipefail

visit() {
	curl --silent --max-time 5 --output /dev/null --write-out '%{http_code}\n' http://127.0.0.1:8080/track || true
}
until_active() {
	for _ in $(seq 100); do
		[ "$(systemctl show --property=ActiveState --value "$1")" != active ] || return 0
		sleep 0.1
	done
	systemctl status "$1"
	return 1
}
# Runs the commands of a document: its first block, or another one.
follow() {
	awk -v block="$2" '/^ *```sh$/ { on = ++blocks == block; next } /^ *```$/ { on = 0 } on' "/life/docs/$1.md" >/life/commands
	[ -s /life/commands ]
	bash -eux /life/commands
}
main_pid() { systemctl show --property=MainPID --value pixel; }

export DEBIAN_FRONTEND=noninteractive
cd /life/old
follow ONLINE 1
until_active pixel
[ "$(visit)" = 200 ]
[ "$(stat --format %U /var/lib/pixel/spool)" = pixel ]
[ "$(systemctl is-enabled pixel-http pixel-storage | sort -u)" = disabled ]

awk '/^ *```toml$/ { on = 1; next } /^ *```$/ { on = 0 } on' /life/docs/ONLINE.md >>/etc/pixel/pixel.toml
follow ONLINE 2
until_active pixel
[ "$(visit)" = 200 ]
sleep 1
follow ONLINE 3 | grep -F '"GET /track HTTP/1.1" 200 43'
follow ONLINE 4 | tail -n 1 | grep -x proved

# Whoever kills it finds it started again.
killed=$(main_pid)
kill -9 "$killed"
sleep 2
until_active pixel
[ "$(main_pid)" != "$killed" ]
[ "$(visit)" = 200 ]

# Upgraded under visits, it is another process, and has each visit that it answered.
(
	set +x
	while [ ! -e /life/stop ]; do visit >>/life/codes; done
) &
sleep 1
before=$(main_pid)
cd /life/new
follow UPGRADING 1
until_active pixel
[ "$(main_pid)" != "$before" ]
sleep 1
touch /life/stop
wait
[ "$(tail -n 1 /life/codes)" = 200 ]
answered=$(($(grep -c '^200$' /life/codes) + 3))

# And back to the version before.
cd /life/old
follow UPGRADING 2
until_active pixel
[ "$(visit)" = 200 ]
answered=$((answered + 1))

# Rotated, lock and ledger stay where they are.
logrotate --force /etc/logrotate.d/pixel
sleep 1
[ "$(visit)" = 200 ]
systemctl stop pixel
[ "$(systemctl show --property=Result --value pixel)" = success ]
[ "$(cat /var/log/pixel/visits* | wc -l)" -ge $((answered + 1)) ]
pixel audit --config /etc/pixel/pixel.toml --spool-dir /var/lib/pixel/spool
[ -e /var/lib/pixel/visits.log.ledger ]
[ -z "$(find /var/log/pixel -name '*.lock' -o -name '*.ledger*')" ]

# pixel-http and pixel-storage start, with the broker's URL as a credential.
systemctl start pixel-http
until_active pixel-http
[ "$(visit)" = 200 ]
systemctl start pixel-storage
until_active pixel-storage
curl --silent --show-error --fail --output /dev/null http://127.0.0.1:8082/healthz
systemctl stop pixel-http pixel-storage

systemd-analyze verify --man=no /lib/systemd/system/pixel*.service 2>&1 | tee /life/verify
[ ! -s /life/verify ]
for service in pixel pixel-http pixel-storage; do
	systemd-analyze security --threshold=15 "$service" | tail -n 1 | tee --append /life/scores
done

systemctl start pixel
until_active pixel
follow BACKUP 1
until_active pixel
[ "$(visit)" = 200 ]

dpkg --purge pixel
[ -z "$(find /proc -mindepth 1 -maxdepth 1 -user pixel)" ]
[ ! -e /etc/pixel ] && [ ! -e /lib/systemd/system/pixel.service ]
# Nobody's visits go with the package.
[ -e /var/log/pixel/visits.log.1 ]

# On a new machine, what was kept is there again, but for what came later.
rm -r /var/log/pixel /var/lib/pixel
follow ONLINE 1
until_active pixel
follow BACKUP 2 | tail -n 1 | grep -x proved
until_active pixel
[ "$(visit)" = 200 ]
sleep 1
[ "$(cat /var/log/pixel/visits* | wc -l)" -ge $((answered + 2)) ]
dpkg --purge pixel

# What `make install` makes runs beside what the package has left, and its visits go on.
cp --recursive --preserve=mode --no-target-directory /life/installed /
systemd-sysusers
systemctl daemon-reload
hash -r
systemctl enable --now pixel
until_active pixel
[ "$(visit)" = 200 ]
systemctl stop pixel
pixel audit --config /etc/pixel/pixel.toml

echo "installed, killed, upgraded under $answered answered visits, gone back, rotated, purged, restored: every visit is written" >/life/passed
