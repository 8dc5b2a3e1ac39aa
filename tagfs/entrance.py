"""Entrance: the namespace that was entered last, open for those who ask for more of it.  Blocking.

Owns: for how long it stays entered.
Does not know: nodes, requests, what is looked for in it.
Invariant: who is given a namespace is given the directory that has its name now.

Programs ask for the repositories of one namespace after another: to enter it once saves each of them three opens.
"""

from collections.abc import Callable

from tagfs.store import Entered


class Entrance:
    """Enters the namespaces of one store.

    Args:
        enter: a namespace, entered; RepositoryMissing.
        is_watched: whether it is told from now on that namespaces are moved, removed or replaced.
    """

    def __init__(self, enter: Callable[[str], Entered], is_watched: Callable[[], bool]) -> None:
        self._enter = enter
        self._is_watched = is_watched
        self.has_news: Callable[[], bool] | None = None
        """Whether something has happened beneath that was not told yet; None: that is not known."""
        # INVARIANT: that it is replaced is told since before it was entered; where it is not, it has no name here.
        self._name: str | None = None
        self._entered: Entered | None = None

    def namespace(self, name: str) -> Entered:
        """A namespace, entered, until the next one is; RepositoryMissing."""
        # Until something is told, or lined up to be, what had this name has it still.
        if self._entered is not None and self._name == name and self.has_news is not None and not self.has_news():
            return self._entered
        self.leave()
        is_watched = self._is_watched()  # first
        self._entered = self._enter(name)
        self._name = name if is_watched else None
        return self._entered

    def leave(self) -> None:
        """Let go of it: something has changed, or nobody asks any more."""
        if self._entered is not None:
            self._entered.close()
            self._entered = self._name = None
