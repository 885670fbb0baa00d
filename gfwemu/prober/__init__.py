"""Active probers: who connects to a suspected server, when, from where, with which bytes."""
