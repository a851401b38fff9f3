"""The folder in which agent and trainer meet: whoever has the network never sees the data.

    orders/<order id>/        order.json, model.safetensors, permit.json    written by the agent
    claims/<order id>/        the same folder, renamed, and claim.json      by a trainer
    results/<order id>/       result.json, update.bin or model.bin          by a trainer
    progress/<order id>.json  steps done so far                             by a trainer
    trainers/<trainer>.json   heartbeat: a counter and the claimed order    by a trainer
    checkpoints/              the trainer's own
    probes/<id>.json          a question about the trainer's surroundings   by the agent
    findings/<id>.json        what it found                                 by a trainer

Every entry is written under a temporary name (a leading dot) in its folder and then renamed, so a
reader never sees half of one. An order is claimed by renaming it, so exactly one trainer gets it;
an expired claim goes back, and of two results the first wins. An order that promises privacy has a
permit for one execution, so its expired claim is removed and the agent posts it with a new one.

Both sides treat the other's files as hostile: names are matched before they become paths, folders
are opened step by step without following links, documents are bounded in size and read against
their schema. Rubbish is skipped and reported, never obeyed.

Where agent and trainer have an account each, the mailbox belongs to a group of both and is marked
setgid (`chmod 2770`); what either writes is then open to that group, whatever its umask.

Nothing here is synced to the disk. After a power loss the order is sent again, and every file is
checked by size and digest when it is read, so durability would buy nothing.
"""

from fedtrain.core.charges import Mechanism, Permit, permit_fault
from fedtrain.core.orders import Order, OrderKind, Progress, Result
from fedtrain.core.privacy import AdaptiveTerms, MaskTerms, RecordTerms, SiteTerms
from fedtrain.core.terms import Asked, read_asked
from fedtrain.storage.mailbox.box import Claim, Mailbox
from fedtrain.storage.mailbox.claims import ClaimWatch
from fedtrain.storage.mailbox.documents import MODEL_FILE, RESULT_FILES
from fedtrain.storage.mailbox.probes import Count, Finding, Probe

__all__ = [
    "MODEL_FILE",
    "RESULT_FILES",
    "AdaptiveTerms",
    "Asked",
    "Claim",
    "ClaimWatch",
    "Count",
    "Finding",
    "Mailbox",
    "MaskTerms",
    "Mechanism",
    "Order",
    "OrderKind",
    "Permit",
    "Probe",
    "Progress",
    "RecordTerms",
    "Result",
    "SiteTerms",
    "permit_fault",
    "read_asked",
]
