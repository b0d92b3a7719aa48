"""Known vulnerabilities of what is installed here: exit code 1 if there are any, 0 if none can be found out."""

from __future__ import annotations

import json
import subprocess
import sys

OURS = "label-studio-propagate"
MOST_SECONDS = 50
NAMED = 5


def main() -> int:
    """Ask pip-audit; the exit code."""
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--format=json",
        "--progress-spinner=off",
        "--desc=off",
        "--timeout=10",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=MOST_SECONDS, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        said, code = judged("", f"no answer within {MOST_SECONDS} s")
    else:
        said, code = judged(done.stdout, done.stderr)
    print(said)
    return code


def judged(report: str, complaint: str) -> tuple[str, int]:
    """What pip-audit found, in words, and the exit code. report: its JSON; complaint: what it says beside it."""
    try:
        told = json.loads(report)["dependencies"]
    except (ValueError, LookupError, TypeError):
        last = (complaint.strip().splitlines() or ["no reason given"])[-1]
        return f"NOT AUDITED: known vulnerabilities could not be looked up ({last[:200]})", 0
    packages = [package for package in told if package["name"] != OURS]
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    found = [
        f"{package['name']} {package['version']}: {flaw['id']}, fixed in {flaw['fix_versions'] or 'no version'}"
        for package in packages
        for flaw in package.get("vulns", ())
    ]
    lines = []
    if unknown:
        named = ", ".join(unknown[:NAMED]) + (", …" if unknown[NAMED:] else "")
        lines.append(
            f"NOT AUDITED: {len(unknown)} of {len(packages)} packages are unknown to the service ({named})"
        )
    if found:
        return "\n".join([*lines, f"{len(found)} known vulnerabilities:", *found]), 1
    if len(unknown) < len(packages):
        lines.append(f"audited: {len(packages) - len(unknown)} packages, no known vulnerability")
    return "\n".join(lines or ["NOT AUDITED: nothing is installed"]), 0


if __name__ == "__main__":
    sys.exit(main())
