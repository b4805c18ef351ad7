"""What a harvest and the trainings on it take at any size, by formula: nothing is read, run or written"""
