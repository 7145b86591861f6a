"""Where arrays live: the mesh of devices, the rules from logical axes to it, and what programs know of both."""
