"""One module for each kind of child: a StreamPair and the site in, plain objects for server-side apply out.

An object holds the fields that we own and no others: what the API server defaults, a HorizontalPodAutoscaler sets or
another controller adds is not ours to send.
"""
