"""What outlives a process: the journal, blobs by digest, and the mailbox between agent and trainer."""
