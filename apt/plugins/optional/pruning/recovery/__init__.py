"""Training a cut model from its dense parent, and the call that does both."""
