"""From what an application passes to bytes on the wire: validation, encoding, ids."""
