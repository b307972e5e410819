"""One third-party checkout: found, verified, stood in for, and patched."""
