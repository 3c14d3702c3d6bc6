"""Palisade's online half: decode, defend, explain and flag images behind an endpoint. Never imports torch."""

import os

__version__ = "0.1.0"

# Nothing is sent anywhere. Both packages decide when they are imported, so this stands before any import of them, in
# every process; whatever the variables were before, as BentoML takes no other word than this one for a no.
NO_TELEMETRY = {"ORT_DISABLE_TELEMETRY": "1", "BENTOML_DO_NOT_TRACK": "True"}
os.environ.update(NO_TELEMETRY)
