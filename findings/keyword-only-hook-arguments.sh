#!/bin/sh
# pluggy takes a hook implementation with a keyword-only argument, and fails when the hook is called.
#
# Versions: pluggy 1.7.0, Python 3.11.
# Expected: register() compares the signature with the specification and raises PluginValidationError, as it does for an
# argument that the specification does not have.
# Seen: keyword-only arguments are not looked at. Registration passes, check_pending() passes, and the first call raises a
# TypeError that says an argument is missing, although the caller gave it.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check pluggy==1.7.0
cat > "$folder/case.py" <<'PYTHON'
import pluggy

specification, implementation = pluggy.HookspecMarker("case"), pluggy.HookimplMarker("case")


class Specification:
    @specification
    def opened(self, name, address):
        """Called with both."""


class Unknown:
    @implementation
    def opened(self, port):
        return port


class KeywordOnly:
    @implementation
    def opened(self, name, *, address):
        return name, address


manager = pluggy.PluginManager("case")
manager.add_hookspecs(Specification)
try:
    manager.register(Unknown())
except pluggy.PluginValidationError as error:
    print("unknown argument:", type(error).__name__)
manager = pluggy.PluginManager("case")
manager.add_hookspecs(Specification)
manager.register(KeywordOnly())
manager.check_pending()
print("keyword-only argument: registered")
try:
    manager.hook.opened(name="a", address="b")
except TypeError as error:
    print("called:", error)
PYTHON
"$folder/venv/bin/python" "$folder/case.py" > "$folder/seen"
cat > "$folder/expected" <<'SEEN'
unknown argument: PluginValidationError
keyword-only argument: registered
called: KeywordOnly.opened() missing 1 required keyword-only argument: 'address'
SEEN
diff "$folder/expected" "$folder/seen" && echo "as found"
