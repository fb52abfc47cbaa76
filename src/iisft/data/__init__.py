"""Staged datasets: checked copies with their own dataset_info.json."""
