"""The demo's model and data: everything `iisft train --preset demo` needs, without a network."""

PRESET = "demo"
