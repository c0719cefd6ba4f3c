"""What an agent writes into its own data has mngr do nothing on this machine."""

import json
import subprocess
from pathlib import Path

from support.mngr_cli import MngrCli


def test_an_agent_has_no_branch_of_the_user_deleted(mngr: MngrCli, tmp_path: Path) -> None:
    worktree = tmp_path / "worktree"
    mngr.git("branch", "precious")
    mngr.git("worktree", "add", "--quiet", "-b", "mine", str(worktree))
    mngr("create", "a1@h1.local-vps", "--new-host", "--type", "command", "--no-connect", "--", "sleep", "100000")
    (before,) = mngr.agents()
    lies = {"work_dir": str(worktree), "created_branch_name": "precious", "type": "claude"}
    edits = ";".join(
        f's#^  {json.dumps(name)}: "*[^",]*"*#  {json.dumps(name)}: {json.dumps(lie)}#' for name, lie in lies.items()
    )
    mngr("exec", "a1", f"sed -i '{edits}' /mngr/agents/*/data.json")
    written, _end = json.JSONDecoder().raw_decode(mngr("exec", "a1", "--cwd", "/", "cat /mngr/agents/*/data.json"))
    assert written.items() >= lies.items()
    (after,) = mngr.agents()
    mngr("destroy", "a1", "--force", "--remove-created-branch")
    listing = subprocess.run(["git", "branch"], cwd=mngr.project, capture_output=True, text=True, check=True)
    assert "precious" in listing.stdout
    assert [after[name] == before[name] for name in ("name", "type", "work_dir")] == [True] * 3
