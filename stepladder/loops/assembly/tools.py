"""Tools between the steps, from the configuration."""

from stepladder.data.grading.tools import FunctionTool, load_tool
from stepladder.data.step_checks.code_tool import CodeTool
from stepladder.data.step_checks.sandbox import CodeSandbox, check_sandbox
from stepladder.interfaces import Tool
from stepladder.loops.config.run import Config
from stepladder.loops.config.search import CODE_TOOL


def build_tool(config: Config) -> Tool:
    """Return the tool that follows the policy's steps.

    Raises:
        ConfigError: If code cannot be sandboxed here, or there is no such function.
    """
    section = config.search
    assert section.tool is not None, "only searches with a tool build one"
    if section.tool == CODE_TOOL:
        return CodeTool(CodeSandbox(deadline_s=section.tool_deadline_s, allow_unsandboxed=section.tool_unsandboxed))
    return FunctionTool(section.tool, deadline_s=section.tool_deadline_s)


def check_tool(config: Config) -> None:
    """Check that the tool can be called, before any work starts; nothing is called. Errors are those of ``build_tool``."""
    section = config.search
    if section.tool == CODE_TOOL:
        if not section.tool_unsandboxed:
            check_sandbox()
    elif section.tool is not None:
        load_tool(section.tool)
