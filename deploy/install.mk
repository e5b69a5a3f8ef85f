# Pixel on a machine: into DESTDIR and PREFIX, or as a Debian package.

PREFIX ?= /usr/local
PROGRAMS := pixel pixel-http pixel-storage
# Where everything goes that is not the administrator's.
INSTALL := $(DESTDIR)$(PREFIX)
# The units read their settings from here, whatever the prefix.
INSTALL_ETC := $(DESTDIR)/etc

build: ## Build the three programs, with man pages and completions in target/pages
	cargo build --release --locked --bins --features pages
	rm -rf target/pages
	target/release/pages target/pages

# Root may have no cargo: then it installs what `make build` has left.
install: $(if $(shell command -v cargo),build) ## Install programs, units, man pages and completions (DESTDIR, PREFIX); builds them where it can
	@test -e target/pages/man/pixel.1 || { echo 'nothing is built yet, and cargo is not in the PATH: first `make build`' >&2; exit 1; }
	install -d $(addprefix "$(INSTALL)"/,bin share/man/man1 share/doc/pixel lib/systemd/system lib/sysusers.d \
	  share/bash-completion/completions share/zsh/site-functions share/fish/vendor_completions.d)
	install -d "$(INSTALL_ETC)/pixel" "$(INSTALL_ETC)/default" "$(INSTALL_ETC)/logrotate.d"
	install $(addprefix target/release/,$(PROGRAMS)) "$(INSTALL)/bin/"
	install -m 0644 target/pages/man/*.1 "$(INSTALL)/share/man/man1/"
	install -m 0644 deploy/systemd/sysusers.conf "$(INSTALL)/lib/sysusers.d/pixel.conf"
	for program in $(PROGRAMS); do \
	  install -m 0644 "target/pages/completions/$$program.bash" "$(INSTALL)/share/bash-completion/completions/$$program" \
	    && install -m 0644 "target/pages/completions/_$$program" "$(INSTALL)/share/zsh/site-functions/" \
	    && install -m 0644 "target/pages/completions/$$program.fish" "$(INSTALL)/share/fish/vendor_completions.d/" \
	    && sed 's|/usr/bin/|$(PREFIX)/bin/|' "deploy/systemd/$$program.service" \
	      > "$(INSTALL)/lib/systemd/system/$$program.service" \
	    && { test -e "$(INSTALL_ETC)/pixel/$$program.toml" \
	      || install -m 0644 "deploy/systemd/$$program.toml" "$(INSTALL_ETC)/pixel/"; } || exit 1; \
	done
	install -m 0644 LICENSE-MIT LICENSE-APACHE "$(INSTALL)/share/doc/pixel/"
	test -e "$(INSTALL_ETC)/pixel/amqp-url" || install -m 0600 deploy/systemd/amqp-url "$(INSTALL_ETC)/pixel/"
	test -e "$(INSTALL_ETC)/default/pixel" || install -m 0644 deploy/systemd/pixel.default "$(INSTALL_ETC)/default/pixel"
	test -e "$(INSTALL_ETC)/logrotate.d/pixel" \
	  || install -m 0644 deploy/systemd/pixel.logrotate "$(INSTALL_ETC)/logrotate.d/pixel"
	@test -n '$(DESTDIR)' || echo 'start it: systemd-sysusers && systemctl daemon-reload && systemctl enable --now pixel'

uninstall: ## Remove what `make install` has put under PREFIX; settings in /etc and visits stay
	rm -f $(foreach program,$(PROGRAMS),$(addprefix "$(INSTALL)"/,bin/$(program) lib/systemd/system/$(program).service \
	  share/bash-completion/completions/$(program) share/zsh/site-functions/_$(program) \
	  share/fish/vendor_completions.d/$(program).fish share/man/man1/$(program).1))
	rm -f "$(INSTALL)/share/man/man1"/pixel-*.1 "$(INSTALL)/lib/sysusers.d/pixel.conf"
	rm -rf "$(INSTALL)/share/doc/pixel"

deb: build ## Build the Debian package, with cargo-deb (`cargo install cargo-deb`)
	cargo deb --locked --no-build

test-package: ## Install, upgrade and purge the package in a machine with systemd, as root; not part of the gate
	@tests/require-packages build package
	tests/package/run.sh

.PHONY: build install uninstall deb test-package
