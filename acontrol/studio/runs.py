"""The registered adapters of an MLflow server."""

from acontrol.errors import UserError, one_line


def models() -> list[tuple[str, str, str]]:
    """Name, version and aliases of each, of the server that commands use.

    Raises:
        UserError: If it does not answer.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    try:
        client = MlflowClient()
        return [
            (
                version.name,
                str(version.version),
                " ".join(f"@{name}" for name in version.aliases),
            )
            for model in client.search_registered_models()
            for version in client.search_model_versions(f"name = '{model.name}'")
        ]
    except (MlflowException, OSError) as error:
        raise UserError(f"MLflow does not answer: {one_line(error)}") from error
