"""Syncing: what closing and syncing an open file wait for.  Async.

Owns: where staging is done, what an fsync has to find durable.
Does not know: what is staged, how a request looks.
"""

from tagfs.commits import Commits, Pending
from tagfs.handles import HEAVY, Step
from tagfs.publishing import Publishing


def stage(commits: Commits, step: Step | None) -> Pending | None:
    """Run a step that stages: here, unless it is heavy or others of its key are to come before; -> then what is to be
    waited for."""
    if step is None:
        return None
    if step.size >= HEAVY or not commits.is_quiet(step.key):
        return commits.begin(step)
    try:
        result = step.run()
    except Exception as error:
        step.fail(error)
        raise
    step.settle(result)
    return None


async def flush(commits: Commits, tree: Publishing, handle: int) -> None:
    """Stage what closing would commit."""
    if (pending := stage(commits, tree.flush(handle))) is not None:
        await pending.ended()


async def sync(commits: Commits, tree: Publishing, handle: int) -> None:
    """Return when what was written to an open file is durable."""
    key = tree.key_of_handle(handle)
    # What another thread commits through this handle is part of what this one must find durable, also where it took
    # what was staged here.
    await commits.quiet(key)
    await flush(commits, tree, handle)
    while (step := tree.commit(handle)) is None and key is not None and not commits.is_quiet(key):
        await commits.quiet(key)
        await flush(commits, tree, handle)
    await commits.run(step)


def release(commits: Commits, tree: Publishing, handle: int) -> None:
    """Let go of a handle, and let what it staged be committed: nobody waits for that."""
    try:
        if (step := tree.commit(handle)) is not None:
            commits.submit(step)
    finally:
        tree.release(handle)
