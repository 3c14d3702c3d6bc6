"""The web console: a page of plain ES modules that speaks to the routes of /v1, and the samples it offers."""
