"""The connection's life: connecting, reconnecting, event loops, closing, health."""
