"""Several gateways that are one service (replicas behind a proxy): limits and wanted versions in one PostgreSQL."""
