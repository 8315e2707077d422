"""What the workers tell this router, from Redis, in band and asked directly."""
