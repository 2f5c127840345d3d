"""Docker's health check: a Ray node must answer; where no Ray node runs, all is well.

Kubernetes has probes of its own, which KubeRay adds.
"""

import sys
import urllib.error
import urllib.request

URL = "http://127.0.0.1:52365/api/healthz"
"""The dashboard agent of every Ray node, at KubeRay's port."""


def main(url: str = URL) -> int:
    """Return 0 for a node that answers, or for none; 1 for one that is silent or unwell."""
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.URLError as error:
        return 0 if isinstance(error.reason, ConnectionRefusedError) else 1
    except OSError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
