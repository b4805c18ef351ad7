"""What an accelerator reaches, what it should reach, and whether its numbers are right: parts that run one by one."""
