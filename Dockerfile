# Both base images can be replaced by local ones: --build-arg BUILD_BASE=.. --build-arg RUNTIME_BASE=..
ARG BUILD_BASE=docker.io/library/rust:1.95-bookworm
ARG RUNTIME_BASE=gcr.io/distroless/cc-debian12:nonroot

FROM ${BUILD_BASE} AS build
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY benches benches
RUN cargo build --release --locked --bin smcached && mkdir /run/smcached

FROM ${RUNTIME_BASE}
# Whoever runs it need not read it, and what may not be read the kernel lets nobody trace, from the first moment on.
COPY --from=build --chmod=0711 /build/target/release/smcached /usr/local/bin/smcached
# The default socket and token file live here; mount a volume over it to share them.
COPY --from=build --chown=65532:65532 /run/smcached /run/smcached
USER 65532:65532
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s CMD ["/usr/local/bin/smcached", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/smcached"]
CMD ["serve"]
