"""Packages of the extra [train] that only some metrics need, imported when they are used."""

import importlib
import warnings
from typing import Any

from iisft.errors import EnvironmentFault

_DISTRIBUTIONS = {"rouge_chinese": "rouge-chinese", "sklearn": "scikit-learn"}


def load(name: str, purpose: str) -> Any:
    """Import a module by its dotted name.

    Args:
        name: the module.
        purpose: what needs it, for the message.

    Raises:
        EnvironmentFault: it is not installed for the Python that iisft runs in.
    """
    package = name.partition(".")[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # jieba imports the deprecated pkg_resources
            return importlib.import_module(name)
    except ImportError as error:
        distribution = _DISTRIBUTIONS.get(package, package)
        raise EnvironmentFault(
            "metric-package-missing",
            f"{purpose} needs {distribution}, which is not installed for the Python that iisft "
            "runs in",
            fix=f"pip install {distribution}   (all of them: pip install 'iisft[train]')",
        ) from error
