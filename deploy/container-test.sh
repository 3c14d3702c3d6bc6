#!/usr/bin/env bash
# Build the bento and its image, run it as production would (not root, read-only root), and check what answers.
#
# Needs root on Debian with podman, buildah, runc and debootstrap. No registry is asked: a minimal Debian stands in for the
# base image that BentoML's Dockerfile names, with this machine's own apt, pip and certificate settings in it.
#   BENTOML, PALISADE   the commands of the serving environment
#   DEBIAN_MIRROR       for debootstrap; its default otherwise
#   IMAGE=name          check this image and build none
#   KEEP=1              leave container, images and working folder for a closer look
set -euo pipefail
cd "$(dirname "$0")/.."

: "${BENTOML:=.venv-serve/bin/bentoml}" "${PALISADE:=.venv-serve/bin/palisade}" "${PYTHON:=python3}"
for command in podman buildah runc debootstrap; do
    command -v "$command" > /dev/null || {
        echo "container-test: $command is missing: apt-get install --no-install-recommends podman buildah runc debootstrap"
        exit 1
    }
done

work=$(mktemp -d)
name=palisade-test-$$
# Health checks are run by hand below, not by systemd's timers.
export BENTOML_HOME=$work/bentoml BENTOML_DO_NOT_TRACK=True ORT_DISABLE_TELEMETRY=1 DISABLE_HC_SYSTEMD=true
images=()
clean_up() {
    [ "${KEEP:-0}" = 0 ] || { echo "kept: $work $name ${images[*]}"; return; }
    rm -rf "$work"
    podman rm --force --volumes --time 5 "$name" > /dev/null 2>&1 || true
    for built in "${images[@]}"; do podman rmi --force "$built" > /dev/null 2>&1 || true; done
}
trap clean_up EXIT

say() { printf '\n== %s\n' "$*"; }
fail() {
    echo "container-test: FAILED: $*"
    podman inspect --format 'container: {{.State.Status}}, exit status {{.State.ExitCode}}' "$name" 2> /dev/null || true
    podman logs --tail 40 "$name" 2>&1 || true
    exit 1
}
quietly() { "$@" > "$work/log" 2>&1 || { tail -20 "$work/log"; fail "$1 ${2-}"; }; }

size() { printf 'image size, %s: %d MB\n' "$1" $(($(podman image inspect --format '{{.Size}}' "$1") / 1000000)); }

build_image() {
    say "bento"
    mkdir -p "$BENTOML_HOME"
    quietly "$BENTOML" build
    bento=$(find "$BENTOML_HOME/bentos/palisade" -mindepth 1 -maxdepth 1 -type d)
    dockerfile=$bento/env/docker/Dockerfile
    base=$(sed -n 's/^FROM \([^ ]*\).*/\1/p' "$dockerfile" | head -1)
    du -sh "$bento" | cut -f1
    ls "$bento/src"

    say "a minimal Debian for $base"
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    root=$work/base
    quietly debootstrap --variant=minbase --include=ca-certificates,python3,python3-pip,python3-venv \
        "$release" "$root" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"}
    rm -f "$root"/usr/lib/python3*/EXTERNALLY-MANAGED
    ln -sf python3 "$root/usr/bin/python"
    rm -rf "$root/etc/apt"
    cp -a /etc/apt "$root/etc/apt"
    cp -a /usr/share/keyrings/. "$root/usr/share/keyrings/"
    cp -a /usr/local/share/ca-certificates/. "$root/usr/local/share/ca-certificates/"
    [ ! -f /etc/pip.conf ] || cp /etc/pip.conf "$root/etc/pip.conf"
    quietly chroot "$root" update-ca-certificates
    images+=("localhost/$base")
    # In one file and not through a pipe: the status of every step counts.
    tar -C "$root" -cf "$work/base.tar" .
    quietly podman import \
        --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
        --change 'ENV UV_SYSTEM_CERTS=1' --change 'ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt' \
        "$work/base.tar" "localhost/$base"
    rm -rf "$root" "$work/base.tar"

    say "images"
    bud() { quietly buildah bud --isolation chroot --network host --pull-never --format docker "$@"; }
    images=("localhost/$name:bento" "$image" "${images[@]}")
    bud --file "$dockerfile" --tag "localhost/$name:bento" "$bento"
    bud --file deploy/Containerfile --build-arg "BENTO_IMAGE=localhost/$name:bento" \
        --build-arg "BASE_IMAGE=localhost/$base" --tag "$image" deploy
    size "localhost/$name:bento"
}

