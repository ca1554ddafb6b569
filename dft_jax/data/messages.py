"""The messages of a conversation, as row formats make them and templates render them."""

from typing import Any

# {"role": "system" | "user" | "assistant", "content": text}, and ONLY_READ: True in an answer that
# the model reads as context of later turns and is not trained on.
Message = dict[str, Any]
ONLY_READ = "only_read"


def is_only_read(message: Message) -> bool:
    """Whether an answer is there for those after it, and not trained."""
    return message.get(ONLY_READ, False)
