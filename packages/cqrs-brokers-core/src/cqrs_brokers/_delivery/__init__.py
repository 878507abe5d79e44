"""The way of a message from the call to its outcome: the states of its delivery, the window (which limits how many
messages the driver holds), and the outcomes that callers get."""
