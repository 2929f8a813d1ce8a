"""`ml simulate`: weeks of the sample's traffic through the real service, server, worker and automation."""
