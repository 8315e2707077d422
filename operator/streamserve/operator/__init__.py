"""What a StreamPair means on Kubernetes: the pure core. The README of this folder's root is its map."""
