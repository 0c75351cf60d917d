"""The ways in which a repository, a configuration or a model can be wrong. All say what to change.

RepositoryError     there is no repository where one was expected
ConfigError         a config.pbtxt cannot be honoured
ModelError          a model file cannot be loaded, or its answer does not fit its signature
"""


class RepositoryError(Exception):
    """The repository itself cannot be read; a single broken model is never the cause."""


class ConfigError(Exception):
    """A model's configuration is malformed, contradicts the model, or asks for the impossible."""


class ModelError(Exception):
    """A model file cannot be loaded, or what the model returned does not fit its signature."""


def described(error: BaseException) -> str:
    """Its type and its text; models bring exceptions of their own, whose text may fail."""
    try:
        text = str(error)
    except Exception as failure:
        text = f"(its text cannot be had: {type(failure).__name__})"
    return f"{type(error).__name__}: {text}"
