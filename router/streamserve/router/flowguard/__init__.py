"""FlowGuard: which prefill and decode worker serve a request, and why."""
