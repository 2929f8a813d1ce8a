"""`ml promote` and `ml rollback`: move the champion by hand, with MLflow and Prefect up or down."""

from rich.markup import escape

from ondol.cli.console import console, open_project
from ondol.config import Settings
from ondol.errors import UserError
from ondol.orchestration.alerts import Kind, alert
from ondol.registry.bundles import Bundle, open_bundle
from ondol.registry.champion import Action, Champion, move_champion, require_champion, served_bundle


def promote_version(version: str, why: str) -> None:
    """Put a version that was deployed before into service.

    Raises:
        UserError: it serves already, or never served.
    """
    settings = open_project()
    champion = require_champion(settings.store_path)
    if champion.version == version:
        raise UserError(f"Version {version} serves already, since {champion.since}.")
    _move(settings, champion, served_bundle(settings.store_path, version), "promote", why)


def roll_back(why: str) -> None:
    """Put the version that served before the present one into service.

    Raises:
        UserError: none did.
    """
    settings = open_project()
    champion = require_champion(settings.store_path)
    _move(settings, champion, open_bundle(settings.store_path, previous_bundle(champion)), "rollback", why)


def previous_bundle(champion: Champion) -> str:
    """Return the bundle that served before; rolling back twice goes back two steps, not back and forth.

    Raises:
        UserError: there is none.
    """
    stack: list[str] = []
    for change in champion.history:
        if change.action == "rollback" and len(stack) > 1:
            stack.pop()
        else:
            stack.append(change.to)
    if len(stack) < 2:
        raise UserError(f"Version {champion.version} is the first that served: there is none to go back to.")
    return stack[-2]


def _move(settings: Settings, old: Champion, bundle: Bundle, action: Action, why: str) -> None:
    now = move_champion(settings.store_path, bundle, action, why)
    console.print(f"[green]✓[/] version {old.version} → [bold]version {bundle.version}[/] serves ({escape(why)})")
    _copy_to_mlflow(settings)
    what = f"Version {bundle.version} was put into service by hand in place of version {old.version}: {why}"
    kind: Kind = "rolled-back" if action == "rollback" else "promoted"
    alert(settings, kind, what, "`ml status` shows the history.", key=f"{kind} {now.move}")


def _copy_to_mlflow(settings: Settings) -> None:
    """Move MLflow's alias too; where MLflow is down, the next command does it."""
    from ondol.registry.registry import repair_alias

    try:
        repair_alias(settings)
    except Exception as error:  # whatever a server that is down raises; champion.json has been written
        console.print(f"  [yellow]MLflow's alias was not moved ({type(error).__name__}); the next `ml run` does it.[/]")
