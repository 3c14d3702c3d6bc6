"""A process that records flagged decisions as fast as it can, and prints the id of each that was acknowledged."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from gateway.audit.trail import Audit
from gateway.ids import new_id
from gateway.settings import Settings
from gateway.versions.registry import load_pipeline
from tests.gateway.tiny import encode, patched_image


async def burst(bundle: Path, data: Path, url: str | None) -> None:
    image = encode(patched_image())
    decision = load_pipeline(bundle, Settings(threads=1)).decide(image)
    audit = Audit(Settings(data_dir=data, audit_url=url))
    audit.start()

    async def client() -> None:
        while True:
            request = new_id()
            if await audit.record(decision, None, request, image):
                print(request, flush=True)  # noqa: T201

    await asyncio.gather(*(client() for _ in range(8)))


if __name__ == "__main__":
    asyncio.run(burst(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None))
