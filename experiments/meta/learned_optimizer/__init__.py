"""A learned optimizer: does an update rule that was meta-trained on small tasks serve on others?"""
