"""Model hubs: metadata, transfer, verification."""
