"""Open descriptors: a site that is attached takes one, and many systems begin with a limit of 1,024."""

from __future__ import annotations

import logging
import resource

_log = logging.getLogger(__name__)

WANTED = 65_536
"""More sites than one process can serve."""

SPARE = 200
"""For the journal, blobs on their way, connections of operators, libraries."""


def allow_descriptors(sites: int) -> int:
    """Raise this process's own limit as far as it may be; returns it.

    Args:
        sites: how many may attach. If they do not fit, a person is told, and those that do are served.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(hard, WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    if soft != resource.RLIM_INFINITY and soft < sites + SPARE:
        _log.warning(
            "%d members may attach, and this process may open only %d descriptors, %d of them for itself: "
            "raise the hard limit (LimitNOFILE= of the service, or `ulimit -Hn`)",
            sites,
            soft,
            SPARE,
        )
    return soft
