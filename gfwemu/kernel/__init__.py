"""What the kernel does for the censor: the owned table, the queue, forged packets, and what the machine can do."""
