#!/bin/sh
# Makes deploy/secrets/ for compose.yaml, once: random passwords, and a first key of each role, which are printed.
set -eu
cd "$(dirname "$0")"
: "${PALISADE:=../.venv-serve/bin/palisade}"
[ ! -e secrets ] || { echo "deploy/secrets exists: remove it to begin anew" >&2; exit 1; }
# The folder is closed; the files are open to the users that the containers run as.
umask 077
mkdir secrets
umask 022
mkdir secrets/keys
random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
password=$(random)
printf %s "$password" > secrets/postgres_password
printf 'postgresql://palisade:%s@postgres/palisade' "$password" > secrets/audit_url
random > secrets/metrics_token
random > secrets/grafana_password
for role in client reviewer admin; do
    key=$("$PALISADE" keys create --id "first-$role" --role "$role" --file "$PWD/secrets/keys/keys.json")
    printf '%s key: %s\n' "$role" "$key"
done
chmod 644 secrets/keys/keys.json
printf 'Grafana, user admin: %s\n' "$(cat secrets/grafana_password)"
