"""What is on its way: the delivery's states, the in-flight window, and the outcomes of callers."""
