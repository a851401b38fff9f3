"""Generated from proto/fedtrain/wire/v1 by `make protos`; never edited."""
