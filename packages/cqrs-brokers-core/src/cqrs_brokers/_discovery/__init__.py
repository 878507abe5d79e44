"""From a scheme to its plugin: entry points, loading, opening."""