image=${IMAGE:-localhost/$name:final}
[ -n "${IMAGE:-}" ] || build_image
size "$image"

say "run"
port=$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
confined=(
    --network host --read-only --tmpfs /tmp:rw,noexec,nosuid,nodev,size=256m
    --cap-drop all --security-opt no-new-privileges --ulimit nofile=1024:1024 --ulimit nproc=1024:1024
    --env "PALISADE_PORT=$port"
)
! podman --runtime runc run --rm "${confined[@]}" "$image" > "$work/log" 2>&1 || fail "it starts without keys"
grep --quiet PALISADE_KEYS_FILE "$work/log" || { cat "$work/log"; fail "without keys it should end for want of them"; }
echo "does not start without keys"
mkdir "$work/keys"
key=$("$PALISADE" keys create --id container-test --role client --disclosure full --file "$work/keys/keys.json" 2> "$work/log") \
    || fail "palisade keys create: $(cat "$work/log")"
chmod 0644 "$work/keys/keys.json"
quietly podman --runtime runc run --detach --name "$name" "${confined[@]}" \
    --volume "$work/keys:/run/palisade:ro" --env PALISADE_KEYS_FILE=/run/palisade/keys.json "$image"
url=http://127.0.0.1:$port
for _ in $(seq 120); do
    [ "$(podman inspect --format '{{.State.Running}}' "$name")" = true ] || fail "the container ended"
    ! curl --silent --fail --output /dev/null "$url/readyz" || break
    sleep 0.5
done
curl --silent --show-error --fail --output /dev/null "$url/readyz" || fail "/readyz"
echo "/readyz answers"

say "checks"
inside() { podman --runtime runc exec "$name" "$@"; }
predict() { curl --silent --data-binary "@models/gtsrb/samples/$1" --header 'Content-Type: image/png' "${@:2}" "$url/v1/predict"; }
for sample in clean_0.png patched_0.png; do
    predict "$sample" --header "Authorization: Bearer $key" > "$work/answer.json"
    "$PYTHON" - "$sample" "$work/answer.json" << 'PYTHON' || fail "the answer to $sample: $(cat "$work/answer.json")"
import json, sys
name, file = sys.argv[1:]
answer, expected = json.load(open(file)), json.load(open("models/gtsrb/samples/answers.json"))[name]
assert answer["prediction"]["label"] == expected["label"] and answer["verdict"]["flagged"] == expected["flagged"]
print(f"{name}: {answer['prediction']['label']}, flagged: {answer['verdict']['flagged']}")
PYTHON
done
status=$(predict clean_0.png --output /dev/null --write-out '%{http_code}')
[ "$status" = 401 ] || fail "without a key: $status"
echo "without a key: 401"
uid=$(inside id -u)
[ "$uid" != 0 ] || fail "runs as root"
echo "user id: $uid"
! inside touch /home/bentoml/written 2> /dev/null || fail "the root file system can be written"
! inside touch /app/written 2> /dev/null || fail "the environment can be written"
inside touch /var/lib/palisade/written || fail "the data folder cannot be written"
echo "root file system: read-only; data folder: writable"
! inside python -c 'import torch' 2> /dev/null || fail "torch is in the image"
! inside sh -c 'command -v gcc git uv' || fail "build tools are in the image"
echo "torch, compilers, git: absent"
[ "$(inside printenv BENTOML_DO_NOT_TRACK)" = True ] || fail "BENTOML_DO_NOT_TRACK"
[ "$(inside printenv ORT_DISABLE_TELEMETRY)" = 1 ] || fail "ORT_DISABLE_TELEMETRY"
podman --runtime runc healthcheck run "$name" > /dev/null || fail "the health check"
echo "health check passes"
podman --runtime runc stop --time 30 "$name" > /dev/null
status=$(podman inspect --format '{{.State.ExitCode}}' "$name")
[ "$status" = 0 ] || fail "exit status after SIGTERM: $status"
echo "stops on SIGTERM"
say "container-test passed"
