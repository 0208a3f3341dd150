"""Job 1: at which granularity does attention work, and with what confidence."""
