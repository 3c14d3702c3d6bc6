# Targets for what deploy/ holds; included by the Makefile.
DEPLOY := .venv-deploy

.PHONY: container-test check-deploy cuda-requirements kubernetes-rules helm-rendered

container-test: $(SERVE)/.stamp  ## Build the bento and its image, run it read-only and not as root (root; podman, buildah).
	@BENTOML=$(SERVE)/bin/bentoml PALISADE=$(SERVE)/bin/palisade deploy/container-test.sh

check-deploy: $(DEPLOY)/.stamp  ## Check rules, alerts, dashboard, compose file and manifests (promtool, amtool).
	@PATH="$(CURDIR)/$(DEPLOY)/bin:$$PATH" deploy/check.sh

cuda-requirements:  ## Resolve deploy/requirements-cuda.txt anew, after `make constraints`.
	@$(PYTHON) deploy/cuda_requirements.py

kubernetes-rules: $(DEPLOY)/.stamp  ## Write the PrometheusRule and the chart's rules from deploy/prometheus/rules.
	@$(DEPLOY)/bin/python deploy/kubernetes/prometheus_rule.py

helm-rendered: $(DEPLOY)/.stamp  ## Lint the Helm chart and write deploy/helm/rendered, which tests read.
	@$(DEPLOY)/bin/python deploy/helm/render.py --write

$(DEPLOY)/.stamp: deploy/deploy.mk
	@$(call make_venv,$(DEPLOY))
	@$(DEPLOY)/bin/python -m pip install --quiet --progress-bar off 'kubernetes-validate>=1.34' podman-compose pyyaml 'helm-python-sdk>=0.2.2'
	@touch $@
