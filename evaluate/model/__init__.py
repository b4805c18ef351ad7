"""What needs the language model"""
