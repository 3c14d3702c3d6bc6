"""Security headers of the console's page and assets, and of a bundle's report."""

from __future__ import annotations

_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    # data: are pictures that came inside an answer of the gateway.
    "img-src": "'self' data: blob:",
    "connect-src": "'self'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "base-uri": "'none'",
    # The browser itself refuses to turn any string into markup or script.
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}

# A report is a page that came with a bundle, perhaps a stranger's. It runs no script, sends nothing and embeds nothing.
# `sandbox` without allowances gives it an origin of its own: it reads neither cookies nor the gateway's answers.
_REPORT_POLICY = {
    "sandbox": "",
    "default-src": "'none'",
    # A report is one file: its styles are inline and its pictures are data.
    "style-src": "'unsafe-inline'",
    "img-src": "data:",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "base-uri": "'none'",
}


def _joined(policy: dict[str, str]) -> str:
    return "; ".join(f"{directive} {sources}".strip() for directive, sources in policy.items())


SECURITY = {
    "Content-Security-Policy": _joined(_POLICY),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

REPORT_SECURITY = {**SECURITY, "Content-Security-Policy": _joined(_REPORT_POLICY)}
