//! Sources, destinations, checkpoints and manifests: how bytes come and go.
