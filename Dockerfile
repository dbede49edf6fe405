# syntax=docker/dockerfile:1
# One static binary on an empty base. Build: docker build --tag dinle .
# For both architectures: docker buildx build --platform linux/amd64,linux/arm64 --tag dinle . This takes a builder that is amd64, on
# which a cross compiler builds for arm64; there is none the other way round.
FROM --platform=$BUILDPLATFORM debian:bookworm AS build
ARG TARGETARCH
WORKDIR /src
# First what changes rarely: the compilers and tools stay in the cache of layers.
COPY Cargo.toml rust-toolchain.toml ./
COPY e2e/setup e2e/setup
RUN e2e/setup dist "$TARGETARCH"
COPY . .
RUN e2e/dist "$TARGETARCH" /dist

FROM scratch
LABEL org.opencontainers.image.title="Dinle" \
      org.opencontainers.image.description="Listens to what happens in the pods of one Kubernetes node, with eBPF" \
      org.opencontainers.image.source="https://github.com/dinle/dinle" \
      org.opencontainers.image.licenses="Apache-2.0 AND (MIT OR GPL-2.0-only)"
COPY --from=build /dist /
ENTRYPOINT ["/dinle"]
