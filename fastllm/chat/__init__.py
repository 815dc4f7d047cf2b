"""MESSAGES TO A PROMPT, by the model's own Jinja template.

`source` finds the template in a checkpoint, `template` checks the messages and renders, `sandbox`
is Hugging Face's environment with what a program from a stranger's file may use up bounded.
Importing this room does not import jinja2; rendering does.
"""

from fastllm.chat.template import ChatTemplate, template_of

__all__ = ["ChatTemplate", "template_of"]
