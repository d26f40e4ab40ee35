# The front door: each target does one whole thing, from a fresh clone.
# BOOTSTRAP=no skips the look for missing packages; SWIFT_BUILD_FLAGS goes to `swift build`.
.DEFAULT_GOAL := help
.PHONY: demo run build deb test unit kernel test-kernels fuzz soak bench check format help clean
.NOTPARALLEL:

SHELL := /bin/bash
BOOTSTRAP ?= yes
SWIFT_BUILD_FLAGS ?=
# A pyenv or venv python3 on PATH lacks Debian's pytest.
PYTHON := /usr/bin/python3
export PYTHONDONTWRITEBYTECODE := 1

bootstrap = $(if $(filter-out no,$(BOOTSTRAP)),@scripts/bootstrap $(1))
# Asked for in each recipe, not once above, so that `make help` needs no toolchain.
swift = PATH="$$(scripts/find-swift):$$PATH" swift

help: ## Show this
	@echo "MeshAgent: what a service mesh sidecar gives, from the kernel, without a proxy."
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  demo, run, test and bench need root; DEMO_SECONDS=$${DEMO_SECONDS:-45} bounds the demo."

demo: build ## See it work: real services, a failure, a breaker, traces on the wire
	$(call bootstrap,demo)
	@$(PYTHON) -m demo

run: build ## Run the agent on this host with no configuration (watches all, breaks nothing)
	@scripts/run

build: ## Build .build/release/mesh-agent and .build/release/meshctl
	$(call bootstrap,build)
	@$(swift) build -c release --static-swift-stdlib $(SWIFT_BUILD_FLAGS)

deb: build ## Make a Debian package of it, in .build/deb
	$(call bootstrap,deb)
	@packaging/build-deb

test: ## Build, then run every test: unit, real kernel, real servers
	$(call bootstrap,test)
	@$(MAKE) --no-print-directory build unit kernel BOOTSTRAP=no

unit: ## Run the unit tests alone (no root)
	$(call bootstrap,build)
	@$(swift) test --quiet

kernel: build ## Run the tests on the real kernel alone (root)
	$(call bootstrap,test)
	@scripts/test-kernel

test-kernels: build ## Run the essential kernel tests on other kernels, in QEMU; KERNELS="6.1 6.12" for some
	$(call bootstrap,kernels)
	@$(PYTHON) -B Tests/kernels/run.py $(KERNELS)

# Optimised, or a million inputs of each kind would take hours.
fuzz: build ## Feed every parser and the kernel side a million hostile inputs; SEED, INPUTS (root)
	$(call bootstrap,test)
	@INPUTS=$${INPUTS:-1000000} scripts/fuzz

soak: build ## Everything at once for an hour: traffic, faults at random, exact counts; MINUTES, SEED (root)
	$(call bootstrap,soak)
	@PYTHONPATH=Tests $(PYTHON) -m soak --minutes $(or $(MINUTES),60) $(if $(SEED),--seed $(SEED))

bench: build ## Measure it beside Envoy, HAProxy and no mesh at all; SCENARIO=name for one (root)
	$(call bootstrap,bench)
	@PATH="$$(scripts/find-swift):$$PATH" $(PYTHON) -m bench $(SCENARIO)

check: ## Check format, lint and warnings, and change nothing
	$(call bootstrap,check)
	@scripts/check

format: ## Rewrite the sources in the style that `make check` checks
	$(call bootstrap,check)
	@scripts/check --fix

clean: ## Remove what was built
	rm -rf .build
