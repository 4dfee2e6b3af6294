"""The command `obs-engine`. Keeper of `print`. Needs the extra `[cli]`; `serve` and `demo` need `[server]` too."""
