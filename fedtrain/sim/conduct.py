"""The auditor's account of who is out: revoked, or in quarantine by rule or by an operator.

Counts rejected updates by itself: three in a row without a good one are the rule.
"""

from __future__ import annotations

from collections import Counter

from fedtrain.core import events as ev

REVOKED = "revoked"
QUARANTINED = "in quarantine"
IN_A_ROW = 3


class Conduct:
    """Of one journal.

    Attributes:
        out: site -> why it has no part in any run.
    """

    def __init__(self) -> None:
        self.out: dict[str, str] = {}
        self._rejected: Counter[str] = Counter()
        self._quarantined: set[str] = set()

    def happened(self, event: ev.Event, enrolled: set[str]) -> str:
        """The site that this event takes out, "" for none."""
        match event:
            case ev.UpdateStored():
                self._rejected.pop(_site(event.order), None)
            case ev.UpdateRejected():
                site = _site(event.order)
                self._rejected[site] += 1
                if self._rejected[site] >= IN_A_ROW:
                    return self._quarantine(site, enrolled)
            case ev.SiteQuarantined():
                return self._quarantine(event.site, enrolled)
            case ev.SiteReleased():
                self._rejected.pop(event.site, None)
                self._quarantined.discard(event.site)
                if self.out.get(event.site) == QUARANTINED:
                    del self.out[event.site]
            case ev.MemberRevoked() if event.name in enrolled and self.out.get(event.name) != REVOKED:
                self.out[event.name] = REVOKED
                return event.name
            case ev.MemberEnrolled():
                self.out.pop(event.name, None)
                if event.name in self._quarantined:
                    self.out[event.name] = QUARANTINED
        return ""

    def _quarantine(self, site: str, enrolled: set[str]) -> str:
        if site in self._quarantined or site not in enrolled:
            return ""
        self._quarantined.add(site)
        if site in self.out:
            return ""
        self.out[site] = QUARANTINED
        return site


def _site(order: str) -> str:
    return order.rsplit(".", 1)[-1]
