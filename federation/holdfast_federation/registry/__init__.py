"""The published models: verified bundles, their lineage and approvals, and the blobs they travel in."""
