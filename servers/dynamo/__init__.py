"""NVIDIA Dynamo on loopback: a real frontend, workers of our own behind it; no GPU, no hub, no etcd, no NATS."""
