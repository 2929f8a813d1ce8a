"""`ml tidy`: deletes the files of earlier releases that their owner did not edit, and shows the edits of the others."""

from ondol.cli.console import console, print_plain
from ondol.config import find_root
from ondol.setup.leftovers import Leftovers, delete_leftovers, find_imports, find_leftovers, show_edit

WHERE = '"Updating from 0.3" in the template\'s CHANGELOG.md says where it belongs now'


def tidy_project(dry_run: bool) -> None:
    """Delete the files that equal a release, and print what was deleted and what was kept."""
    root = find_root()
    found = find_leftovers(root)
    importing = find_imports(root, found)
    if not (found.released or found.edited or found.unknown):
        console.print("[green]✓[/] No file of an earlier release is left here.")
    elif not found.released:
        console.print("Nothing to delete: no file here equals one of an earlier release.")
    elif dry_run:
        print_plain("\n".join(found.released))
        console.print(
            f"`ml tidy` would delete {_files(len(found.released))} above: each equals a release.", soft_wrap=True
        )
    else:
        folders = delete_leftovers(root, found.released)
        also = f", and {len(folders)} empty folder{'s' * (len(folders) != 1)}" if folders else ""
        console.print(
            f"[green]✓[/] Deleted {_files(len(found.released))}: each equals a release{also}.", soft_wrap=True
        )
    for name in found.edited:
        diff = show_edit(root, name)
        if diff is None:
            print_plain(f"{name} was edited and is kept; git does not have its released text to compare with.")
        else:
            print_plain(f"{name} was edited and is kept. The edit:\n{diff}".rstrip("\n"))
    if found.edited:
        print_plain(f"This release does not use an edited file: move the edit ({WHERE}), then delete the file.")
    if found.unknown:
        print_plain(f"{describe_unknown(found)}, then `ml tidy` again.")
    for name, modules in importing:
        print_plain(f"{name} imports {', '.join(modules)}, of an earlier release: import from `ondol` instead.")


def describe_leftovers(found: Leftovers) -> str:
    """Return a sentence on the leftover files for `ml doctor`."""
    parts = []
    if found.released:
        parts.append(f"{_files(len(found.released))} of an earlier release")
    if found.edited:
        parts.append(f"{', '.join(found.edited)} with an edit of yours that this release does not use")
    advice = [f"{' and '.join(parts)}: run `ml tidy`"] if parts else []
    return "; ".join([*advice, *([describe_unknown(found)] if found.unknown else [])])


def describe_unknown(found: Leftovers) -> str:
    """Return a sentence on files that a shallow clone cannot decide on, with the command to run."""
    have = "has the name of a file" if len(found.unknown) == 1 else "have the names of files"
    return (
        f"{', '.join(found.unknown)} {have} of an earlier release, and this shallow clone does not show whether it is "
        "that with an edit of yours: run `git fetch --unshallow`"
    )


def _files(count: int) -> str:
    return f"{count:,} file{'s' * (count != 1)}"
