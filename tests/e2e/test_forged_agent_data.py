"""What an agent writes into its own data makes mngr do nothing on this machine."""

import json
import subprocess
from pathlib import Path

from support.mngr_cli import MngrCli


def test_an_agent_cannot_make_mngr_delete_a_branch(mngr: MngrCli, tmp_path: Path) -> None:
    worktree = tmp_path / "worktree"
    mngr.git("branch", "precious")
    mngr.git("worktree", "add", "--quiet", "-b", "mine", str(worktree))
    mngr("create", "a1@h1.local-vps", "--new-host", "--type", "command", "--no-connect", "--", "sleep", "100000")
    (before,) = mngr.agents()
    forged = {"work_dir": str(worktree), "created_branch_name": "precious", "type": "claude"}
    replace = 's#^  {0}: "*[^",]*"*#  {0}: {1}#'
    edits = ";".join(replace.format(json.dumps(name), json.dumps(value)) for name, value in forged.items())
    mngr("exec", "a1", f"sed -i '{edits}' /mngr/agents/*/data.json")
    written, _end = json.JSONDecoder().raw_decode(mngr("exec", "a1", "--cwd", "/", "cat /mngr/agents/*/data.json"))
    assert written.items() >= forged.items()
    (after,) = mngr.agents()
    mngr("destroy", "a1", "--force", "--remove-created-branch")
    listing = subprocess.run(["git", "branch"], cwd=mngr.project, capture_output=True, text=True, check=True)
    assert "precious" in listing.stdout
    assert [after[name] == before[name] for name in ("name", "type", "work_dir")] == [True] * 3
