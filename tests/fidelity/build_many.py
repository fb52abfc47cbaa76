"""Asks child/build_model.py about many requests in one process, in the training interpreter:
python build_many.py BUILD_MODEL.PY REQUESTS.json; answers go to REQUESTS.answers.
"""

import importlib.util
import json
import sys
from pathlib import Path

script, requests = map(Path, sys.argv[1:])
sys.path.insert(0, str(script.parent))
spec = importlib.util.spec_from_file_location("build_model", script)
build_model = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build_model)
asked = json.loads(requests.read_text(encoding="utf-8"))
answers = {name: build_model.answer(request) for name, request in asked.items()}
text = json.dumps(answers, default=str)
requests.with_suffix(".answers").write_text(text, encoding="utf-8")
