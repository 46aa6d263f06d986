"""Readers: from files, folders and standard input to plain text.

Does not know models, tokens or memories.
"""

from emllm.documents.document import Document as Document
from emllm.documents.document import Loaded as Loaded
from emllm.documents.document import checked_text as checked_text
from emllm.documents.load import load as load
from emllm.documents.load import load_all as load_all
