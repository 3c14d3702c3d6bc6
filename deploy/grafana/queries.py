"""Every query of the dashboards: `python deploy/grafana/queries.py [ADDRESS]`.

Without the address of a Prometheus it prints them; with one it runs them there, and fails if one gives nothing but
those of `palisade guard`'s upstream, which other gateways have not.
"""  # noqa: INP001

from __future__ import annotations

import json
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

# The values that Grafana gives its variables when nothing is selected.
VARIABLES = {"$__rate_interval": "1m", "$job": ".*", "$model": ".*"}

OF_GUARD = "palisade_upstream_"


def dashboard_queries(folder: Path = Path(__file__).parent / "dashboards") -> Iterator[tuple[str, str]]:
    """Title of the panel, and PromQL without variables, of each target of each dashboard."""
    for file in sorted(folder.glob("*.json")):
        for panel in json.loads(file.read_text("utf-8"))["panels"]:
            for target in panel.get("targets", []):
                query = target["expr"]
                for variable, value in VARIABLES.items():
                    query = query.replace(variable, value)
                yield panel["title"], query


def series(prometheus: str, query: str) -> int:
    """How many series `query` gives there; `HTTPError` if it is no PromQL."""
    address = f"{prometheus.rstrip('/')}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    with urllib.request.urlopen(address, timeout=10) as answer:  # noqa: S310  # an address that the operator gives
        return len(json.load(answer)["data"]["result"])


def main() -> None:
    empty = 0
    for title, query in dashboard_queries():
        found = series(sys.argv[1], query) if len(sys.argv) > 1 else None
        empty += found == 0 and OF_GUARD not in query
        sys.stdout.write(f"{title}: {query}{'' if found is None else f'  -> {found} series'}\n")
    sys.exit(f"{empty} queries give nothing" if empty else 0)


if __name__ == "__main__":
    main()
