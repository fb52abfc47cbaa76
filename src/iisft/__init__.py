"""iisft: LLaMA-Factory runs that do exactly what their preset says."""

__version__ = "0.2.0"
