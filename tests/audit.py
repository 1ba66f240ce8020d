"""`python -m tests.audit`: known vulnerabilities of the locked packages, by pip-audit; and the packages without an answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK_FILES = ("requirements.lock",)


def main() -> int:
    vulnerable = False
    for lock_file in LOCK_FILES:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pip_audit", "--requirement", lock_file, "--require-hashes", "--disable-pip"),
                *("--format", "json", "--progress-spinner", "off"),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        try:
            packages = json.loads(done.stdout)["dependencies"]
        except (ValueError, KeyError):
            print(f"{lock_file}: NOT AUDITED, pip-audit could not do its work: {done.stderr.strip()[-500:]}")
            continue
        skipped = [package["name"] for package in packages if "skip_reason" in package]
        for package in packages:
            for found in package.get("vulns", []):
                vulnerable = True
                fixed = ", ".join(found["fix_versions"]) or "no version yet"
                print(f"{lock_file}: {package['name']} {package['version']}: {found['id']}, mended in {fixed}")
        print(f"{lock_file}: {len(packages) - len(skipped)} of {len(packages)} packages audited.")
        if skipped:
            print(f"    NOT AUDITED, the index has no advisories for them or cannot be reached: {', '.join(skipped)}")
    return 1 if vulnerable else 0


if __name__ == "__main__":
    sys.exit(main())
