"""Messages between the call and the outcome: the states of a delivery, the in-flight window, what callers get."""
