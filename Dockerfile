# Pixel's images: one target for each program, `pixel` the default.
#
#   docker build -t pixel .
#   docker build -t pixel-http --target pixel-http .
#
# No BuildKit syntax, so that the classic builder and docker-compose 1.29 build it too.

FROM rust:1.95-slim-bookworm AS build
# Without a version: Debian's stable keeps one, and removes the ones before it.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends make \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /pixel

# The dependencies are a layer of their own, built for empty targets: one file for each `path` in
# Cargo.toml and each bench it names. It is built again only when Cargo.toml or Cargo.lock change.
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
RUN sed -n -e 's/^path = "\(.*\.rs\)"$/\1/p' \
        -e '/^\[\[bench\]\]$/,/^$/s/^name = "\(.*\)"$/benches\/\1.rs/p' Cargo.toml > targets \
 && while read -r file; do \
      mkdir -p "$(dirname "$file")" && printf '//! Empty.\nfn main() {}\n' > "$file" || exit 1; \
    done < targets \
 && cargo build --release --locked --bins \
 && cargo clean --release --locked --package pixel

COPY src src
COPY bin bin
RUN cargo build --release --locked --bins

FROM debian:bookworm-slim AS runtime
# The authorities that `amqps://` believes, and the user that every program runs as. Its folders are the ones that
# volumes are mounted on: a new named volume takes over owner and mode.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 pixel \
 && useradd --uid 10001 --gid pixel --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin pixel \
 && install -d -o pixel -g pixel -m 0750 /spool /visits
USER 10001:10001
STOPSIGNAL SIGTERM

FROM runtime AS pixel-http
COPY --from=build /pixel/target/release/pixel-http /usr/local/bin/
ENV PIXEL_LISTEN=0.0.0.0:8080 PIXEL_ADMIN_LISTEN=0.0.0.0:8081 PIXEL_SPOOL_DIR=/spool
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=5s --start-period=10s CMD ["pixel-http", "healthcheck"]
ENTRYPOINT ["pixel-http"]

FROM runtime AS pixel-storage
COPY --from=build /pixel/target/release/pixel-storage /usr/local/bin/
ENV PIXEL_ADMIN_LISTEN=0.0.0.0:8082 PIXEL_OUTPUT=/visits/visits.log
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s CMD ["pixel-storage", "healthcheck"]
ENTRYPOINT ["pixel-storage"]

# With GoAccess, which makes the report, and listens to browsers that have it open.
FROM runtime AS pixel-report
USER 0:0
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends goaccess \
 && rm -rf /var/lib/apt/lists/* \
 && install -d -m 1777 /report
USER 10001:10001
COPY --from=build /pixel/target/release/pixel /usr/local/bin/
ENV PIXEL_OUTPUT=/visits/visits.log
EXPOSE 7890
ENTRYPOINT ["pixel", "report", "--live", "0.0.0.0:7890", "--report", "/report/index.html"]

FROM runtime AS pixel
COPY --from=build /pixel/target/release/pixel /usr/local/bin/
ENV PIXEL_LISTEN=0.0.0.0:8080 PIXEL_ADMIN_LISTEN=0.0.0.0:8081 PIXEL_SPOOL_DIR=/spool \
    PIXEL_OUTPUT=/visits/visits.log
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=5s --start-period=10s CMD ["pixel", "healthcheck"]
ENTRYPOINT ["pixel"]
