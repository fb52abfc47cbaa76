"""The only package that knows LLaMA-Factory: argument names, environment, dataset_info.json, log
formats.
"""
