"""The running operator around the pure core: it watches, queues, carries decisions out. One module for each duty."""
