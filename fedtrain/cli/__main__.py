"""`python -m fedtrain.cli`: the same as the `fedtrain` command."""

from fedtrain.cli import main

raise SystemExit(main())
