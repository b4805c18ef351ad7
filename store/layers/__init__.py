"""Options that name several layers"""
