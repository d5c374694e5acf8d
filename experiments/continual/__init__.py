"""Ten tasks of new classes in sequence, without rehearsal: what does each method forget?"""
