"""`python -m fedtrain.trainer MAILBOX --data peer.yaml`: see `fedtrain.trainer.process`."""

from fedtrain.trainer.process import main

raise SystemExit(main())
