"""Tasks and tools of the two environments that need nothing but this package: `arithmetic` and `shop`."""
