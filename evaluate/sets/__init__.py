"""Every MLP replaced at once"""
