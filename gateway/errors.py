"""One error root: HTTP status, stable code, and the text a caller sees (problem+json, RFC 9457)."""

from __future__ import annotations


class PalisadeError(Exception):
    """Root of every error that a caller may see; subclasses fix `status` and `code`."""

    status = 500
    code = "internal_error"
    title = "Internal error"

    def __init__(self, detail: str, *, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers = headers or {}

    def problem(self, instance: str | None = None) -> dict[str, object]:
        """The RFC 9457 object of this error."""
        body: dict[str, object] = {
            "type": f"urn:palisade:error:{self.code}",
            "title": self.title,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }
        if instance is not None:
            body["instance"] = instance
        return body


NOT_READY = "not every worker has loaded its models, or an upstream does not answer"


class BundleError(PalisadeError):
    """A bundle that must not be served: the detail names the file and what is wrong with it."""

    status = 422
    code = "invalid_bundle"
    title = "Bundle refused"


class UntrustedBundle(BundleError):
    """A bundle without a signature by a trusted key, or one that differs from what was signed."""

    code, title = "untrusted_bundle", "Bundle not trusted"


class CardRefused(BundleError):
    """A bundle whose robustness card is missing, incomplete, too old, or shows a check that failed."""

    code, title = "card_refused", "Robustness card refused"


class PullFailed(PalisadeError):
    """A place that a bundle is fetched from does not answer, or sends something else than it states."""

    status, code, title = 502, "pull_failed", "Bundle could not be fetched"


class PullTimeout(PullFailed):
    """It does not send all of the bundle in the seconds that it has."""


class ConfigError(PalisadeError):
    """A setting, or a combination of settings and bundles, with which the gateway must not start."""

    code = "invalid_configuration"
    title = "Invalid configuration"


class EngineError(PalisadeError):
    """The defence graph returned something that must not be served; a valid image never causes this."""

    code = "internal_error"
    title = "Engine failure"


class UpstreamUnavailable(PalisadeError):
    """The model server behind `palisade guard` cannot be reached, refuses, or has failed too often just now."""

    status, code, title = 503, "upstream_unavailable", "Upstream unavailable"


class UpstreamTimeout(PalisadeError):
    status, code, title = 504, "upstream_timeout", "Upstream timed out"


class UpstreamInvalid(PalisadeError):
    """The model server behind `palisade guard` answered something that is no answer of the calibrated model."""

    status, code, title = 502, "upstream_invalid", "Invalid answer of the upstream"


class BadRequest(PalisadeError):
    status, code, title = 400, "bad_request", "Not HTTP"


class HeadTooLarge(PalisadeError):
    status, code, title = 431, "head_too_large", "Request head too large"


class EmptyBody(PalisadeError):
    status, code, title = 400, "empty_body", "Empty request body"


class BadParameter(PalisadeError):
    status, code, title = 422, "bad_parameter", "Bad parameter"


class UnsupportedMediaType(PalisadeError):
    status, code, title = 415, "unsupported_media_type", "Unsupported media type"


class UndecodableImage(PalisadeError):
    status, code, title = 422, "undecodable_image", "Image cannot be decoded"


class ImageTooLarge(PalisadeError):
    status, code, title = 413, "image_too_large", "Image too large"


class UnknownModel(PalisadeError):
    status, code, title = 404, "unknown_model", "Unknown model"


class UnknownVersion(PalisadeError):
    status, code, title = 404, "unknown_version", "Unknown version"


class NotFound(PalisadeError):
    status, code, title = 404, "not_found", "No such route"


class MethodNotAllowed(PalisadeError):
    status, code, title = 405, "method_not_allowed", "Method not allowed"


class RequestTimeout(PalisadeError):
    status, code, title = 408, "request_timeout", "Request body too slow"


class Overloaded(PalisadeError):
    status, code, title = 503, "overloaded", "Overloaded"


class NotReady(PalisadeError):
    status, code, title = 503, "not_ready", "Not ready"


class BlockedByPolicy(PalisadeError):
    status, code, title = 403, "blocked_by_policy", "Blocked by policy"


class NotCertified(PalisadeError):
    """The answer has not reached the certificate that the request or the gateway requires."""

    status, code, title = 403, "not_certified", "Not certified"


class Unauthorized(PalisadeError):
    status, code, title = 401, "unauthorized", "Unauthorized"


class Forbidden(PalisadeError):
    status, code, title = 403, "forbidden", "Forbidden"


class RateLimited(PalisadeError):
    status, code, title = 429, "rate_limited", "Rate limit exceeded"


class KeySuspended(PalisadeError):
    status, code, title = 403, "key_suspended", "Key suspended"


class Conflict(PalisadeError):
    status, code, title = 409, "conflict", "Conflict"


class StoreUnavailable(PalisadeError):
    status, code, title = 503, "store_unavailable", "Shared store unavailable"


class UnknownEvent(PalisadeError):
    status, code, title = 404, "unknown_event", "Unknown event"


class UnknownCampaign(PalisadeError):
    status, code, title = 404, "unknown_campaign", "Unknown campaign"


class AuditUnavailable(PalisadeError):
    status, code, title = 503, "audit_unavailable", "Audit store unavailable"


class UnreadableFile(PalisadeError):
    """On the command line: the operating system refuses to read the file."""

    status, code, title = 500, "unreadable_file", "Unreadable file"


class DamagedShard(PalisadeError):
    """On the command line: a tar file that cannot be read to its end; the detail says where."""

    status, code, title = 422, "damaged_shard", "Damaged shard"


class ArchiveUnreachable(PalisadeError):
    """On the command line: an object store that does not answer when it is asked what it holds."""

    status, code, title = 502, "archive_unreachable", "Archive unreachable"


class RayUnavailable(PalisadeError):
    """On the command line: a Ray cluster that does not answer, or whose workers die before they can work."""

    status, code, title = 503, "ray_unavailable", "Ray unavailable"


class WorkerLost(PalisadeError):
    """On the command line: each worker that was given this image or shard died of it, or with it."""

    status, code, title = 500, "worker_lost", "Worker lost"
