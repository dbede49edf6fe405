# syntax=docker/dockerfile:1
# One static binary on an empty base. Build: docker build --tag dinle .
FROM debian:bookworm AS build
WORKDIR /src
# First what changes rarely: the compilers and bpf-linker stay in the cache of layers.
COPY Cargo.toml rust-toolchain.toml ./
COPY e2e/setup e2e/setup
RUN e2e/setup build && rm -rf /var/lib/apt/lists/*
COPY . .
RUN make build PROFILE=release && install -D target/*/release/dinle /out/dinle

FROM scratch
LABEL org.opencontainers.image.title="Dinle" \
      org.opencontainers.image.description="Listens to what happens in the pods of one Kubernetes node, with eBPF" \
      org.opencontainers.image.source="https://github.com/dinle/dinle" \
      org.opencontainers.image.licenses="Apache-2.0 AND (MIT OR GPL-2.0-only)"
COPY --from=build /out/dinle /dinle
ENTRYPOINT ["/dinle"]
