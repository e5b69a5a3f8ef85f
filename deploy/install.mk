# Pixel on a machine: into DESTDIR and PREFIX, or as a Debian package.

PREFIX ?= /usr/local
# The units read their settings from here, whatever the prefix.
INSTALL_ETC := $(DESTDIR)/etc

pages: ## Make man pages and completions in target/pages
	@tests/require-packages build
	rm -rf target/pages
	cargo run --quiet --release --locked --example pages -- target/pages

install: pages ## Build and install programs, units, man pages and completions (DESTDIR, PREFIX)
	cargo build --release --locked --bins
	install -d $(addprefix "$(DESTDIR)$(PREFIX)"/,bin share/man/man1 share/doc/pixel lib/systemd/system \
	  share/bash-completion/completions share/zsh/site-functions share/fish/vendor_completions.d)
	install -d "$(INSTALL_ETC)/pixel" "$(INSTALL_ETC)/default" "$(INSTALL_ETC)/logrotate.d"
	install $(addprefix target/release/,pixel pixel-http pixel-storage) "$(DESTDIR)$(PREFIX)/bin/"
	install -m 0644 target/pages/man/*.1 "$(DESTDIR)$(PREFIX)/share/man/man1/"
	for program in pixel pixel-http pixel-storage; do \
	  install -m 0644 "target/pages/completions/$$program.bash" \
	    "$(DESTDIR)$(PREFIX)/share/bash-completion/completions/$$program"; \
	  install -m 0644 "target/pages/completions/_$$program" "$(DESTDIR)$(PREFIX)/share/zsh/site-functions/"; \
	  install -m 0644 "target/pages/completions/$$program.fish" \
	    "$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/"; \
	  sed 's|/usr/bin/|$(PREFIX)/bin/|' "deploy/systemd/$$program.service" \
	    > "$(DESTDIR)$(PREFIX)/lib/systemd/system/$$program.service"; \
	  test -e "$(INSTALL_ETC)/pixel/$$program.toml" \
	    || install -m 0644 "deploy/systemd/$$program.toml" "$(INSTALL_ETC)/pixel/"; \
	done
	install -m 0644 LICENSE-MIT LICENSE-APACHE "$(DESTDIR)$(PREFIX)/share/doc/pixel/"
	test -e "$(INSTALL_ETC)/pixel/amqp-url" || install -m 0600 deploy/systemd/amqp-url "$(INSTALL_ETC)/pixel/"
	test -e "$(INSTALL_ETC)/default/pixel" || install -m 0644 deploy/systemd/pixel.default "$(INSTALL_ETC)/default/pixel"
	test -e "$(INSTALL_ETC)/logrotate.d/pixel" \
	  || install -m 0644 deploy/systemd/pixel.logrotate "$(INSTALL_ETC)/logrotate.d/pixel"

deb: pages ## Build the Debian package, with cargo-deb (`cargo install cargo-deb`)
	cargo deb --locked

test-package: ## Install, upgrade and purge the package in a machine with systemd, as root; not part of the gate
	@tests/require-packages build package
	tests/package/run.sh

.PHONY: pages install deb test-package
