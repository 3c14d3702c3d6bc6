"""The routes of the audit trail alone, in a real server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request

from gateway.access.auth import Auth, Caller
from gateway.audit.trail import Audit
from gateway.http.routes.events import router
from gateway.settings import Settings
from gateway.versions.shared_state import Store

if __name__ == "__main__":
    app, settings = FastAPI(), Settings(data_dir=Path(sys.argv[1]))
    app.state.auth = Auth(settings, Store(settings.state_dir))
    app.state.audit = Audit(settings)
    app.state.audit.start()

    @app.middleware("http")
    async def caller(request: Request, call_next: Any) -> Any:
        request.state.caller = Caller(key_id=None, role="reviewer", disclosure="full")
        return await call_next(request)

    app.include_router(router)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
