#!/usr/bin/env bash
# `make install` and `make uninstall`, into a folder: what is there afterwards, and what an administrator changed is kept.
#
#   tests/package/install.sh FOLDER     leaves an installation with PREFIX=/usr/local in FOLDER
set -eu

cd "$(dirname "$0")/../.."
folder=$(mkdir -p "$1" && cd "$1" && pwd)
run() { make --no-print-directory "$1" DESTDIR="$folder" PREFIX=/usr/local >"$folder.log" 2>&1 || { cat "$folder.log" >&2 && exit 1; }; }
fail() { echo "make install: $1" >&2 && exit 1; }

run install
for program in pixel pixel-http pixel-storage; do
	"$folder/usr/local/bin/$program" --version
	for file in lib/systemd/system/$program.service share/man/man1/$program.1 share/bash-completion/completions/$program \
		share/zsh/site-functions/_$program share/fish/vendor_completions.d/$program.fish; do
		[ -s "$folder/usr/local/$file" ] || fail "no $file"
	done
	grep -q "^ExecStart=/usr/local/bin/$program$" "$folder/usr/local/lib/systemd/system/$program.service" || fail "$program.service"
	# Each program takes the settings that come with it.
	"$folder/usr/local/bin/$program" check --config "$folder/etc/pixel/$program.toml" >/dev/null
done
[ "$(stat --format %a "$folder/etc/pixel/amqp-url")" = 600 ] || fail "anybody can read the broker's password"

echo 'listen = "127.0.0.1:9999"' >"$folder/etc/pixel/pixel.toml"
run install
grep -q 9999 "$folder/etc/pixel/pixel.toml" || fail "a second one has overwritten the settings"

run uninstall
left=$(cd "$folder" && find . -type f | sort | paste --serial --delimiters ' ')
expected='./etc/default/pixel ./etc/logrotate.d/pixel ./etc/pixel/amqp-url ./etc/pixel/pixel-http.toml ./etc/pixel/pixel-storage.toml ./etc/pixel/pixel.toml'
[ "$left" = "$expected" ] || fail "make uninstall leaves $left"

rm "$folder/etc/pixel/pixel.toml"
run install
rm "$folder.log"
echo "make install, again over changed settings, uninstall, install: as it should be"
