#!/usr/bin/env bash
# What `make e2e` needs from Debian's packages: programs that the tests start themselves, on ports and in folders of their own.
# Whatever is there already, from wherever, is left as it is. No service is started, now or at boot.
set -euo pipefail

missing=()
need() { command -v "$1" > /dev/null || missing+=("$2"); }
need prometheus prometheus
need prometheus-alertmanager prometheus-alertmanager
need chromium chromium
need node nodejs
need npm npm
need docker-registry docker-registry
[ -x /usr/sbin/nginx ] || need nginx nginx-light
compgen -G '/usr/lib/postgresql/*/bin/initdb' > /dev/null || missing+=(postgresql)
[ ${#missing[@]} -gt 0 ] || exit 0

if ! command -v apt-get > /dev/null; then
    echo "e2e: needs ${missing[*]} (names of Debian's packages); without them its tests are skipped or fail"
    exit 0
fi
root=()
[ "$(id -u)" -eq 0 ] || root=(sudo)
echo "e2e: installing ${missing[*]}"

# Debian starts services as they are installed, unless this says no (invoke-rc.d(8)).
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap '"${root[@]}" rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | "${root[@]}" tee "$policy" > /dev/null
    "${root[@]}" chmod 755 "$policy"
fi
"${root[@]}" apt-get update -qq
"${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
if command -v systemctl > /dev/null; then
    for service in prometheus prometheus-alertmanager postgresql docker-registry nginx; do
        [[ " ${missing[*]} " != *" $service"* ]] || "${root[@]}" systemctl disable --quiet "$service" || true
    done
fi
