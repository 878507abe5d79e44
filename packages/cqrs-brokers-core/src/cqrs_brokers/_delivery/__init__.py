"""What happens to a message between the call and its outcome: the states of its delivery, the window (which limits how
many messages the driver holds), and the outcomes that callers get."""
