# Both images of one Debian: the binary links its C library. Another registry's copies go here.
ARG BUILD_IMAGE=docker.io/library/rust:1.95-slim-trixie
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian13

FROM ${BUILD_IMAGE} AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends build-essential \
 && rm -rf /var/lib/apt/lists/*
# Cargo features, separated by spaces. `full` is all but tls12 (TLS 1.2 at the event port).
ARG FEATURES=full
# Told by --version.
ARG COMMIT=unknown
WORKDIR /build
# .cargo/config.toml sets how SQLite is built.
COPY .cargo/config.toml .cargo/config.toml
COPY Cargo.toml Cargo.lock ./
COPY config config
COPY src src
# The manifest names these; a release needs no more of them.
COPY tests/it/main.rs tests/it/main.rs
COPY benches* benches/
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    ASAPP_RECEIVER_COMMIT="${COMMIT}" \
    cargo build --profile dist --locked --bin asapp-receiver --features "${FEATURES}" \
 && install -D -m 0755 target/dist/asapp-receiver /out/usr/local/bin/asapp-receiver \
 && install -d /symbols \
 && objcopy --only-keep-debug --compress-debug-sections=zlib /out/usr/local/bin/asapp-receiver /symbols/asapp-receiver.debug \
 && objcopy --strip-all --add-gnu-debuglink=/symbols/asapp-receiver.debug /out/usr/local/bin/asapp-receiver \
 && install -D -m 0644 config/production.toml /out/etc/asapp-receiver/production.toml \
 && install -d -m 0700 -o 10001 -g 10001 /out/var/lib/asapp-receiver

# `docker build --target symbols --output type=local,dest=FOLDER .`: where the lines of the source are in the binary. A
# debugger and addr2line find the file beside it.
FROM scratch AS symbols
COPY --from=build /symbols/ /

# The runtime: the C library and the binary. No shell, no package manager.
FROM ${RUNTIME_IMAGE}
COPY --from=build /out/usr/ /usr/
COPY --from=build /out/etc/ /etc/
# The parent, so that the folder comes with its mode.
COPY --from=build --chown=10001:10001 /out/var/lib/ /var/lib/
USER 10001:10001
WORKDIR /var/lib/asapp-receiver
# The journal. Nothing else is written: run it with --read-only.
VOLUME /var/lib/asapp-receiver
# Events (HTTPS), and the operators' port.
EXPOSE 8443 8081
# It drains and ends with 0 within listen.drain_timeout.
STOPSIGNAL SIGTERM
# It asks where the same settings, and the container's environment, say that the admin port is.
HEALTHCHECK --interval=10s --timeout=6s --start-period=60s --retries=3 \
  CMD ["/usr/local/bin/asapp-receiver", "--config", "/etc/asapp-receiver/production.toml", "status", "--ready"]
ENTRYPOINT ["/usr/local/bin/asapp-receiver"]
CMD ["--config", "/etc/asapp-receiver/production.toml", "serve"]
