"""Runs the preprocess stage in child processes, because the file of a picture decides how much work decoding is.

In: a ``Picture``. Out: its ``Pixels``. A picture that needs too much CPU time or memory ends its child, and no other
picture. The children are forked from a *template*, a process that has imported the stage.

children.py    one preprocessor's children: whose turn it is, which pictures are overdue, what replaces a lost child
budget.py      the CPU time and the memory that one picture may use
process.py     the template and a child, as their parent sees them
wire.py        the messages between parent and child
child.py       the program of the template and of the children
structure.py   refuses files whose structure makes decoding needlessly expensive, before they are decoded
"""
