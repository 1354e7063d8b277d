# `make` lists what there is. Everything runs on Debian as root; what is missing is installed from Debian's packages.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The image that is made, pushed and deployed
IMG ?= drover:latest
# Where docker-build puts it, as an OCI layout
IMAGE_TAR ?= $(CARGO_TARGET_DIR)/drover.oci.tar
# Beside the lab's own builds, so that a fresh clone on the same machine is warm
export CARGO_TARGET_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/drover/target
# The cluster of the current kubeconfig; the lab's own: make deploy KUBECTL='e2e/lab kubectl' HELM="e2e/lab helm"
KUBECTL ?= kubectl
HELM ?= $(shell command -v helm || e2e/lab cached helm 2>/dev/null || echo helm)
NAMESPACE ?= drover-system
# Only those end-to-end tests whose name contains it
TEST ?=
# More arguments for helm: HELM_ARGS='--set agent.kubelet.auth=clientCert'
HELM_ARGS ?=

image_repository = $(shell echo '$(IMG)' | sed -E 's|:[^:/]*$$||')
image_tag = $(shell echo '$(IMG)' | sed -nE 's|.*:([^:/]*)$$|\1|p')
SET_IMAGE = --set image.repository=$(image_repository) --set-string image.tag=$(or $(image_tag),latest)
export HELM TEST

##@ General

.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^##@ / {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: prepare ## Move a counter and a Redis between two real nodes on this machine, and prove it
	e2e/lab up
	e2e/lab install
	e2e/demo

.PHONY: prepare
prepare: ## Install the Debian packages that are missing
	@.build/prepare

##@ Development

.PHONY: build
build: prepare ## Build drover, drover-gate and drover-runc, optimised
	.build/binaries

.PHONY: generate
generate: prepare ## Write the CRDs and manifests/install.yaml from the types and the chart
	DROVER_GENERATE=1 cargo test --quiet --test manifests -- --test-threads=1 the_charts_crds_are_the_types the_installer_is_the_chart the_sample_for_kube_scheduler_is_the_charts

.PHONY: manifests
manifests: generate ## The same as generate

.PHONY: fmt
fmt: ## Format the code
	cargo fmt

.PHONY: vet
vet: lint ## The same as lint

.PHONY: lint
lint: prepare ## Format, clippy, the chart
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	$(HELM) lint --strict --kube-version 1.37 charts/drover

##@ Tests

.PHONY: test
test: ## Unit, integration and end-to-end tests; CI runs this (TEST=name: only those end-to-end tests)
	.build/test

.PHONY: test-all
test-all: export ALL = 1
test-all: lint test ## Everything that can be checked, also the end-to-end tests that wait for minutes

.PHONY: test-unit
test-unit: prepare ## Tests that need no cluster
	cargo test --locked

.PHONY: model
model: prepare ## Check the protocol as deep as MODEL_MINUTES allow (60)
	MODEL_MINUTES=$(or $(MODEL_MINUTES),60) .build/model

# How long `make simulate` runs
SIMULATE_SECONDS ?= 600

.PHONY: simulate
simulate: prepare ## Manager, agents and gate in a simulated cluster, SIMULATE_SECONDS of random fault schedules (docs/simulation.md)
	DROVER_SIM_SECONDS=$(SIMULATE_SECONDS) DROVER_SIM_SEEDS=100000000 cargo test --locked --profile simulation --test simulation -- --nocapture nothing_breaks

# How large the cluster of `make scale` is
NODES ?= 100
PODS ?= 2000

.PHONY: scale
scale: prepare ## Empty half of a cluster of fake nodes at a real API server, and print what it cost (NODES, PODS; e2e/README.md)
	e2e/lab build && e2e/lab cached kwok >/dev/null
	DROVER_SCALE_NODES=$(NODES) DROVER_SCALE_PODS=$(PODS) cargo test --locked --features e2e --test scale -- --nocapture slow::

.PHONY: bench
bench: prepare ## What drover-runc adds to each call of runc that is none of its own, and what it costs to send memory
	RUSTFLAGS='-C target-feature=+crt-static' cargo bench --locked --no-default-features --bench runc --target "$$(rustc -vV | sed -n 's/^host: //p')"
	cargo bench --locked --bench memory

.PHONY: test-e2e
test-e2e: ## End-to-end tests on the lab (TEST=name, ALL=1)
	ONLY=e2e .build/test

.PHONY: lab-up
lab-up: prepare ## Start the lab, a Kubernetes of two nodes on this machine (e2e/lab help)
	e2e/lab up

.PHONY: lab-down
lab-down: ## End the lab; what it has built stays
	e2e/lab down

##@ Image

.PHONY: docker-build
docker-build: prepare ## Make the image IMG as an OCI layout in IMAGE_TAR; also into Docker, where an engine runs
	mapfile -t programs < <(.build/binaries); test $${#programs[@]} = 3; IMG='$(IMG)' .build/image drover '$(IMAGE_TAR)' "$${programs[@]}"
	@echo '$(IMG) is in $(IMAGE_TAR)'
	@if docker info >/dev/null 2>&1; then docker load --input '$(IMAGE_TAR)'; fi

.PHONY: docker-push
docker-push: ## Push the image IMG by Docker or skopeo
	@if docker info >/dev/null 2>&1; then docker push '$(IMG)'; \
	elif command -v skopeo >/dev/null; then skopeo copy 'oci-archive:$(IMAGE_TAR)' 'docker://$(IMG)'; \
	else echo "there is no Docker engine and no skopeo; push $(IMAGE_TAR) by: apt-get install skopeo && make docker-push IMG=$(IMG)" >&2; exit 1; fi

##@ Deployment (to the cluster of the current kubeconfig)

.PHONY: install
install: ## Install the CRDs
	$(KUBECTL) apply --server-side --force-conflicts -f charts/drover/files/crds.yaml

.PHONY: uninstall
uninstall: ## Delete the CRDs, and with them every Migration
	$(KUBECTL) delete --ignore-not-found -f charts/drover/files/crds.yaml

.PHONY: deploy
deploy: ## Install Drover with the image IMG
	$(HELM) upgrade --install drover charts/drover --namespace $(NAMESPACE) --create-namespace --take-ownership $(SET_IMAGE) $(HELM_ARGS)

.PHONY: undeploy
undeploy: ## Remove Drover, unless something still needs it; the CRDs stay
	@! $(KUBECTL) -n $(NAMESPACE) get deployment drover-manager >/dev/null 2>&1 || $(KUBECTL) -n $(NAMESPACE) exec deployment/drover-manager -- drover needed
	$(HELM) uninstall drover --namespace $(NAMESPACE) --ignore-not-found --wait

.PHONY: build-installer
build-installer: generate ## Render manifests/install.yaml; with IMG, one for that image in target/dist
	@if [ '$(IMG)' != drover:latest ]; then mkdir -p target/dist; \
	$(HELM) template drover charts/drover --namespace $(NAMESPACE) --kube-version 1.37 --set namespace.create=true $(SET_IMAGE) $(HELM_ARGS) >target/dist/install.yaml; \
	echo 'the installer for $(IMG) is target/dist/install.yaml'; fi
