"""A new speculation setting on a few lanes first: evidence, comparison, law, memory. Pure; the way in is `law`."""
