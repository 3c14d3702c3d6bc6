#!/usr/bin/env bash
# What can be checked of deploy/ without running it. `make check-deploy` puts kubernetes-validate, podman-compose and a Python
# with PyYAML on PATH; promtool and amtool are Debian's: apt-get install --no-install-recommends prometheus prometheus-alertmanager
set -euo pipefail
cd "$(dirname "$0")"

say() { printf '\n== %s\n' "$*"; }
for command in promtool amtool; do
    command -v "$command" > /dev/null || { echo "check-deploy: $command is missing (Debian: prometheus, prometheus-alertmanager)"; exit 1; }
done
rendered=$(mktemp -d)
trap 'rm -rf "$rendered"' EXIT

say "Prometheus"
# The token's file is a secret of the place of use.
promtool check config --syntax-only prometheus/prometheus.yml
promtool check rules prometheus/rules/*.yml
promtool test rules prometheus/tests/*.yml

say "Alertmanager"
amtool check-config alertmanager/alertmanager.yml

say "compose"
if docker compose version > /dev/null 2>&1; then
    docker compose --file compose.yaml config --quiet && echo "docker compose: valid"
elif command -v podman > /dev/null; then
    podman-compose --file compose.yaml config > /dev/null && echo "podman-compose: valid"
else
    echo "check-deploy: neither docker compose nor podman is there"
    exit 1
fi

say "Kubernetes"
validate() {  # custom resources have no schema in it, which it warns of
    if ! kubernetes-validate --strict "$@" > "$rendered/log" 2>&1; then cat "$rendered/log"; exit 1; fi
    grep -c passed "$rendered/log" | sed "s|\$| objects of $(basename "$1" .yaml) are valid|"
}
for folder in base overlays/gpu overlays/kserve; do
    file=$rendered/$(basename "$folder").yaml
    if command -v kustomize > /dev/null; then
        kustomize build "kubernetes/$folder" > "$file"
    else
        python kubernetes/render.py "kubernetes/$folder" > "$file"
    fi
    validate "$file"
done
validate kubernetes/secret.example.yaml
for file in helm/rendered/*.yaml; do
    validate "$file"
done
say "Helm"
python helm/render.py > /dev/null && echo "the chart is valid, for its default values and those of helm/cases"
say "check-deploy passed"
