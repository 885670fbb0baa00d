"""What the censor costs, measured in labs of its own; `lab/bench` is the door."""
