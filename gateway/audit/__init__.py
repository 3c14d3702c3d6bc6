"""Audit trail: events of flagged, changed and blocked requests and of a uniform sample, kept for review.

A request's event goes to a local spool file before the answer goes out (`writer`, `spool`), and from there to a
database by a thread (`mover`, `store`). `trail.Audit` is the one object that the rest of the gateway sees.
"""
