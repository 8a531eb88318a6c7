"""Set the variables that Textual reads on import; import this first."""

import os

# Sixty frames a second are wasted over SSH; fifteen feel the same.
os.environ.setdefault("TEXTUAL_FPS", "15")
# Textual's debug log and developer console would record every key and paste, and so a token.
for name in ("TEXTUAL", "TEXTUAL_LOG", "TEXTUAL_DEVTOOLS_PORT"):
    os.environ.pop(name, None)
