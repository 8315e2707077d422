"""What every process needs once: servers, channels, status details, logs, metrics, backoff, task ownership."""
