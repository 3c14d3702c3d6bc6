"""Model servers that `benchmarks.guard` puts behind the gateway."""
