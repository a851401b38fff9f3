"""Whether a lineage statement is true to its signatures: the coordinator's, and each contributor's."""

from __future__ import annotations

from collections.abc import Mapping

from fedtrain.core import canonical
from fedtrain.core.lineage import Contributor, Lineage, SignedLineage
from fedtrain.errors import BadSignature, IntegrityError
from fedtrain.trust import keys, statements


def check_statement(shown: SignedLineage, public: str) -> None:
    """Holds that the owner of `public`, the coordinator, signed this document.

    Raises `BadSignature` if it did not.
    """
    lineage = shown.lineage
    statement = statements.Lineage(shown.consortium, lineage.run, lineage.version, canonical.digest(lineage))
    statements.verify(statement, public, statements.signature_bytes(shown.signature, "the lineage"))


def check_contributors(lineage: Lineage, agreed: Mapping[str, str] | None = None) -> tuple[int, int]:
    """Hold what the document says of its contributors against their own signatures.

    Args:
        agreed: order -> digest of the order, from the journal; without it consents are not checked.

    Returns (commits, consents) that were checked: an initial model has no signed commit, a site of
    protocol 1.0 names no contract.

    Raises `BadSignature` that names the site, `IntegrityError` if the configuration is not of its digest.
    """
    if canonical.digest(lineage.configuration) != lineage.configuration_digest:
        raise IntegrityError("the configuration in the lineage is not the one of its digest: it was altered")
    commits = consents = 0
    for item in lineage.contributors:
        if item.signature:
            _check_commit(lineage.run, item)
            commits += 1
        if item.consent and agreed is not None:
            _check_consent(item, agreed.get(item.order, ""))
            consents += 1
    return commits, consents


def _check_commit(run: str, item: Contributor) -> None:
    commit = statements.Commit(run, item.order, item.update, item.size_bytes, item.weight, item.steps)
    what = f"the commit of {item.site}"
    _verify(commit, item.message_key, statements.signature_bytes(item.signature, what), what)


def _check_consent(item: Contributor, order_digest: str) -> None:
    agreement = statements.Agreement(item.order, order_digest, True, (), item.contract)
    what = f"the consent of {item.site}"
    _verify(agreement, item.message_key, statements.signature_bytes(item.consent, what), what)


def _verify(statement: statements.Statement, public: str, signature: bytes, what: str) -> None:
    try:
        statements.verify(statement, keys.check_public(public), signature)
    except BadSignature as error:
        raise BadSignature(f"{what}: {error}") from error
