"""Who is who, and who said what: certificates, keys, invites, enrolment, admission, signatures.

Nothing here opens a connection: bytes and mappings come in, verdicts and bytes go out. Only
`private_files`, `folders` and `renewal` touch a disk. The time is always an argument, in milliseconds of UTC.

    identity       the name inside a certificate
    certificates   reading certificates and signing requests that others made
    authority      the consortium's certificate authority: issuing
    keys           keys that never leave the place where they were made
    invites        one line to paste, and back
    enrolment      from an invite to a certificate, at both ends
    admission      the judgement on the peer of every call
    statements     what is signed, and with which bytes
    folders        where all of this lies on disk
    renewal        a member's next certificate, saved so that no crash hurts
    diagnosis      why nobody answered, in words
"""
