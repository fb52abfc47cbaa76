"""Owning a trainer: started, watched, stopped, brought back."""
