"""A page that goes on showing what happens in the workspace: a small server on this machine."""
