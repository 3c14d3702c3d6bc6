#!/usr/bin/env bash
# Builds the console's chart library from npm's packages: the parts of Chart.js that the console uses, in one module.
# The result is committed, so that nothing is fetched when the console is built, installed or opened.
# Run it from the repository's root after a version below was changed. Needs npm.
set -euo pipefail

chart=4.6.1 bars=4.4.5 color=0.3.4 esbuild=0.28.2
out="$PWD/gateway/console/static/vendor/chartjs-$chart"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cd "$work"
npm init -y > /dev/null
npm install --silent --save-exact "chart.js@$chart" "chartjs-chart-error-bars@$bars" "@kurkle/color@$color" "esbuild@$esbuild"
cat > entry.js << 'JS'
export { BarElement, CategoryScale, Chart, Legend, LineController, LineElement, LinearScale, PointElement, Tooltip } from "chart.js";
export { BarWithErrorBar, BarWithErrorBarsController } from "chartjs-chart-error-bars";
JS
mkdir -p "$out"
names="Chart.js $chart, chartjs-chart-error-bars $bars, @kurkle/color $color"
npx esbuild entry.js --bundle --minify --format=esm --target=es2022 --legal-comments=none \
    --banner:js="/* $names; MIT, see LICENSE.txt. Built by deploy/vendor-charts.sh; do not edit. */" --outfile="$out/chart.js"
for package in chart.js chartjs-chart-error-bars @kurkle/color; do
    printf '%s\n\n' "$package"
    cat node_modules/"$package"/LICENSE*
    printf '\n'
done > "$out/LICENSE.txt"
